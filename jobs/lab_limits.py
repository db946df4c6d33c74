"""Limits of single labs and of courses in the settings: whether what they say can be used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dispatcher.quantities import parse_quantity


def limits_problems(document: Mapping[str, Any], platform: Mapping[str, str]) -> list[str]:
    """Return what is wrong with `courses` and `labs`, each with its key; `platform` is the most of any."""
    return [
        *_problems_of("courses", document.get("courses", {}), _course_problems, platform),
        *_problems_of("labs", document.get("labs", {}), _lab_problems, platform),
        *_labs_in_two_courses(document.get("courses", {})),
    ]


def _problems_of(key: str, content: Any, check: Any, platform: Mapping[str, str]) -> Iterator[str]:
    if not isinstance(content, dict):
        yield f"{key}: must be a mapping"
        return
    for name, value in content.items():
        yield from (f"{key}.{name}{problem}" for problem in check(name, value, platform))


def _course_problems(name: Any, content: Any, platform: Mapping[str, str]) -> Iterator[str]:
    if not isinstance(name, str):
        yield ": the name of a course must be text"
    if not isinstance(content, dict) or set(content) != {"lab_ids", "max_resources"}:
        yield ": must have exactly lab_ids and max_resources"
        return
    if not _are_ids(content["lab_ids"]):
        yield ".lab_ids: must be a list of lab_ids, integers above 0"
    yield from _most_problems(content["max_resources"], platform)


def _lab_problems(name: Any, content: Any, platform: Mapping[str, str]) -> Iterator[str]:
    if not _are_ids([name]):
        yield ": must be a lab_id, an integer above 0"
    if not isinstance(content, dict) or set(content) != {"max_resources"}:
        yield ": must have exactly max_resources"
        return
    yield from _most_problems(content["max_resources"], platform)


def _most_problems(most: Any, platform: Mapping[str, str]) -> Iterator[str]:
    names = ", ".join(platform)
    if not isinstance(most, dict) or not most or not set(most) <= set(platform):
        yield f".max_resources: must have one or more of {names}"
        return
    for name, value in most.items():
        if problem := _quantity_problem(value, platform[name]):
            yield f".max_resources.{name}: {problem}"


def _quantity_problem(value: Any, most: str) -> str | None:
    if not isinstance(value, str):
        return 'must be text, such as "2"'
    try:
        quantity = parse_quantity(value)
    except ValueError as exc:
        return str(exc)
    if quantity <= 0:
        return "must be > 0"
    return f"{value} is more than max_resources, {most}" if quantity > parse_quantity(most) else None


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one > 0 for one in value)


def _labs_in_two_courses(courses: Any) -> Iterator[str]:
    """Yield labs for which two courses could say something else."""
    course_of: dict[Any, Any] = {}
    for course, content in courses.items() if isinstance(courses, dict) else ():
        lab_ids = content.get("lab_ids") if isinstance(content, dict) else None
        for lab_id in set(lab_ids) if _are_ids(lab_ids) and lab_ids else ():
            if other := course_of.get(lab_id):
                yield f"courses.{course}.lab_ids: {lab_id} is in {other} as well"
            course_of[lab_id] = course
