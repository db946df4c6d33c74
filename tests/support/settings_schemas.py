"""What docs/ has of the settings that operators edit: JSON Schemas for editors, and the lists of keys.

`python -m tests.support.settings_schemas` writes the schemas anew; a test says what the lists have to be.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from cronjobs.timetable import NAME, Schedule
from jobs.config.lab_settings import LabSettings
from jobs.config.lifetimes import LifeSettings
from jobs.config.settings_document import Document, defaults_of, rules_of

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "reference" / "settings-documents.md"
#: Characters of a line of the page.
WIDTH = 118
#: Name of a document in the bucket, without its folder -> its model.
MODELS: dict[str, type[Document]] = {
    "celery-workers-config": LabSettings,
    "lab-life": LifeSettings,
    "schedules": Schedule,
}


def schema_file(name: str) -> Path:
    return DOCS / "schemas" / f"{name}.schema.json"


def make_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of a document, in the draft that editors know best."""
    model = MODELS[name]
    comments, defaults = comments_of(model), defaults_of(model)
    properties = {
        key: {
            **rule.schema,
            "description": comments[key],
            **({} if defaults[key] in (None, MISSING) else {"default": defaults[key]}),
        }
        for key, rule in rules_of(model).items()
    }
    content: dict[str, Any] = {
        "type": "object",
        "required": [key for key, default in defaults.items() if default is MISSING],
        "properties": properties,
        "additionalProperties": False,
    }
    if model is Schedule:
        names = {"pattern": f"^{NAME.pattern}$"}
        content = {
            "type": "object",
            "minProperties": 1,
            "propertyNames": names,
            "additionalProperties": content,
        }
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": f"settings/{name}.yaml", **content}


def make_list(model: type[Document]) -> str:
    """Return an item for each key of a document: what it is, its default, what is allowed."""
    comments, defaults = comments_of(model), defaults_of(model)
    items = [
        textwrap.fill(
            f"- `{key}`: {comments[key]} Default: {_shown(defaults[key])}. Allowed: {rule.allowed}.",
            WIDTH,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for key, rule in rules_of(model).items()
    ]
    return "\n".join(items) + "\n"


def comments_of(model: type[Document]) -> dict[str, str]:
    """Return key -> the comment above it."""
    found = re.findall(r"((?:^    #: .*\n)+)    (\w+):", inspect.getsource(model), re.MULTILINE)
    return {key: " ".join(line.strip(" #:") for line in text.splitlines()) for text, key in found}


def _shown(value: Any) -> str:
    if value is MISSING:
        return "needed"
    return "none" if value in (None, {}) else f"`{value if isinstance(value, str) else json.dumps(value)}`"


if __name__ == "__main__":
    for document in MODELS:
        schema_file(document).write_text(json.dumps(make_schema(document), indent=2) + "\n")
