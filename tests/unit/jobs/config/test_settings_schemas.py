"""docs/ has of the settings that operators edit what their models say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jsonschema
import pytest
import yaml

from cronjobs.timetable import InvalidSchedules, parse_schedules
from jobs.config.lab_settings import LabSettings
from jobs.config.lifetimes import LifeSettings
from jobs.config.settings_document import parse_document
from jobs.config.stored import DEFAULTS
from jobs.errors import JobError
from tests.support.settings_schemas import MODELS, PAGE, make_list, make_schema, schema_file

PARSERS: dict[str, Callable[[bytes], object]] = {
    "celery-workers-config": partial(parse_document, LabSettings, "x"),
    "lab-life": partial(parse_document, LifeSettings, "x"),
    "schedules": parse_schedules,
}


def shipped(name: str) -> str:
    return (DEFAULTS / "settings" / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", MODELS)
def test_the_published_schema_is_that_of_the_model(name: str) -> None:
    # After a wanted change: python -m tests.support.settings_schemas
    assert json.loads(schema_file(name).read_text()) == make_schema(name)


@pytest.mark.parametrize("name", MODELS)
def test_the_page_has_every_key_as_it_is(name: str) -> None:
    expected = make_list(MODELS[name])
    assert expected in PAGE.read_text(), f"the list has to be:\n{expected}"


@pytest.mark.parametrize("name", MODELS)
def test_what_is_shipped_fits_its_schema_and_names_it(name: str) -> None:
    jsonschema.Draft7Validator.check_schema(make_schema(name))
    jsonschema.validate(yaml.safe_load(shipped(name)), make_schema(name))
    first = shipped(name).partition("\n")[0]
    found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert found, first
    assert (DEFAULTS / "settings" / found[1]).resolve() == schema_file(name)


ENTRY = {"task": "cleanup", "schedule": "@daily"}
LABS = {"allowed_images": ["*"]}


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("celery-workers-config", {}),
        ("celery-workers-config", {"allowed_images": []}),
        ("celery-workers-config", {**LABS, "ready_timeout_s": 241}),
        ("celery-workers-config", {**LABS, "cpu_request_ratio": 0}),
        ("celery-workers-config", {**LABS, "max_resources": {"cpu": "1"}}),
        ("celery-workers-config", {**LABS, "max_resources": {"cpu": 1, "memory": "1Gi", "storage": "1Gi"}}),
        ("celery-workers-config", {**LABS, "courses": {"x": {"lab_ids": ["7"], "max_resources": {}}}}),
        ("celery-workers-config", {**LABS, "labs": {"seven": {"max_resources": {"cpu": "1"}}}}),
        ("celery-workers-config", {**LABS, "port": 80}),
        ("lab-life", {"warn_minutes": [1441]}),
        ("lab-life", {"cleanup_max_share": 1.5}),
        ("lab-life", {"max_age_minutes": 0.5}),
        ("lab-life", {"restart_causes": ["out_of_memory"]}),
        ("schedules", {}),
        ("schedules", {"Night": ENTRY}),
        ("schedules", {"a" * 53: ENTRY}),
        ("schedules", {"a": {"task": "sync"}}),
        ("schedules", {"a": {**ENTRY, "deadline_s": 9}}),
        ("schedules", {"a": {**ENTRY, "suspend": "yes"}}),
        ("schedules", {"a": {**ENTRY, "options": {"fast": True}}}),
        ("schedules", {"a": {**ENTRY, "env": {"DATABASE_URL": "x"}}}),
    ],
    ids=str,
)
def test_an_editor_shows_what_would_be_refused(name: str, document: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, make_schema(name))
    with pytest.raises((JobError, InvalidSchedules)):
        PARSERS[name](yaml.safe_dump(document).encode())
