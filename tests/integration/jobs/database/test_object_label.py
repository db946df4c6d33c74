"""The label of a lab's objects, as the database computes it: for every time that a row can hold."""

from __future__ import annotations

import re

import pytest

from jobs.database.lab_store import LabStore
from jobs.database.snapshot_rows import some_rows
from tests.support.database.postgres import Database

#: What another language or a person by SQL may have written.
TIMES = {
    "now": "now()",
    "a microsecond later": "now() + interval '1 microsecond'",
    "before year 1": "'0044-03-15 12:00:00+00 BC'",
    "the same, after Christ": "'0044-03-15 12:00:00+00'",
    "after year 9999": "'20000-01-01'",
    "infinity": "'infinity'",
    "minus infinity": "'-infinity'",
}


def label(store: LabStore, lab: int) -> str:
    found = store.find(lab)
    assert found is not None
    assert found.object_label is not None
    return found.object_label


def test_a_lab_whose_id_comes_again_has_another_label(labs: LabStore, database: Database) -> None:
    lab, labels = database.add_lab(), []
    for time in TIMES.values():
        database.rows(f"UPDATE lab_instances SET created_at = {time} WHERE id = %s", lab)
        labels.append(label(labs, lab))
    database.rows("UPDATE lab_instances SET created_at = now(), student_id = 43 WHERE id = %s", lab)
    labels.append(label(labs, lab))
    assert len(set(labels)) == len(TIMES) + 1
    assert all(re.fullmatch("[0-9a-f]{20}", one) for one in labels)


@pytest.mark.parametrize("setting", ["DateStyle = 'German, DMY'", "TimeZone = 'Asia/Kathmandu'"])
def test_the_label_is_the_same_in_every_session(labs: LabStore, database: Database, setting: str) -> None:
    lab = database.add_lab()
    before = label(labs, lab)
    assert [row.object_label for row in some_rows(labs, [lab])] == [before]
    labs.at_once(lambda cursor: cursor.execute(f"SET {setting}"))
    assert label(labs, lab) == before
