from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from dispatcher import BrokerSettings, InvalidSettings
from dispatcher.settings import Environment, database_url, read_settings
from jobs.config.environment import JobSettings

VALID = {
    "AMQP_URL": "amqp://user:amqp-secret@host:5672/vhost",
    "DATABASE_URL": "postgresql://user:db-secret@host/db",
    "S3_ENDPOINT": "http://host:9000/",
    "S3_ACCESS_KEY": "access-secret",
    "S3_SECRET_KEY": "key-secret",
}


def read_job(**changes: str) -> JobSettings:
    return read_settings({**VALID, **changes}, JobSettings.from_environment)


def problems_of(environ: dict[str, str], build: Any = JobSettings.from_environment) -> list[str]:
    with pytest.raises(InvalidSettings) as caught:
        read_settings(environ, build)
    return caught.value.problems


def test_defaults_are_those_of_the_specification() -> None:
    settings = read_job()
    assert (settings.queue, settings.namespace, settings.ready_port) == (
        "celery.lab_operations",
        "labs",
        8081,
    )
    retry = settings.retry
    assert (retry.max_retries, retry.delay_s, retry.backoff, retry.jitter) == (3, 5, 2, True)
    assert settings.store.endpoint == "http://host:9000"
    assert settings.store.bucket == "autolabs-configs"


def test_one_error_lists_everything_that_is_missing() -> None:
    named = {problem.partition(":")[0] for problem in problems_of({})}
    assert named == set(VALID)


def test_one_error_lists_everything_that_is_wrong() -> None:
    wrong = {
        "AMQP_URL": "http://host",
        "DATABASE_URL": "mysql://host/db",
        "S3_ENDPOINT": "host:9000",
        "S3_ACCESS_KEY": "",
        "AUTOLABS_QUEUE": "celery.nope",
        "LOG_LEVEL": "LOUD",
        "CLAIM_WAIT_S": "soon",
        "READY_PORT": "http",
        "CELERY_TASK_MAX_RETRIES": "-1",
        "CELERY_TASK_RETRY_DELAY": "nan",
        "CELERY_TASK_RETRY_BACKOFF": "inf",
        "CELERY_TASK_RETRY_JITTER": "perhaps",
        "AMQP_PUBLISH_TIMEOUT_S": "0",
        "AMQP_HEARTBEAT_S": "4",
    }
    problems = problems_of({**VALID, **wrong})
    assert sorted(problem.partition(":")[0] for problem in problems) == sorted(wrong)


@pytest.mark.parametrize("name", ["READY_PORT", "CELERY_TASK_MAX_RETRIES", "AMQP_HEARTBEAT_S"])
@pytest.mark.parametrize("value", ["abc", "nan", "inf", "-inf", "1e99", "2.5"])
def test_a_count_that_is_no_count_is_a_problem_and_no_crash(name: str, value: str) -> None:
    assert [p.partition(":")[0] for p in problems_of({**VALID, name: value})] == [name]


@pytest.mark.parametrize(
    "url", ["amqp://host:port/", "amqp://[::1/", "amqp://host:99999/", "amqp:///vhost", "host", "amqp://"]
)
def test_a_url_that_cannot_be_used_is_a_problem_and_is_not_echoed(url: str) -> None:
    secret = url.replace("amqp://", "amqp://user:amqp-secret@")
    for value in (url, secret):
        problems = problems_of({"AMQP_URL": value}, BrokerSettings.from_environment)
        assert [p.partition(":")[0] for p in problems] == ["AMQP_URL"]
        assert "secret" not in str(problems)


@pytest.mark.parametrize("escape", ["%", "%z9", "%5", "%%20"])
@pytest.mark.parametrize("name", ["AMQP_URL", "DATABASE_URL", "S3_ENDPOINT"])
def test_a_bad_percent_escape_is_a_problem_before_a_library_echoes_the_password(
    name: str, escape: str
) -> None:
    scheme, _, rest = VALID[name].partition("://")
    url = f"{scheme}://user:top-secret{escape}@{rest.rpartition('@')[2]}"
    problems = problems_of({**VALID, name: url})
    assert [p.partition(":")[0] for p in problems] == [name]
    assert "secret" not in str(problems)


def test_a_good_percent_escape_is_kept() -> None:
    url = "postgresql://user:%2F%C3%A9%25@host/db"
    assert read_job(DATABASE_URL=url).database_url == url


def test_no_secret_is_in_a_repr() -> None:
    settings = read_job()
    assert "secret" not in repr(settings)
    assert settings.broker.url == VALID["AMQP_URL"]


def test_sqlalchemys_form_of_the_database_url_is_accepted() -> None:
    environ = {"DATABASE_URL": "postgresql+psycopg2://u@h/d"}
    assert read_job(**environ).database_url == "postgresql://u@h/d"
    assert read_settings(environ, database_url) == "postgresql://u@h/d"


def test_a_setting_can_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("amqp://from-file/\n")
    settings = read_settings({"AMQP_URL_FILE": str(tmp_path / "url")}, BrokerSettings.from_environment)
    assert settings.url == "amqp://from-file/"


def test_a_named_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    problems = problems_of({"AMQP_URL_FILE": missing}, BrokerSettings.from_environment)
    assert f"AMQP_URL_FILE: cannot read {missing} (No such file or directory)" in problems


def test_a_file_that_is_no_text_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe\x00")
    problems = problems_of({"AMQP_URL_FILE": str(path)}, BrokerSettings.from_environment)
    assert problems[0].startswith(f"AMQP_URL_FILE: cannot read {path}")


def test_the_variable_wins_over_the_file_and_the_file_over_the_mounted_secret(tmp_path: Path) -> None:
    (tmp_path / "NAME").write_text("mounted")
    (tmp_path / "named").write_text("named")
    environ = {"NAME_FILE": str(tmp_path / "named"), "NAME": "direct"}
    assert Environment(environ, tmp_path).find("NAME") == "direct"
    del environ["NAME"]
    assert Environment(environ, tmp_path).find("NAME") == "named"
    assert Environment({}, tmp_path).find("NAME") == "mounted"
    assert Environment({"NAME": "  "}, tmp_path / "nowhere").find("NAME") is None


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("False", False), ("0", False)])
def test_a_flag_is_read(text: str, value: bool) -> None:
    assert read_job(CELERY_TASK_RETRY_JITTER=text).retry.jitter is value


def test_results_go_nowhere_unless_a_backend_is_named() -> None:
    assert read_job().results is None
    results = read_job(CELERY_RESULT_BACKEND="redis://:redis-secret@host:6379/0").results
    assert results is not None
    assert (results.url, results.expires_s) == ("redis://:redis-secret@host:6379/0", 86_400)
    assert "secret" not in repr(read_job(CELERY_RESULT_BACKEND="rediss://u:redis-secret@host"))


@pytest.mark.parametrize(
    "url", ["rpc://", "redis://", "redis://:secret%@host", "db+postgresql://:secret@h/d"]
)
def test_a_backend_that_is_no_redis_is_a_problem(url: str) -> None:
    problems = problems_of({**VALID, "CELERY_RESULT_BACKEND": url, "CELERY_RESULT_EXPIRES": "-1"})
    assert [p.partition(":")[0] for p in problems] == ["CELERY_RESULT_EXPIRES", "CELERY_RESULT_BACKEND"]
    assert "secret" not in str(problems)


WEBHOOK = {"NOTIFY_WEBHOOK_URL": "https://user:url-secret@host/hook?key=url-secret"}


def test_nobody_is_called_unless_a_webhook_is_named() -> None:
    assert read_job().webhook is None
    assert read_job(NOTIFY_WEBHOOK_SECRET="x").webhook is None


@pytest.mark.parametrize("prefix", ["", "whsec_"])
def test_the_secrets_of_a_webhook_are_bytes_in_base64(prefix: str) -> None:
    old, new = b"o" * 24, b"n" * 64
    given = " ".join(prefix + base64.b64encode(secret).decode() for secret in (new, old))
    settings = read_job(**WEBHOOK, NOTIFY_WEBHOOK_SECRET=given)
    assert settings.webhook is not None
    assert settings.webhook.secrets == (new, old)
    assert "secret" not in repr(settings.webhook).replace("secrets", "")


def wrong_webhook(**changes: str) -> str:
    """Return what is wrong with settings of a webhook, which must not keep a job from its work."""
    settings = read_job(**{**WEBHOOK, "NOTIFY_WEBHOOK_SECRET": "A" * 32, **changes})
    assert settings.webhook is not None
    (problem,) = settings.webhook.problems
    return problem


@pytest.mark.parametrize("secret", ["", "whsec_", "not base64!", "c2hvcnQ=", "A" * 88 + "AAAA"])
def test_a_webhook_without_a_good_secret_is_a_problem_of_the_webhook_alone(secret: str) -> None:
    problem = wrong_webhook(NOTIFY_WEBHOOK_SECRET=secret)
    assert problem.startswith("NOTIFY_WEBHOOK_SECRET: must be 24 to 64 bytes")
    assert secret not in problem or secret in ("", "whsec_")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://url-secret@host",
        "http://ex ample/url-secret",
        "http://host/url secret",
        "http://host/url-secret\x07",
        "http://ex\u00e4mple/url-secret",
        f"http://{'x' * 64}.example/url-secret",
        "http://a..b/url-secret",
        "http://-a/url-secret",
        "http://user:a@b:url-secret@/",
        "http://[::1/url-secret",
        "http://host:99999/url-secret",
    ],
)
def test_a_webhook_that_nobody_could_call_is_a_problem_of_the_webhook_alone(url: str) -> None:
    problem = wrong_webhook(NOTIFY_WEBHOOK_URL=url)
    assert problem.startswith("NOTIFY_WEBHOOK_URL: ")
    assert "secret" not in problem
    assert "ample" not in problem


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.org",
        "http://127.0.0.1:8080/x?y=z#f",
        "https://us%40er:p%20w@[::1]:8443/a%20b",
        "http://my_hooks.labs.svc.cluster.local.:80/",
    ],
)
def test_a_webhook_that_can_be_called_is_no_problem(url: str) -> None:
    settings = read_job(**WEBHOOK | {"NOTIFY_WEBHOOK_URL": url, "NOTIFY_WEBHOOK_SECRET": "A" * 32})
    assert settings.webhook is not None
    assert (settings.webhook.url, settings.webhook.problems) == (url, ())


def test_a_webhook_in_a_file_that_cannot_be_read_is_a_problem_of_the_webhook_alone() -> None:
    settings = read_job(NOTIFY_WEBHOOK_URL_FILE="/no/such/file")
    assert settings.webhook is not None
    assert settings.webhook.problems[0].startswith("NOTIFY_WEBHOOK_URL_FILE: cannot read")
