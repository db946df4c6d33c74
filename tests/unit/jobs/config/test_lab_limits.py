"""The most that single labs, and those of a course, may use: settings/celery-workers-config.yaml."""

from __future__ import annotations

import time
from typing import Any

import pytest
import yaml

from jobs.config.lab_settings import LabSettings
from jobs.config.settings_document import parse_document
from jobs.errors import PermanentError
from jobs.failures import Failure
from tests.support.factories import make_payload

PYTHON = {"lab_ids": [7, 18], "max_resources": {"cpu": "1", "memory": "1Gi"}}


def parse(**document: object) -> LabSettings:
    return parse_document(
        LabSettings, "settings/x.yaml", yaml.safe_dump({"allowed_images": ["*"], **document}).encode()
    )


def refusal_of(settings: LabSettings, lab_id: int, **asked: str) -> tuple[str, str]:
    with pytest.raises(PermanentError) as caught:
        settings.check_most(lab_id, asked)
    assert caught.value.failure is Failure.RESOURCES_TOO_LARGE
    return caught.value.sentence, caught.value.evidence


def test_the_narrowest_limit_applies_and_is_named() -> None:
    settings = parse(courses={"python": PYTHON}, labs={18: {"max_resources": {"memory": "2Gi"}}})
    for lab_id, name, asked, most, key in [
        (1, "cpu", "2001m", "2", "max_resources.cpu"),
        (7, "cpu", "1001m", "1", "courses.python.max_resources.cpu"),
        (7, "memory", "1025Mi", "1Gi", "courses.python.max_resources.memory"),
        (7, "storage", "11Gi", "10Gi", "max_resources.storage"),
        (18, "cpu", "1001m", "1", "courses.python.max_resources.cpu"),
        (18, "memory", "2049Mi", "2Gi", "labs.18.max_resources.memory"),
    ]:
        sentence, evidence = refusal_of(settings, lab_id, **{name: asked})
        assert f"{name} {asked}; at most {most} is allowed" in sentence
        assert evidence == key
    settings.check_most(18, {"memory": "2Gi", "cpu": "1"})


def test_a_create_keeps_to_them_and_a_default_is_cut_to_them() -> None:
    small = {"lab_ids": [7], "max_resources": {"cpu": "250m", "memory": "256Mi"}}
    settings = parse(courses={"small": small})
    values = settings.resource_values(make_payload(lab_id=7))
    assert (values["cpu_limit"], values["memory_limit"], values["storage_limit"]) == ("250m", "256Mi", "1Gi")
    assert (values["cpu_request"], values["memory_request"]) == ("12m", str(64 * 2**20))
    assert settings.resource_values(make_payload(lab_id=8))["cpu_limit"] == "500m"
    with pytest.raises(PermanentError, match="cpu 500m; at most 250m"):
        settings.resource_values(make_payload(lab_id=7, resources={"cpu": "500m"}))


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("courses", [PYTHON], "it must be a mapping of names to {lab_ids, max_resources}"),
        (
            "courses",
            {"x": {"lab_ids": [1]}},
            "courses.x: {'lab_ids': [1]} is not allowed; it must be a mapping with exactly lab_ids,",
        ),
        ("courses", {5: PYTHON}, "courses.5: 5 is not allowed; it must be text"),
        (
            "courses",
            {"x": PYTHON | {"lab_ids": ["7"]}},
            "courses.x.lab_ids.0: '7' is not allowed; it must be an integer",
        ),
        (
            "courses",
            {"x": PYTHON | {"lab_ids": [True]}},
            "courses.x.lab_ids.0: True is not allowed; it must be an",
        ),
        (
            "courses",
            {"x": PYTHON | {"max_resources": {}}},
            "courses.x.max_resources: {} is not allowed; it must be a mapping with one or more",
        ),
        ("courses", {"x": PYTHON | {"max_resources": {"gpu": "1"}}}, "of cpu, memory, storage"),
        (
            "courses",
            {"x": PYTHON | {"max_resources": {"cpu": "3"}}},
            "courses.x.max_resources.cpu: 3 is more than max_resources, 2",
        ),
        (
            "courses",
            {"x": PYTHON | {"max_resources": {"cpu": 1}}},
            "courses.x.max_resources.cpu: 1 is not allowed; it must be a quantity as text",
        ),
        ("courses", {"x": PYTHON, "y": PYTHON}, "courses.y.lab_ids: 7 is in x as well"),
        (
            "labs",
            {"7": {"max_resources": {"cpu": "1"}}},
            "labs.7: '7' is not allowed; it must be a lab_id, an integer above 0",
        ),
        (
            "labs",
            {7: {"cpu": "1"}},
            "labs.7: {'cpu': '1'} is not allowed; it must be a mapping with exactly max_resources",
        ),
        (
            "labs",
            {7: {"max_resources": {"cpu": "0"}}},
            "labs.7.max_resources.cpu: '0' is not allowed; it must be > 0",
        ),
        (
            "labs",
            {7: {"max_resources": {"memory": "x"}}},
            "labs.7.max_resources.memory: 'x' is not a quantity",
        ),
        ("labs", None, "labs: None is not allowed; it must be a mapping of lab_ids"),
    ],
)
def test_a_wrong_limit_names_its_key(key: str, value: Any, problem: str) -> None:
    with pytest.raises(PermanentError) as caught:
        parse(**{key: value})
    assert problem in caught.value.evidence


def test_limits_are_compared_with_what_the_platform_allows_here() -> None:
    most = {"cpu": "4", "memory": "8Gi", "storage": "10Gi"}
    settings = parse(max_resources=most, labs={7: {"max_resources": {"cpu": "3"}}})
    settings.check_most(7, {"cpu": "3", "memory": "8Gi"})


def test_limits_of_thousands_of_labs_cost_a_create_next_to_nothing() -> None:
    course = {"lab_ids": list(range(1, 2001)), "max_resources": {"cpu": "1"}}
    settings = parse(
        courses={f"c{n}": course | {"lab_ids": [n * 5000 + i for i in range(1, 200)]} for n in range(20)}
    )
    few = parse(courses={"c": course | {"lab_ids": [7]}})

    def seconds(settings: LabSettings) -> float:
        began = time.process_time()
        for _ in range(20):
            settings.resource_values(make_payload(lab_id=7))
        return time.process_time() - began

    # A look at each of the four thousand would cost a hundred times as much as a look at one.
    assert min(seconds(settings) for _ in range(5)) < 10 * min(seconds(few) for _ in range(5))
