from __future__ import annotations

import pytest

from dispatcher.wording import age, fields, many, one_line, printable, table

HOSTILE = "a\x1b[2J\u202e\r\n\tb\ud800"


def test_nothing_reaches_the_terminal_as_it_is() -> None:
    shown = [printable(HOSTILE), one_line(HOSTILE), table([(HOSTILE, 1)]), fields({"name": HOSTILE})]
    shown.append(fields({"table": {"key": [HOSTILE]}}))
    assert all(text.isprintable() for text in shown)
    assert all("\\x1b[2J" in text for text in shown[:4])


def test_a_table_is_as_wide_as_it_has_to_be() -> None:
    assert table([("ID", "NAME"), (12345, "a"), (1, "")]) == "ID     NAME\n12345  a\n1"


def test_fields_without_a_value_are_left_out() -> None:
    assert fields({"a": None, "b": 0, "long": "x"}) == "b:                0\nlong:             x"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0s"), (119.4, "119s"), (120, "2m"), (7199, "120m"), (7200, "2h"), (172_800, "2d")],
)
def test_an_age_has_the_largest_unit_of_which_there_are_two(seconds: float, shown: str) -> None:
    assert age(seconds) == shown


def test_one_thing_is_no_plural() -> None:
    assert [many(number, "message") for number in (0, 1, 2)] == ["0 messages", "1 message", "2 messages"]
