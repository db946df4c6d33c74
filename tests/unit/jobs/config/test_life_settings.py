from __future__ import annotations

from dataclasses import fields

import pytest

from jobs.config.lifetimes import RESTARTABLE, LifeSettings
from jobs.config.settings_document import parse_document
from jobs.config.stored import DEFAULTS, LIFE_SETTINGS
from jobs.errors import JobError


def test_what_is_shipped_names_every_setting_with_its_default() -> None:
    shipped = (DEFAULTS / LIFE_SETTINGS).read_bytes()
    assert parse_document(LifeSettings, LIFE_SETTINGS, shipped) == LifeSettings()
    written = [line.partition(":")[0] for line in shipped.decode().splitlines() if line[:1].isalpha()]
    assert written == [setting.name for setting in fields(LifeSettings)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("warn_minutes: [5, 15]", "warn_minutes: [5, 15] is not allowed; it must be a list of minutes"),
        ("warn_minutes: [15, 15]", "each less than the one before"),
        ("warn_minutes: 15", "warn_minutes: 15 is not allowed; it must be a list of minutes"),
        ("warn_minutes: [true]", "warn_minutes: [True] is not allowed; it must be a list of minutes"),
        ("warn_minutes: []", "no end is known before, so cleanup_max_share must be 1"),
        (
            "cleanup_max_share: 1.5",
            "cleanup_max_share: 1.5 is not allowed; it must be a number from 0 to 1 (line 1)",
        ),
        ("cleanup_max_share: half", "cleanup_max_share: 'half' is not allowed; it must be a number from 0"),
        (
            "cleanup_always: 2.5",
            "cleanup_always: 2.5 is not allowed; it must be an integer from 0 to 1000000 (line 1)",
        ),
        ("max_age_minutes: true", "max_age_minutes: True is not allowed; it must be an integer from 0"),
        ("max_age_minutes: -1", "max_age_minutes: -1 is not allowed; it must be an integer from 0"),
        ("max_clock_skew_s: .nan", "max_clock_skew_s: nan is not allowed; it must be an integer"),
        ("fail_max_share: .nan", "fail_max_share: nan is not allowed; it must be a number"),
        ("unready_limit_s: 9", "unready_limit_s: 9 is not allowed; it must be an integer from 10 to 86400"),
        (
            "restart_causes: [out_of_memory]",
            f"restart_causes.0: 'out_of_memory' is not allowed; it must be one of {', '.join(RESTARTABLE)}",
        ),
        ("restart_causes: pod_gone", "restart_causes: 'pod_gone' is not allowed; it must be a list"),
        ("max_age_minutes: 2024-13-45", "is not YAML: ValueError"),
        ("max_age_minutes: 0b_", "is not YAML: ValueError"),
        ("max_age_minutes: !!bool x", "is not YAML: KeyError"),
        ("max_age_minutes: !!timestamp x", "is not YAML: AttributeError"),
        (f"max_age_minutes: {'9' * 5000}", "is not YAML: ValueError"),
        (f"max_age_minutes: {'[' * 100_000}", "is nested deeper than 50 levels"),
        ("max_labs: 1", "max_labs: unknown key; allowed are max_age_minutes"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(line: str, problem: str) -> None:
    with pytest.raises(JobError) as caught:
        parse_document(LifeSettings, LIFE_SETTINGS, line.encode())
    assert LIFE_SETTINGS in caught.value.evidence
    assert problem in caught.value.evidence


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(JobError) as caught:
        parse_document(LifeSettings, LIFE_SETTINGS, b"crash_limit: 0\nmax_restarts: 11\n")
    assert "crash_limit" in caught.value.evidence
    assert "max_restarts" in caught.value.evidence


def test_what_is_left_out_has_its_default() -> None:
    settings = parse_document(LifeSettings, LIFE_SETTINGS, b"warn_minutes: []\ncleanup_max_share: 1\n")
    assert settings == LifeSettings(warn_minutes=[], cleanup_max_share=1)
    for nothing in (b"", b"{}", b"# all of it\n"):
        assert parse_document(LifeSettings, LIFE_SETTINGS, nothing) == LifeSettings()


@pytest.mark.parametrize("content", [b"- 1\n", b"a: 1\n---\nb: 2\n", b"text", b"a: [\n", b"\xff\xfe\x00"])
def test_what_is_no_mapping_is_refused(content: bytes) -> None:
    with pytest.raises(JobError):
        parse_document(LifeSettings, LIFE_SETTINGS, content)
