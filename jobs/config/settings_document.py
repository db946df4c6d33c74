"""Check settings that operators edit: YAML documents whose keys are the fields of a dataclass.

A field says once what it may be, by a Rule in its annotation, and what it means, by its comment. From that
come the check of a document, which names every problem with its key and line, and what docs/ has of it: JSON
Schemas for editors, and tables.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, NamedTuple, Protocol, TypeVar, get_type_hints

import yaml

from dispatcher.quantities import parse_quantity
from dispatcher.text import cut, printable
from jobs.config.templates import parse_mapping, template_error

#: The keys that lead to a value, and what is wrong with it.
Problem = tuple[tuple[Any, ...], str]


_REPR = reprlib.Repr()  # bounded: aliases can make a value of a few bytes endless
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 200
_REPR.maxlist = _REPR.maxdict = 10
_REPR.maxlevel = 4


class Rule(NamedTuple):
    """A rule for a value, in words, as JSON Schema and as a check, with the rules of its parts."""

    allowed: str
    schema: Mapping[str, Any]
    #: True for a value that is allowed, as far as its parts do not matter; a ValueError says what is wrong.
    fits: Callable[[Any], bool]
    #: The parts of a value that fits: key, value, and rule.
    parts: Callable[[Any], Iterable[tuple[Any, Any, Rule]]] = lambda _value: ()

    def problems(self, value: Any) -> list[Problem]:
        try:
            if not self.fits(value):
                return [((), f"{_short(_REPR.repr(value), 80)} is not allowed; it must be {self.allowed}")]
        except ValueError as exc:
            return [((), _short(str(exc), 300))]
        parts = self.parts(value)
        return [((key, *keys), text) for key, part, rule in parts for keys, text in rule.problems(part)]


class Document(Protocol):
    """A dataclass of settings; a field with a Rule is a key."""

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[Problem]:
        """Yield what does not go together; `values` lacks the keys that are wrong already."""


D = TypeVar("D", bound=Document)


def whole(least: int, most: int) -> Rule:
    schema = {"type": "integer", "minimum": least, "maximum": most}
    return Rule(
        f"an integer from {least} to {most}",
        schema,
        lambda value: type(value) is int and least <= value <= most,
    )


def one_of(*words: str) -> Rule:
    return Rule(f"one of {', '.join(words)}", {"enum": [*words]}, lambda value: value in words)


def parsed(allowed: str, parse: Callable[[str], object]) -> Rule:
    """Return the rule of a text that `parse` takes, which says of another what is wrong by a ValueError."""

    def fits(value: Any) -> bool:
        if isinstance(value, str):
            parse(value)
        return isinstance(value, str)

    return Rule(allowed, {"type": "string"}, fits)


def list_of(item: Rule, allowed: str, *, least: int = 0) -> Rule:
    return Rule(
        allowed,
        {"type": "array", "items": item.schema, "minItems": least},
        lambda value: isinstance(value, list) and len(value) >= least,
        lambda value: ((at, part, item) for at, part in enumerate(value)),
    )


def record(rules: Mapping[str, Rule], *, least: int | None = None) -> Rule:
    """Return the rule of a mapping with exactly these keys, or with at least so many of them."""
    names, fewest = ", ".join(rules), len(rules) if least is None else least
    schema = {
        "type": "object",
        "properties": {key: rule.schema for key, rule in rules.items()},
        "additionalProperties": False,
        **({"required": [*rules]} if least is None else {"minProperties": least}),
    }
    return Rule(
        f"a mapping with exactly {names}" if least is None else f"a mapping with one or more of {names}",
        schema,
        lambda value: isinstance(value, dict) and set(value) <= set(rules) and len(value) >= fewest,
        lambda value: ((key, part, rules[key]) for key, part in value.items()),
    )


def mapping_of(name: Rule, content: Rule, allowed: str) -> Rule:
    """Return the rule of a mapping with names that are chosen freely."""
    return Rule(
        allowed,
        {"type": "object", "propertyNames": name.schema, "additionalProperties": content.schema},
        lambda value: isinstance(value, dict),
        lambda value: (
            part for key, one in value.items() for part in ((key, key, name), (key, one, content))
        ),
    )


def _check_quantity(text: str) -> None:
    if parse_quantity(text) <= 0:
        raise ValueError(f"{text!r} is not allowed; it must be > 0")


FLAG = Rule("true or false", {"type": "boolean"}, lambda value: type(value) is bool)
QUANTITY = parsed('a quantity as text, such as "2" or 512Mi', _check_quantity)


@cache
def rules_of(kind: type[Document]) -> dict[str, Rule]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}


def defaults_of(kind: type[Document]) -> dict[str, Any]:
    """Return key -> what it is where a document leaves it out; MISSING where that is not allowed."""
    return {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for f in fields(kind)  # type: ignore[arg-type]  # it is a dataclass
        if f.name in rules_of(kind)
    }


def problems_of(kind: type[Document], document: Mapping[Any, Any]) -> list[Problem]:
    rules, values, problems = rules_of(kind), {**defaults_of(kind), **document}, list[Problem]()
    for key, value in {**values}.items():
        if key not in rules:
            found: list[Problem] = [((), f"unknown key; allowed are {', '.join(rules)}")]
        elif value is MISSING:
            found = [((), "is missing")]
        else:
            found = rules[key].problems(value) if key in document else []
        if found:
            problems += [((key, *keys), text) for keys, text in found]
            del values[key]
    return [*problems, *kind.conflicts(values)]


def in_words(problems: Iterable[Problem], root: yaml.Node | None) -> Iterator[str]:
    """Yield the problems with their keys, and their lines in the document of this node."""
    lines = dict(_lines(root))
    for keys, text in problems:
        path = tuple(map(str, keys))
        while path and path not in lines:
            path = path[:-1]
        where = f" (line {lines[path]})" if path else ""
        yield f"{'.'.join(_short(str(key), 80) for key in keys)}: {text}{where}"


def parse_document(kind: type[D], name: str, content: bytes) -> D:
    """Return the settings of a document. Raises JobError, which names all problems."""
    document = parse_mapping(name, content)
    if problems := problems_of(kind, document):
        raise template_error(name, "; ".join(in_words(problems, _root_of(content))))
    return kind(**document)


def _root_of(content: bytes) -> yaml.Node | None:
    try:
        roots = yaml.compose_all(content, Loader=yaml.SafeLoader)
        return next((one for one in roots if isinstance(one, yaml.MappingNode)), None)
    except yaml.YAMLError:  # libyaml, which has read it, takes a little more than this loader
        return None


def _short(text: str, limit: int) -> str:
    return cut(printable(text[: limit + 1]), limit)


def _lines(node: yaml.Node | None) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the keys that lead to each value of a mapping, and the line of the last, from 1 on.

    What an alias repeats, perhaps without end, is where it stands first.
    """
    pending: list[tuple[yaml.Node | None, tuple[str, ...]]] = [(node, ())]
    seen: set[int] = set()
    while pending:
        node, above = pending.pop()
        if not isinstance(node, yaml.MappingNode) or id(node) in seen:
            continue
        seen.add(id(node))
        for key, value in node.value:
            keys = (*above, str(key.value))
            yield keys, key.start_mark.line + 1
            pending.append((value, keys))
