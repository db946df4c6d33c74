"""Folders import downwards only: the table, held against every import, lazy ones too."""

from __future__ import annotations

import pytest

from tests.support.source_tree import PACKAGES, cycles, import_graph, imports, modules, room_graph, room_of

#: Room -> the rooms right below it. A room may import those, and what is below them.
BELOW: dict[str, tuple[str, ...]] = {
    "dispatcher words": (),
    "dispatcher/message": ("dispatcher words",),
    "dispatcher/broker": ("dispatcher/message",),
    "dispatcher/outbox": ("dispatcher/broker",),
    "dispatcher/migrations": ("dispatcher words",),
    "dispatcher API": ("dispatcher/outbox",),
    "dispatcher/cli": ("dispatcher API", "dispatcher/migrations"),
    "dispatcher entry": ("dispatcher/cli",),
    "jobs words": ("dispatcher words",),
    "jobs/config": ("jobs words", "dispatcher/broker"),
    "jobs/cluster": ("jobs/config",),
    "jobs/database": ("jobs/config", "dispatcher/outbox"),
    "jobs/notify": ("jobs/database",),
    "jobs/handlers": ("jobs/cluster", "jobs/notify"),
    "jobs/verify": ("jobs/handlers",),
    "jobs/checks": ("jobs/verify",),
    "jobs/container": ("jobs/checks",),
    "jobs entry": ("jobs/container",),
    "keda": ("dispatcher/broker",),
    "cronjobs": ("jobs/checks", "keda"),
    "console words": ("cronjobs", "dispatcher/cli"),
    "console/dlq": ("console words",),
    "console/explain": ("console words",),
    "console/verify": ("console words",),
    "console/schedules": ("console words",),
    "console entry": ("console/dlq", "console/explain", "console/verify", "console/schedules"),
}
MODULES = [one for one in modules() if room_of(one) != "outside"]


def below(room: str) -> set[str]:
    """Return the rooms that a room may import."""
    return {one for next_one in BELOW[room] for one in (next_one, *below(next_one))}


def test_every_module_has_its_room_in_the_table() -> None:
    assert {room_of(one) for one in MODULES} == {*BELOW}


def test_neither_modules_nor_rooms_import_each_other() -> None:
    assert cycles(import_graph(MODULES)) == []
    assert cycles(room_graph(MODULES)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_downwards_only(package: str) -> None:
    rooms = {one.name: room_of(one) for one in MODULES}
    wrong = [
        f"{name} ({rooms[name]}) imports {target} ({rooms[target]})"
        for name, targets in import_graph(MODULES).items()
        for target in targets
        if name.split(".")[0] == package and rooms[target] not in {rooms[name], *below(rooms[name])}
    ]
    assert wrong == []


def test_deploy_and_tests_are_imported_by_nothing_that_is_shipped() -> None:
    imported = {name.split(".")[0] for one in MODULES for name in imports(one)}
    assert imported.isdisjoint({"deploy", "tests"})
