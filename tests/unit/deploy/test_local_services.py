from __future__ import annotations

import base64
import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local import (
    addons,
    credentials,
    objects,
    platform_part,
    services,
    settings,
)
from deploy.local.credentials import Credentials
from deploy.local.paths import Layout
from deploy.local.services import Addresses, Urls
from tests.support.cluster.local_credentials import MADE

MANIFESTS = Path(__file__).resolve().parents[3] / "deploy/local/manifests"


def local_objects() -> list[dict[str, Any]]:
    names = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())["resources"]
    texts = [(MANIFESTS / name).read_text() for name in names]
    return [item for text in texts for item in yaml.safe_load_all(text)]


def deployments() -> list[dict[str, Any]]:
    return [item for item in local_objects() if item["kind"] == "Deployment"]


def test_the_manifests_make_what_up_waits_for() -> None:
    made = {(d["metadata"]["namespace"], d["metadata"]["name"]) for d in deployments()}
    assert made == set(addons.DEPLOYMENTS) - {("keda", "keda-operator")}


def test_local_services_are_probed_limited_and_without_privileges() -> None:
    for deployment in deployments():
        spec = deployment["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in spec["containers"]:
            assert "readinessProbe" in container
            assert container["imagePullPolicy"] == "IfNotPresent"
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"]["limits"]["memory"]


def test_local_services_leave_room_for_jobs_and_labs() -> None:
    requests = [
        container["resources"]["requests"]["cpu"]
        for deployment in deployments()
        for container in deployment["spec"]["template"]["spec"]["containers"]
    ]
    keda_m = 50  # deploy.local.addons.keda_patch
    assert sum(int(cpu.removesuffix("m")) for cpu in requests) + keda_m <= 400


def test_the_dns_address_is_the_one_the_kubelet_tells() -> None:
    (service,) = (
        item for item in local_objects() if item["kind"] == "Service" and "clusterIP" in item["spec"]
    )
    assert service["spec"]["clusterIP"] == settings.DNS_IP


def test_everybody_may_do_on_the_broker_only_what_they_need() -> None:
    definitions = json.loads(credentials.rabbitmq_definitions(MADE))
    rights = {p["user"]: (p["configure"], p["write"], p["read"]) for p in definitions["permissions"]}
    assert rights["jobs"] == ("^$", r"^(autolabs\.|celery_delayed_27$)", r"^celery\.")
    assert rights["keda"] == ("^$", "^$", "^$")
    assert [u["name"] for u in definitions["users"] if u["tags"]] == ["autolabs"]


def test_definitions_hold_no_password_but_hashes_that_rabbitmq_accepts() -> None:
    text = credentials.rabbitmq_definitions(MADE)
    assert "jobspw" not in text
    (user,) = (u for u in json.loads(text)["users"] if u["name"] == "jobs")
    raw = base64.b64decode(user["password_hash"])
    assert raw[4:] == hashlib.sha256(raw[:4] + b"jobspw").digest()


def test_definitions_do_not_change_from_one_up_to_the_next() -> None:
    assert credentials.rabbitmq_definitions(MADE) == credentials.rabbitmq_definitions(MADE)


def test_passwords_are_kept_private_and_fit_into_urls(layout: Layout) -> None:
    made = credentials.ensure(layout)
    assert made == credentials.ensure(layout)
    assert made.minio.isalnum()
    assert made.minio not in repr(made)
    assert (layout.state / "credentials.json").stat().st_mode & 0o077 == 0


def test_a_password_that_is_new_joins_those_of_a_running_cluster(layout: Layout) -> None:
    path = layout.state / "credentials.json"
    path.write_text(json.dumps({name: "kept" for name in Credentials.__slots__ if name != "redis"}))
    made = credentials.ensure(layout)
    assert (made.minio, made == credentials.ensure(layout)) == ("kept", True)
    assert made.redis.isalnum()
    assert len(made.redis) == credentials.LENGTH


def test_secrets_have_the_keys_that_containers_mount() -> None:
    target = platform_part.Target(
        kubectl=lambda *words, **options: "",
        job_image="jobs:1",
        urls=Urls.of(MADE, Addresses()),
        s3_access_key="autolabs",
        s3_secret_key="s3pw",
    )
    found = {s["metadata"]["name"]: s["stringData"] for s in platform_part.secrets(target)}
    keys = {"AMQP_URL", "DATABASE_URL", "S3_ENDPOINT", "S3_ACCESS_KEY", "S3_SECRET_KEY"}
    assert set(found["autolabs-setup"]) == keys
    assert set(found["autolabs-jobs"]) == keys | {"CELERY_RESULT_BACKEND"}
    assert "//jobs:" in found["autolabs-jobs"]["AMQP_URL"]
    assert "//autolabs:" in found["autolabs-setup"]["AMQP_URL"]
    assert "//keda:" in found["autolabs-keda"]["host"]


def test_env_lines_are_safe_to_evaluate() -> None:
    values = {"AMQP_URL": "amqp://u:p'$(x)@h/%2F", "OTHER": "not printed"}
    (line,) = services.export_lines(values)
    assert shlex.split(line) == ["export", f"AMQP_URL={values['AMQP_URL']}"]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("localhost:5000/jobs", {"newName": "localhost:5000/jobs", "newTag": "latest"}),
        ("localhost:5000/jobs:1", {"newName": "localhost:5000/jobs", "newTag": "1"}),
        ("r.io/jobs@sha256:ab", {"newName": "r.io/jobs", "digest": "sha256:ab"}),
    ],
    ids=["port", "port and tag", "digest"],
)
def test_an_image_is_split_as_kustomize_wants_it(image: str, expected: dict[str, str]) -> None:
    assert objects.image_override(image) == expected


def test_the_patch_of_keda_fits_its_deployment() -> None:
    patch = json.loads(addons.keda_patch()["patch"])
    values = {change["path"].rpartition("/")[2]: change["value"] for change in patch}
    assert values["imagePullPolicy"] == "IfNotPresent"
    assert "--enable-cert-rotation=false" in values["args"]
