"""Fill a manifest template: parse first, then replace `${name}` inside string scalars.

A value can change the text of a scalar, never the structure around it: whatever a value holds, the
result has the keys, lists and types of the template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from jobs.errors import JobError
from jobs.failures import Failure

_PLACEHOLDER = re.compile(r"\$\{([^}]*)\}")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: Deepest nesting that is read, in levels; libyaml ends the process at some ten thousand.
MAX_DEPTH = 50


def parse_documents(name: str, content: bytes) -> list[dict[str, Any]]:
    """Return the YAML documents of a template. Raises JobError if it does not parse."""
    documents = _load(name, content)
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise template_error(name, "must hold Kubernetes objects")
    return documents


def parse_mapping(name: str, content: bytes) -> dict[str, Any]:
    """Return the names and values of settings, none if all is left out. Raises JobError as above."""
    documents = _load(name, content)
    if not documents:
        return {}
    if len(documents) > 1 or not isinstance(documents[0], dict):
        raise template_error(name, "must hold names with values, in one document")
    return documents[0]


def _load(name: str, content: bytes) -> list[Any]:
    try:
        if nests_deeper(content, MAX_DEPTH):
            raise template_error(name, f"is nested deeper than {MAX_DEPTH} levels")
        return [document for document in yaml.load_all(content, Loader=_Loader) if document]
    # PyYAML lets these through for a date without such a day, an unknown bool, a number of 5,000 digits.
    except (yaml.YAMLError, ValueError, KeyError, AttributeError) as exc:
        raise template_error(name, f"is not YAML: {type(exc).__name__}: {exc}") from exc


def nests_deeper(content: bytes | str, most: int) -> bool:
    """Return whether a document has more levels, without the time and the stack that all of them take."""
    depth = 0
    for event in yaml.parse(content, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > most:
            return True
    return False


def fill(name: str, tree: Any, values: Mapping[str, str]) -> Any:
    """Return a copy of the tree with the placeholders of its string scalars replaced."""
    if isinstance(tree, dict):
        return {key: fill(name, value, values) for key, value in tree.items()}
    if isinstance(tree, list):
        return [fill(name, value, values) for value in tree]
    if not isinstance(tree, str):
        return tree

    def value_of(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise template_error(
                name, f"uses unknown ${{{match[1]}}}; allowed are {', '.join(sorted(values))}"
            )
        return values[match[1]]

    return _PLACEHOLDER.sub(value_of, tree)


def template_error(name: str, problem: str) -> JobError:
    """Return the error for a template that its administrator must correct."""
    return Failure.TEMPLATE_INVALID.error(evidence=f"{name} {problem}")
