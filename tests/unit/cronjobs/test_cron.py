"""Cron expressions: what Kubernetes takes and what it would refuse, and when they come."""

from __future__ import annotations

from datetime import datetime, timezone
from zoneinfo import ZoneInfo

import pytest

from cronjobs.cron import MACROS, parse_cron

UTC = timezone.utc
SATURDAY = datetime(2026, 11, 21, 21, 54, 30, tzinfo=UTC)


def after(text: str, moment: datetime = SATURDAY, zone: str = "Etc/UTC") -> str:
    found = parse_cron(text).next_after(moment, ZoneInfo(zone))
    return f"{found:%Y-%m-%d %H:%M}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("* * * * *", "2026-11-21 21:55"),
        ("*/5 * * * *", "2026-11-21 21:55"),
        ("54 21 * * *", "2026-11-22 21:54"),
        ("7/20 * * * *", "2026-11-21 22:07"),
        ("10-12,50 3 * * *", "2026-11-22 03:10"),
        ("0 0 * * mon", "2026-11-23 00:00"),
        ("0 0 ? Jan-MAR/2 ?", "2027-01-01 00:00"),
        ("0 12 29 2 *", "2028-02-29 12:00"),
        ("0 0 1 1 *", "2027-01-01 00:00"),
        # Both fields for days: one of them is enough, unless one is a star.
        ("0 0 13 * fri", "2026-11-27 00:00"),
        ("0 0 13 * *", "2026-12-13 00:00"),
        ("0 0 * * 5", "2026-11-27 00:00"),
        # robfig/cron does not take */2 for a star.
        ("0 0 */2 * sun", "2026-11-22 00:00"),
        ("0 0 */1 * mon", "2026-11-23 00:00"),
        ("@hourly", "2026-11-21 22:00"),
        ("@weekly", "2026-11-22 00:00"),
    ],
)
def test_when_an_expression_comes_next(text: str, expected: str) -> None:
    assert after(text) == expected


@pytest.mark.parametrize(
    ("text", "moment", "expected"),
    [
        # Moscow is three hours ahead, all the year.
        ("30 2 * * *", SATURDAY, "2026-11-21 23:30"),
        ("0 0 22 11 *", SATURDAY, "2027-11-21 21:00"),
    ],
)
def test_hours_are_those_of_the_time_zone(text: str, moment: datetime, expected: str) -> None:
    assert after(text, moment, "Europe/Moscow") == expected


def test_an_hour_that_a_clock_skips_does_not_come() -> None:
    before = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)
    # Berlin goes from 02:00 to 03:00 on the 29th.
    assert after("30 2 * * *", before, "Europe/Berlin") == "2026-03-30 00:30"
    assert after("30 3 * * *", before, "Europe/Berlin") == "2026-03-29 01:30"


def test_an_hour_that_a_clock_repeats_comes_twice() -> None:
    before = datetime(2026, 10, 31, 12, 0, tzinfo=UTC)
    # New York goes from 02:00 back to 01:00 on the 1st of November.
    first = parse_cron("30 1 * * *").next_after(before, ZoneInfo("America/New_York"))
    assert first == datetime(2026, 11, 1, 5, 30, tzinfo=UTC)
    assert after("30 1 * * *", first, "America/New_York") == "2026-11-01 06:30"


@pytest.mark.parametrize("text", [*MACROS, "59 23 31 12 6", "0,15 * * * mon,FRI", "00 07 * * *"])
def test_what_is_accepted(text: str) -> None:
    assert parse_cron(text).minutes


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has 0 fields"),
        ("* * * *", "has 4 fields; allowed are five"),
        ("* * * * * *", "has 6 fields"),
        ("60 * * * *", "'60' is no minute; allowed are 0 to 59"),
        ("* 24 * * *", "'24' is no hour; allowed are 0 to 23"),
        ("* * 0 * *", "'0' is no day of the month; allowed are 1 to 31"),
        ("* * * 13 *", "'13' is no month; allowed are 1 to 12 or jan-dec"),
        ("* * * foo *", "'foo' is no month"),
        # Other crons take it for Sunday.
        ("* * * * 7", "'7' is no day of the week; allowed are 0 to 6 or sun-sat"),
        ("*/0 * * * *", "a step of 0"),
        ("5-2 * * * *", "5 > 2"),
        ("1, * * * *", "'' is no minute"),
        ("-1 * * * *", "'-1' is no minute"),
        ("1.5 * * * *", "'1.5' is no minute"),
        ("٣ * * * *", "'٣' is no minute"),
        ("0 0 L * *", "'L' is no day of the month"),
        ("0 0 * * mon#2", "'mon#2' is no day of the week"),
        ("@every 5m", "is no macro"),
        ("@reboot", "is no macro"),
        ("TZ=Europe/Moscow * * * * *", "time_zone says it"),
        ("CRON_TZ=UTC 0 0 * * *", "time_zone says it"),
        ("0 0 31 2 *", "never comes"),
        ("0 0 30 feb *", "never comes"),
    ],
)
def test_what_is_refused_says_what_is_allowed(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_cron(text)
    assert complaint in str(caught.value)
