from __future__ import annotations

import pytest
import yaml

from dispatcher.failure_contract import Category
from jobs.config.lab_settings import LabSettings
from jobs.config.settings_document import parse_document
from jobs.errors import PermanentError
from jobs.handlers.create import MAX_READY_TIMEOUT_S
from tests.support.factories import make_payload


def parse(**document: object) -> LabSettings:
    return parse_document(
        LabSettings, "settings/x.yaml", yaml.safe_dump({"allowed_images": ["*"], **document}).encode()
    )


def test_only_the_allowed_images_are_required() -> None:
    assert parse() == LabSettings(allowed_images=["*"])


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("allowed_images", [], "must be a list of patterns"),
        ("allowed_images", "x", "must be a list of patterns"),
        ("allowed_images", [1], "allowed_images.0: 1 is not allowed; it must be text (line 1)"),
        ("default_resources", {"cpu": "1"}, "must be a mapping with exactly cpu, memory, storage"),
        ("default_resources", ["cpu"], "must be a mapping with exactly"),
        ("max_resources", {"cpu": "1", "memory": "x", "storage": "1Gi"}, "is not a quantity"),
        ("max_resources", {"cpu": "0", "memory": "1", "storage": "1Gi"}, "must be > 0"),
        ("default_resources", {"cpu": 1, "memory": "1Gi", "storage": "1Gi"}, "must be a quantity as text"),
        ("cpu_request_ratio", 0, "above 0 and at most 1"),
        ("cpu_request_ratio", 1.5, "above 0 and at most 1"),
        ("memory_request_ratio", "half", "above 0 and at most 1"),
        ("memory_request_ratio", float("nan"), "above 0 and at most 1"),
        ("ready_timeout_s", 0, "an integer from 1 to 240"),
        ("ready_timeout_s", 241, "an integer from 1 to 240"),
        ("ready_timeout_s", "60", "an integer from 1 to 240"),
        ("ready_timeout_s", True, "an integer from 1 to 240"),
        ("keep_failed_pods_s", -1, "an integer from 0 to 3600"),
        ("keep_failed_pods_s", 3601, "an integer from 0 to 3600"),
        ("keep_failed_pods_s", False, "an integer from 0 to 3600"),
        ("connection_url", "http://{nope}/", "allowed placeholders are cluster_ip"),
        ("connection_url", "http://{", "allowed placeholders"),
        ("connection_url", "{}", "allowed placeholders"),
        ("connection_url", "{port.real}", "allowed placeholders"),
        ("connection_url", 5, "allowed placeholders"),
    ],
)
def test_a_wrong_value_names_its_key(key: str, value: object, problem: str) -> None:
    with pytest.raises(PermanentError) as caught:
        parse(**{key: value})
    assert caught.value.evidence.startswith(f"settings/x.yaml {key}")
    assert problem in caught.value.evidence


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(PermanentError) as caught:
        parse_document(LabSettings, "s", b"connection_url: 5\nready_timeout_s: y\n")
    for problem in ("connection_url:", "ready_timeout_s:", "allowed_images: is missing"):
        assert problem in caught.value.evidence


@pytest.mark.parametrize("content", [b"prot: 80", b"1: 2\nx: 3", b"port: 80", b"delete_timeout_s: 30"])
def test_an_unknown_key_is_an_error(content: bytes) -> None:
    with pytest.raises(PermanentError) as caught:
        parse_document(LabSettings, "s", b"allowed_images: ['*']\n" + content)
    assert "unknown key; allowed are allowed_images" in caught.value.evidence


LAUGHS = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("labs: &a {b: *a}\n", "labs"),
        ("courses: &a [*a]\n", "courses"),
        (f"x0: &x0 [lol]\n{LAUGHS}labs: *x29\n", "labs"),
    ],
)
def test_aliases_that_make_a_value_endless_are_refused_by_key(content: str, problem: str) -> None:
    with pytest.raises(PermanentError) as caught:
        parse_document(LabSettings, "s", f"allowed_images: ['*']\n{content}".encode())
    assert problem in caught.value.evidence


@pytest.mark.parametrize("seconds", [1, MAX_READY_TIMEOUT_S])
def test_the_longest_wait_is_the_one_that_a_container_has_time_for(seconds: int) -> None:
    assert parse(ready_timeout_s=seconds).ready_timeout_s == seconds
    with pytest.raises(PermanentError):
        parse(ready_timeout_s=MAX_READY_TIMEOUT_S + 1)


@pytest.mark.parametrize(
    ("pattern", "image", "allowed"),
    [
        ("registry.example/labs/*", "registry.example/labs/a:1", True),
        ("registry.example/labs/*", "registry.example.evil/labs/a:1", False),
        ("registry.example/labs/*", "evil/registry.example/labs/a", False),
        ("python:3.*", "python:3.12", True),
        ("python:3.*", "python:2", False),
    ],
)
def test_only_images_on_the_list_are_allowed(pattern: str, image: str, allowed: bool) -> None:
    settings = parse(allowed_images=[pattern])
    if allowed:
        settings.check_image(image)
        return
    with pytest.raises(PermanentError, match="teacher must choose an allowed image") as caught:
        settings.check_image(image)
    assert caught.value.category is Category.PERMANENT_IMAGE_ERROR


def test_a_lab_gets_what_it_asks_for_and_defaults_for_the_rest() -> None:
    values = parse().resource_values(make_payload(resources={"cpu": "2", "memory": "4Gi"}))
    assert (values["cpu_limit"], values["memory_limit"], values["storage_limit"]) == ("2", "4Gi", "1Gi")
    assert (values["cpu_request"], values["memory_request"]) == ("100m", str(2**30))


@pytest.mark.parametrize(("name", "asked"), [("cpu", "2001m"), ("memory", "5G"), ("storage", "1Ti")])
def test_a_lab_that_asks_for_too_much_is_told_the_limit(name: str, asked: str) -> None:
    with pytest.raises(PermanentError, match=f"{name} {asked}; at most") as caught:
        parse().resource_values(make_payload(resources={name: asked}))
    assert caught.value.category is Category.PERMANENT_INVALID_REQUEST
