"""The document of schedules: what it may say, and how an entry of it is changed in place."""

from __future__ import annotations

import re
import zoneinfo
from typing import Any

import pytest
import yaml

from console.schedules.cron_jobs import differences
from console.schedules.edit import Changes, with_changes
from console.schedules.run_now import make_job
from cronjobs.timetable import SHIPPED, InvalidSchedules, Schedule, parse_schedules
from dispatcher.errors import DispatcherError
from jobs.config.settings_document import rules_of

KEYS = list(rules_of(Schedule))
CRON = 'five cron fields or a macro, as text such as "*/5 * * * *" or @hourly'
ENTRY: dict[str, Any] = {"task": "cleanup", "schedule": "*/5 * * * *"}
WRITTEN = """\
# Above.
one:  # first
  task: outbox
  # Every minute.
  schedule: "* * * * *"  # really
  suspend: true
  ttl_s: 600

two: {task: cleanup, schedule: '@hourly', suspend: true}  # in one line
"""


def problems(entry: object, name: object = "nightly") -> list[str]:
    with pytest.raises(InvalidSchedules) as caught:
        parse_schedules(yaml.safe_dump({name: entry}).encode())
    return caught.value.problems


def test_defaults_make_a_short_entry() -> None:
    (schedule,) = parse_schedules(b'nightly: {task: cleanup, schedule: "0 3 * * *"}').values()
    assert schedule == Schedule(name="nightly", task="cleanup", schedule="0 3 * * *")
    assert (schedule.concurrency, schedule.time_zone, schedule.suspend) == ("Forbid", "Etc/UTC", None)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"task": "dance"}, "task: 'dance' is not allowed; it must be one of cleanup, health, sync, outbox"),
        ({"task": []}, "task: [] is not allowed; it must be one of"),
        (
            {"schedule": 5},
            f"schedule: 5 is not allowed; it must be {CRON}",
        ),
        ({"schedule": "60 * * * *"}, "schedule: '60' is no minute; allowed are 0 to 59"),
        ({"time_zone": "Mars/Olympus"}, "time_zone: 'Mars/Olympus' is not in the tz database"),
        (
            {"time_zone": "Local"},
            "time_zone: 'Local' is not in the tz database; allowed are names such as Etc/UTC",
        ),
        ({"time_zone": "../../etc/passwd"}, "time_zone: '../../etc/passwd' is not in the tz database"),
        (
            {"concurrency": "forbid"},
            "concurrency: 'forbid' is not allowed; it must be one of Forbid, Allow, Replace",
        ),
        (
            {"starting_deadline_s": 5},
            "starting_deadline_s: 5 is not allowed; it must be an integer from 10 to 604800",
        ),
        ({"deadline_s": "60"}, "deadline_s: '60' is not allowed; it must be an integer from 10 to 86400"),
        ({"deadline_s": True}, "deadline_s: True is not allowed; it must be an integer"),
        (
            {"successful_history": -1},
            "successful_history: -1 is not allowed; it must be an integer from 0 to 100",
        ),
        ({"failed_history": 101}, "failed_history: 101 is not allowed; it must be an integer"),
        ({"ttl_s": 1.5}, "ttl_s: 1.5 is not allowed; it must be an integer from 60 to 604800"),
        ({"suspend": "yes"}, "suspend: 'yes' is not allowed; it must be true or false"),
        (
            {"options": ["dry_run"]},
            "options: ['dry_run'] is not allowed; it must be a mapping of dry_run and force",
        ),
        (
            {"options": {"fast": True}},
            "options.fast: 'fast' is not allowed; it must be one of dry_run, force",
        ),
        ({"options": {"force": 1}}, "options.force: 1 is not allowed; it must be true or false"),
        (
            {"resources": {"cpu": "1"}},
            "resources: {'cpu': '1'} is not allowed; it must be a mapping with exactly requests, limits",
        ),
        (
            {"env": {"DATABASE_URL": "x"}},
            "env.DATABASE_URL: 'DATABASE_URL' is not allowed; it must be one of S3_BUCKET,",
        ),
        ({"env": {"S3_BUCKET": ""}}, "env.S3_BUCKET: '' is not allowed; it must be a text of one line"),
        ({"sheduled": 1}, "sheduled: unknown key; allowed are task, schedule, time_zone,"),
    ],
    ids=str,
)
def test_a_wrong_value_names_entry_key_value_and_what_is_allowed(
    change: dict[str, Any], problem: str
) -> None:
    (found,) = problems(ENTRY | change)
    assert found.startswith(f"nightly.{problem}")


@pytest.mark.parametrize(
    ("requests", "limits", "problem"),
    [
        (
            {"cpu": "1", "memory": "64Mi"},
            {"cpu": "500m", "memory": "256Mi"},
            "resources.limits.cpu: 500m is less than the request, 1",
        ),
        (
            {"cpu": "0", "memory": "64Mi"},
            {"cpu": "1", "memory": "256Mi"},
            "resources.requests.cpu: '0' is not allowed; it must be > 0",
        ),
        (
            {"cpu": 1, "memory": "64Mi"},
            {"cpu": "1", "memory": "256Mi"},
            "resources.requests.cpu: 1 is not allowed; it must be a quantity as text",
        ),
        ({"cpu": "1", "memory": "much"}, {"cpu": "1", "memory": "256Mi"}, "'much' is not a quantity"),
    ],
)
def test_resources_that_do_not_fit(requests: object, limits: object, problem: str) -> None:
    (found,) = problems({**ENTRY, "resources": {"requests": requests, "limits": limits}})
    assert problem in found


def test_all_problems_of_all_entries_are_told_at_once() -> None:
    document = b'a: {task: x, schedule: "* *"}\nB_: {}\nc: 5\n'
    with pytest.raises(InvalidSchedules) as caught:
        parse_schedules(document, "own.yaml")
    assert [re.split("[.:]", line)[0] for line in caught.value.problems] == ["a", "a", "B_", "B_", "B_", "c"]
    assert str(caught.value).startswith(
        "own.yaml is not acceptable:\n  a.task: 'x' is not allowed; it must be one of"
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "must map names to entries, at least one"),
        (b"[]", "must map names"),
        (b"a: {task: cleanup, schedule: */5 * * * *}", 'a schedule needs quotes: "*/5 * * * *"'),
        (b"a: [", "no YAML: "),
        (b"a: !!bool x", "no YAML: "),
        (b"a: " + b"[" * 100_000, "is nested deeper than 50 levels"),
        ("a: {task: cleanup}".encode("utf-16"), "no YAML: 'utf-8' codec"),
        (b"a: &x {task: cleanup}\nb: *x", "must have no anchors and aliases"),
        (b"a: &x [*x]", "must have no anchors and aliases"),
        (b"\xff\xfe\x00", "no YAML: "),
        (b"a: {task: cleanup, schedule: '@daily'}\na: {task: sync, schedule: '@daily'}", "a: is there twice"),
        (b"a: {task: cleanup, task: sync, schedule: '@daily'}", "a.task: is there twice"),
        (b"? [1]\n: 5", "no YAML: "),
    ],
)
def test_what_is_no_document(content: bytes, complaint: str) -> None:
    with pytest.raises(InvalidSchedules) as caught:
        parse_schedules(content)
    assert complaint in str(caught.value)


def test_a_problem_names_its_line() -> None:
    document = b"# Above.\na:\n  task: sync\n  schedule:\nb: {task: sync}\n5: x\n"
    with pytest.raises(InvalidSchedules) as caught:
        parse_schedules(document)
    assert [line.rpartition(" (line ")[::2] for line in caught.value.problems] == [
        (f"a.schedule: None is not allowed; it must be {CRON}", "4)"),
        ("b.schedule: is missing", "5)"),
        ("5: is no name; allowed are a-z, 0-9 and - inside, 52 characters at most", "6)"),
        (f"5: must map keys to values; allowed are {', '.join(KEYS)}", "6)"),
    ]


@pytest.mark.parametrize("name", ["Night", "-a", "a-", "a.b", "a" * 53, 5, ""])
def test_a_name_is_one_of_a_cron_job(name: object) -> None:
    assert len(problems(ENTRY, name)) == 1


def test_without_a_tz_database_the_api_server_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    assert parse_schedules(yaml.safe_dump({"a": {**ENTRY, "time_zone": "Mars/Olympus"}}).encode())


@pytest.mark.parametrize(
    ("name", "changes", "before", "after"),
    [
        ("one", {"schedule": "@daily"}, '"* * * * *"  # really', '"@daily"  # really'),
        ("one", {"suspend": None}, "  suspend: true\n  ttl_s", "  ttl_s"),
        ("one", {"suspend": False}, "suspend: true\n", "suspend: false\n"),
        ("one", {"ttl_s": None}, "  suspend: true\n  ttl_s: 600\n", "  suspend: true\n"),
        ("one", {"deadline_s": 60}, "  task: outbox", "  deadline_s: 60\n  task: outbox"),
        ("one", {"time_zone": None}, "", ""),
        ("two", {"schedule": "0 1 * * *"}, "'@hourly'", '"0 1 * * *"'),
        ("two", {"suspend": None}, ", suspend: true}", "}"),
        ("two", {"ttl_s": 60}, "{task", "{ttl_s: 60, task"),
    ],
)
def test_a_change_touches_nothing_but_the_value(name: str, changes: Changes, before: str, after: str) -> None:
    changed = with_changes(WRITTEN.encode(), name, changes).decode()
    assert changed == WRITTEN.replace(before, after, 1)
    wanted: dict[str, Any] = yaml.safe_load(WRITTEN)
    wanted[name] |= changes
    assert yaml.safe_load(changed) == {
        key: {k: v for k, v in entry.items() if v is not None} for key, entry in wanted.items()
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  suspend: true  # for now\n  # Kept.\n  ttl_s: 600\n", "  # Kept.\n  ttl_s: 600\n"),
        ("  ttl_s: 600  # kept\n  suspend: true\n", "  ttl_s: 600  # kept\n"),
    ],
    ids=["a comment below", "a comment above"],
)
def test_a_key_that_goes_takes_no_comment_along(before: str, after: str) -> None:
    entry = 'one:\n  task: outbox\n  schedule: "@daily"\n'
    assert with_changes(f"{entry}{before}".encode(), "one", {"suspend": None}).decode() == entry + after


REST = '  schedule: "@daily"\n  # Kept.\n  ttl_s: 600  # kept\n'
BLOCK = "one:\n  task: outbox\n"


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        (f"{BLOCK}  suspend:  # why\n{REST}", {"suspend": True}, f"{BLOCK}  suspend: true  # why\n{REST}"),
        (f"{BLOCK}  suspend:\n{REST}", {"suspend": None}, BLOCK + REST),
        (f"{BLOCK}  suspend: !!null\n{REST}", {"suspend": False}, f"{BLOCK}  suspend: false\n{REST}"),
        (
            f"{BLOCK}  time_zone: >-  # why\n    Etc/UTC\n\n{REST}",
            {"time_zone": "UTC"},
            f'{BLOCK}  time_zone: "UTC"  # why\n\n{REST}',
        ),
        (f"{BLOCK}  time_zone: |-\n    Etc/UTC\n\n{REST}", {"time_zone": None}, f"{BLOCK}\n{REST}"),
        (f"{BLOCK}{REST}  time_zone: |-\n    UTC", {"time_zone": None}, BLOCK + REST),
        (f"{BLOCK}  schedule: |\n    * * * * *", {"schedule": "@daily"}, f'{BLOCK}  schedule: "@daily"'),
        (
            f'{BLOCK}  schedule:\n    "* *\n    * * *"  # kept\n',
            {"schedule": "@daily"},
            f'{BLOCK}  schedule:\n    "@daily"  # kept\n',
        ),
        (
            "{one: {task: outbox, suspend: , schedule: '@daily'}}  # kept\n",
            {"suspend": True},
            "{one: {task: outbox, suspend: true , schedule: '@daily'}}  # kept\n",
        ),
        (
            "one: {task: outbox, suspend, schedule: '@daily'}",
            {"suspend": True},
            "one: {task: outbox, suspend: true, schedule: '@daily'}",
        ),
        (
            '{"one":{"task":"outbox","schedule":"@daily","suspend":true}}',
            {"suspend": None},
            '{"one":{"task":"outbox","schedule":"@daily"}}',
        ),
        (
            "one: {\n  task: outbox,\n  schedule: '@daily',  # kept\n  suspend: true }",
            {"suspend": None},
            "one: {\n  task: outbox,\n  schedule: '@daily',  # kept\n   }",
        ),
        (
            "one: {\n  task: outbox,\n  suspend: true,\n  # Kept.\n  schedule: '@daily',\n}",
            {"suspend": None},
            "one: {\n  task: outbox,\n  # Kept.\n  schedule: '@daily',\n}",
        ),
        (
            "one: {task: outbox, schedule: '@daily', suspend: true, }",
            {"suspend": None},
            "one: {task: outbox, schedule: '@daily', }",
        ),
    ],
)
def test_every_form_of_a_value_is_changed_and_no_comment_is_lost(
    before: str, changes: Changes, after: str
) -> None:
    assert with_changes(before.encode(), "one", changes).decode() == after
    assert parse_schedules(after.encode())


@pytest.mark.parametrize(
    "document",
    [
        "{one: {task: outbox, schedule: '@daily'}}  # kept\n",
        "{\n  one: {task: outbox, schedule: '@daily'},  # kept\n}\n",
        '{"one":{"task":"outbox","schedule":"@daily"}}',
    ],
)
def test_an_entry_is_added_to_a_document_in_braces(document: str) -> None:
    added = with_changes(document.encode(), "outbox", {"suspend": True})
    assert parse_schedules(added)["outbox"].suspend is True
    assert parse_schedules(added)["one"] == parse_schedules(document.encode())["one"]
    assert ("# kept" in added.decode()) is ("# kept" in document)


@pytest.mark.parametrize(
    ("document", "name", "refusal"),
    [
        (
            '? one\n: suspend: true\n  task: outbox\n  schedule: "@daily"\n',
            "one",
            "one: suspend cannot be changed in line 2 as it is written there; allowed is a line of its own,"
            " suspend: VALUE",
        ),
        (
            '# Above.\none: {<<: {suspend: true}, task: outbox, schedule: "@daily"}\n',
            "one",
            "one: suspend cannot be changed in line 2 as it is written there; allowed is a line of its own,"
            " suspend: VALUE",
        ),
        (
            '\n  one: {task: outbox, schedule: "@daily"}\n',
            "outbox",
            "outbox cannot be added to what begins in line 2; allowed is a document whose names begin"
            " their lines, with nothing behind the last entry",
        ),
        (
            'one: {task: outbox, schedule: "@daily"}\n...\n',
            "outbox",
            "outbox cannot be added to what begins in line 1; allowed is a document whose names begin"
            " their lines, with nothing behind the last entry",
        ),
    ],
    ids=["a question mark", "a merge", "all of it indented", "an end"],
)
def test_a_form_that_is_not_foreseen_is_refused_and_not_written_wrongly(
    document: str, name: str, refusal: str
) -> None:
    with pytest.raises(DispatcherError) as caught:
        with_changes(document.encode(), name, {"suspend": None})
    assert str(caught.value) == f"settings/schedules.yaml: {refusal}"


def test_a_change_of_what_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidSchedules, match="no YAML: 'utf-8' codec"):
        with_changes(b"\xff", "one", {"suspend": True})


def test_every_key_of_every_shipped_entry_can_be_changed() -> None:
    content = SHIPPED.read_bytes()
    for name in parse_schedules(content):
        changed = with_changes(content, name, {"time_zone": "Europe/Moscow", "suspend": True})
        entry = parse_schedules(changed)[name]
        assert (entry.time_zone, entry.suspend) == ("Europe/Moscow", True)
        back = with_changes(changed, name, {"time_zone": "Etc/UTC", "suspend": None})
        assert back.decode().replace('"Etc/UTC"', "Etc/UTC") == content.decode()
    assert {"suspend", "options", "resources", "env"} <= set(KEYS)


def test_an_entry_of_this_release_is_added_and_another_is_not() -> None:
    added = with_changes(WRITTEN.encode(), "outbox", {"schedule": "*/2 * * * *"})
    assert added.decode().startswith(WRITTEN)
    assert parse_schedules(added)["outbox"].schedule == "*/2 * * * *"
    with pytest.raises(DispatcherError, match="no schedule 'three'; there are cleanup-timeout-labs"):
        with_changes(WRITTEN.encode(), "three", {})


def test_differences_name_the_field() -> None:
    before = {"a": [{"x": 1, "added": 2}], "c": {"resources": {"cpu": "1000m"}}, "only": 1}
    after = {"a": [{"x": 2}], "c": {"resources": {"cpu": "1"}}, "new": True}
    assert list(differences({"s": before}, {"s": after}, all_keys=False)) == [
        "s.a[0].x: 1 -> 2",
        "s.new: nothing -> True",
    ]
    assert "s.only: 1 -> nothing" in list(differences({"s": before}, {"s": after}))


def test_a_job_by_hand_has_the_options_once() -> None:
    container = {"command": ["python3", "-m", "cronjobs", "cleanup", "--dry-run"]}
    spec = {"template": {"spec": {"containers": [container]}}}
    cron_job = {
        "metadata": {"name": "a" * 52, "namespace": "platform", "uid": "u"},
        "spec": {"jobTemplate": {"metadata": {"labels": {"k": "v"}}, "spec": spec}},
    }
    job = make_job(cron_job, ["--dry-run", "--force"])
    (made,) = job["spec"]["template"]["spec"]["containers"]
    assert made["command"] == [*container["command"], "--force"]
    assert len(job["metadata"]["name"]) == 63
    assert container["command"][-1] == "--dry-run", "the CronJob's own is left as it is"
