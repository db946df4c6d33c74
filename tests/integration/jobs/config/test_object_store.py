from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from console.schedules.edit import Bucket as BucketOfSchedules
from dispatcher.failure_contract import Category
from jobs.config import objectstore, stored
from jobs.config.manifests import NETWORK_POLICY_TEMPLATE, POD_TEMPLATE
from jobs.config.objectstore import ObjectStore, StoredObject
from jobs.config.stored import Configs, main, upload_defaults
from jobs.errors import JobError, PermanentError, TransientError
from jobs.failures import Failure
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.http_server import Answer, ScriptedServer
from tests.support.store import Bucket

DEFAULT_KEYS = sorted(
    path.relative_to(stored.DEFAULTS).as_posix() for path in stored.DEFAULTS.rglob("*.yaml")
)
#: What a create reads.
CREATE_KEYS = sorted([stored.SETTINGS, POD_TEMPLATE, NETWORK_POLICY_TEMPLATE])


@pytest.fixture
def store(bucket: Bucket) -> ObjectStore:
    return ObjectStore(bucket.settings)


@pytest.mark.parametrize(
    "key",
    [
        "plain.yaml",
        "folder/with space.yaml",
        "plus+and%20percent%",
        "query?a=b&c=d#fragment",
        "quotes'\"`(){}[]<>",
        "tilde~and-dash_dot.",
        "sign@colon:semi;comma,equals=dollar$bang!star*",
        "кириллица/é/日本/🙂",
    ],
)
def test_a_key_with_odd_characters_is_read(bucket: Bucket, store: ObjectStore, key: str) -> None:
    version = bucket.put(key, key.encode())
    stored = store.read(key)
    assert (stored.content, stored.version) == (key.encode(), version)


def test_an_empty_and_a_large_object_are_read(bucket: Bucket, store: ObjectStore) -> None:
    bucket.put("empty", b"")
    bucket.put("large", b"x" * 3_000_000)
    assert store.read("empty").content == b""
    assert len(store.read("large").content) == 3_000_000


def test_the_newest_version_is_read(bucket: Bucket, store: ObjectStore) -> None:
    bucket.put("key", b"old")
    newest = bucket.put("key", b"new")
    assert (store.read("key").content, store.read("key").version) == (b"new", newest)


def test_a_missing_object_names_itself_and_the_administrator(store: ObjectStore) -> None:
    with pytest.raises(PermanentError, match=r"nope\.yaml is missing; the administrator") as caught:
        store.read("nope.yaml")
    assert caught.value.category is Category.PERMANENT_INVALID_REQUEST
    assert "NoSuchKey" in caught.value.evidence


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (302, Failure.STORE_REFUSES_REQUEST),
        (400, Failure.STORE_REFUSES_REQUEST),
        (408, Failure.STORE_AWAY),
        (429, Failure.STORE_AWAY),
    ],
)
def test_an_answer_that_says_nothing_of_the_object_is_no_missing_configuration(
    bucket: Bucket, status: int, failure: Failure
) -> None:
    with ScriptedServer(lambda _request: Answer(status, {})) as server:
        store = ObjectStore(replace(bucket.settings, endpoint=server.url))
        with pytest.raises(JobError) as caught:
            store.read("x.yaml")
    assert caught.value.failure is failure
    assert str(status) in caught.value.evidence


@pytest.mark.parametrize("replaces", [None, StoredObject(b"", "1", '"etag"')], ids=["new", "known"])
def test_a_missing_bucket_is_no_missing_object(bare_bucket: Bucket, replaces: StoredObject | None) -> None:
    store = ObjectStore(bare_bucket.settings)
    with pytest.raises(PermanentError, match=f"no bucket {bare_bucket.name}") as caught:
        store.read("x.yaml")
    assert (caught.value.failure, "NoSuchBucket" in caught.value.evidence) == (Failure.BUCKET_MISSING, True)
    with pytest.raises(PermanentError, match=f"no bucket {bare_bucket.name}"):
        store.write("x.yaml", b"", replaces=replaces)


def test_schedules_of_a_bucket_that_is_not_there_are_not_those_of_the_release(bare_bucket: Bucket) -> None:
    with pytest.raises(PermanentError, match="S3_BUCKET"):
        BucketOfSchedules(bare_bucket.environ).read()


@pytest.mark.parametrize("wrong", [{"secret_key": "wrong-secret"}, {"access_key": "nobody"}], ids=str)
def test_a_wrong_key_is_a_permission_error_that_shows_no_secret(
    bucket: Bucket, wrong: dict[str, str]
) -> None:
    with pytest.raises(PermanentError, match="correct the access") as caught:
        ObjectStore(replace(bucket.settings, **wrong)).read(POD_TEMPLATE)
    assert caught.value.category is Category.PERMANENT_PERMISSION_ERROR
    assert "wrong-secret" not in str(caught.value)


@pytest.mark.parametrize("hours", [1, -1, 24 * 400])
def test_a_clock_that_is_wrong_keeps_nobody_from_reading(
    bucket: Bucket, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    now = objectstore._now
    monkeypatch.setattr(objectstore, "_now", lambda: now() + timedelta(hours=hours))
    bucket.put("key", b"content")
    assert [store.read("key").content for _ in range(2)] == [b"content"] * 2
    with pytest.raises(PermanentError, match="missing"):
        store.read("nope")


@pytest.fixture
def proxy(bucket: Bucket) -> Iterator[TcpProxy]:
    with TcpProxy.to(bucket.settings.endpoint) as proxy:
        yield proxy


def test_a_lost_connection_is_replaced(bucket: Bucket, proxy: TcpProxy) -> None:
    store = ObjectStore(bucket.with_endpoint(f"http://127.0.0.1:{proxy.port}"))
    store.warm()
    proxy.cut()
    assert store.read(POD_TEMPLATE).content


def test_a_store_that_does_not_answer_is_transient(bucket: Bucket, proxy: TcpProxy) -> None:
    store = ObjectStore(bucket.with_endpoint(f"http://127.0.0.1:{proxy.port}"))
    proxy.close()
    with pytest.raises(TransientError) as caught:
        store.read(POD_TEMPLATE)
    assert caught.value.category is Category.TEMPORARY_NETWORK_ERROR


def test_upload_makes_a_versioned_bucket_with_the_defaults_and_then_nothing(bare_bucket: Bucket) -> None:
    assert sorted(upload_defaults(bare_bucket.settings)) == DEFAULT_KEYS
    assert bare_bucket.keys() == DEFAULT_KEYS
    assert bare_bucket.client.get_bucket_versioning(bucket_name=bare_bucket.name).status == "Enabled"
    assert upload_defaults(bare_bucket.settings) == []


def test_upload_keeps_what_an_operator_changed_unless_told_otherwise(
    bucket: Bucket, store: ObjectStore
) -> None:
    bucket.put(stored.SETTINGS, b"allowed_images: ['mine/*']")
    assert upload_defaults(bucket.settings) == []
    assert Configs(store).lab_settings().allowed_images == ["mine/*"]
    assert sorted(upload_defaults(bucket.settings, overwrite=True)) == DEFAULT_KEYS
    assert Configs(store).lab_settings().allowed_images != ["mine/*"]


def test_upload_brings_up_to_date_what_nobody_changed(
    bare_bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "settings"
    folder.mkdir()
    monkeypatch.setattr(stored, "DEFAULTS", tmp_path)
    for name in ("kept.yaml", "changed.yaml"):
        (folder / name).write_text("release: 1")
    assert len(upload_defaults(bare_bucket.settings)) == 2
    bare_bucket.put("settings/changed.yaml", b"mine: 1")
    for name in ("kept.yaml", "changed.yaml"):
        (folder / name).write_text("release: 2")
    assert upload_defaults(bare_bucket.settings) == ["settings/kept.yaml"]
    store = ObjectStore(bare_bucket.settings)
    assert store.read("settings/kept.yaml").content == b"release: 2"
    assert store.read("settings/changed.yaml").content == b"mine: 1"
    # What was there before releases marked theirs is somebody's.
    assert upload_defaults(bare_bucket.settings) == []


def test_a_write_replaces_only_what_was_read(bucket: Bucket, store: ObjectStore) -> None:
    bucket.put("key", b"old")
    seen = store.read("key")
    assert store.write("key", b"mine", replaces=seen)
    assert not store.write("key", b"of somebody who read the old one", replaces=seen)
    assert store.read("key").content == b"mine"
    assert not store.write("key", b"as if nothing were there", replaces=None)
    assert store.write("folder/new é", b"new", replaces=None)
    assert store.read("folder/new é").content == b"new"
    assert not store.write("gone", b"x", replaces=seen)


def test_a_write_without_rights_names_them(bucket: Bucket) -> None:
    store = ObjectStore(replace(bucket.settings, secret_key="wrong-secret"))
    with pytest.raises(PermanentError) as caught:
        store.write("key", b"x", replaces=None)
    assert caught.value.failure is Failure.STORE_REFUSES_ACCESS
    assert "wrong-secret" not in str(caught.value)


def test_a_write_to_a_store_that_is_away_is_transient(bucket: Bucket, proxy: TcpProxy) -> None:
    store = ObjectStore(bucket.with_endpoint(f"http://127.0.0.1:{proxy.port}"))
    proxy.close()
    with pytest.raises(TransientError):
        store.write("key", b"x", replaces=None)


def test_a_task_records_the_versions_it_used(bucket: Bucket, store: ObjectStore) -> None:
    version = bucket.put(stored.SETTINGS, b"allowed_images: ['*']")
    used = Configs(store)
    used.lab_settings()
    used.pod_template()
    used.network_policy_template()
    assert sorted(used.versions) == CREATE_KEYS
    assert used.versions[stored.SETTINGS] == version


def test_the_command_uploads_and_reports(
    bare_bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = bare_bucket.settings
    monkeypatch.setenv("S3_ENDPOINT", settings.endpoint)
    monkeypatch.setenv("S3_BUCKET", settings.bucket)
    assert main(["upload"]) == 0
    assert "uploaded manifests/lab-pod-template.yaml" in capsys.readouterr().out
    assert main(["upload"]) == 0
    assert "nothing, all is there" in capsys.readouterr().out
    monkeypatch.setenv("S3_SECRET_KEY", "wrong-secret")
    assert main(["upload"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("jobs.config.stored: ")
    assert "wrong-secret" not in error
