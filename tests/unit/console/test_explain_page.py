"""The page of `autolabs explain`: its order, its times, and what hostile texts cannot do to a terminal."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from console.explain.commands import WIDTH, make_object, make_page
from console.explain.explanation import explain
from console.explain.facts import LabFacts, Run
from console.explain.timeline import MAX_ENTRIES, make_timeline, seen_lines
from dispatcher.wording import ago, clock, duration, one_line
from tests.support.labs.explained import (
    NOW,
    at,
    cancelled,
    failed_run,
    make_action,
    make_facts,
    make_lab,
    make_notification,
    make_row,
    make_run,
)

SEEN = {
    "pod": {"name": "lab-instance-17-demo", "phase": "Pending", "reason": None, "node": "node-1"},
    "conditions": [
        {"type": "PodScheduled", "status": "True"},
        {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "not ready: [lab]"},
    ],
    "containers": [
        {
            "name": "lab",
            "state": "terminated",
            "reason": "Error",
            "exit_code": 1,
            "restarts": 2,
            "last": {"reason": "OOMKilled"},
        }
    ],
    "events": [
        {
            "at": "2026-11-21T09:00:57Z",
            "type": "Warning",
            "reason": "BackOff",
            "message": "back-off",
            "count": 3,
        }
    ],
    "note": "not all could be read",
    "log": {"container": "lab", "previous": True, "lines": ["starting", "no such file: /app"]},
}
FAILED_RUN = failed_run(
    "program_ends",
    "PERMANENT_IMAGE_ERROR",
    ago_s=250,
    took_s=9.5,
    details={"seen": SEEN, "evidence": "terminated: exit code 1"},
)
FAILED = make_facts(
    make_lab("FAILED", age_s=252),
    FAILED_RUN,
    notifications=(make_notification(published_at=at(239), webhook_at=at(238)),),
)

JOB = " (Job lab-operations-x7k2p, pod ..-9zq4w)"
PAGE = """\
Lab 17 (lab 3 of student 42) FAILED 4 minutes ago.

what happened: 09:00:48 (4 minutes ago)  asked for, its task is task-create
               09:00:50 (4 minutes ago)  create, attempt 1 (Job lab-operations-x7k2p, pod ..-9zq4w): failed
                 for good after 9.5 s: It is program_ends.
               09:01:00 (4 minutes ago)  FAILED
why:           The image is wrong.
               [PERMANENT_IMAGE_ERROR, program_ends]
seen last:     pod lab-instance-17-demo on node-1: Pending
               not Ready: ContainersNotReady: not ready: [lab]
               container lab: terminated, Error, ended before: OOMKilled, exit code 1, restarts 2
               event 09:00:57: Warning, BackOff, 3 times: back-off
               last lines of container lab before its restart:
                 | starting
                 | no such file: /app
               not all could be read
               evidence: terminated: exit code 1
who must act:  the teacher
told:          teacher (image_not_loadable): event published 4 minutes ago, webhook called, if one is set
next:          Nothing more happens by itself, a lab that FAILED is not tried again: once the teacher has
                 corrected it, start a new lab.
run:           kubectl logs -n platform job/lab-operations-x7k2p"""


def page(facts: LabFacts) -> str:
    return make_page(facts, explain(facts))


def texts(facts: LabFacts) -> list[str]:
    return [entry.text for entry in make_timeline(facts)]


def test_a_page_has_all_an_operator_needs_in_one_screen() -> None:
    assert page(FAILED) == PAGE


def test_the_timeline_tells_who_did_what_in_order() -> None:
    facts = make_facts(
        make_lab("STOPPED", started_at=at(200), connection_url="http://x/"),
        make_run("started", ago_s=290),
        failed_run("no_room", "", "retried", ago_s=280, id=2, redelivered=True, details={"retry_delay_s": 5}),
        make_run("retried", ago_s=270, id=3, attempt=2, job_name=None, pod_name="pod"),
        make_run("succeeded", ago_s=260, id=4, attempt=3, job_name=None, pod_name=None),
        make_run("noop", ago_s=90, id=5, task_id="other", published_at=at(130), pod_name="x"),
        make_run("revoked", ago_s=80, id=6, task_name="celery_workers.scale_lab_resources"),
        make_run("dead_lettered", ago_s=70, id=7, delete=True),
        actions=(make_action("requeued", ago_s=50, delete=True),),
        cancellations=(cancelled(ago_s=40),),
        outbox=(
            make_row(30, task_id="later", failures=1),
            make_row(20, task_name="odd", failures=2, last_error="x"),
        ),
    )  # fmt: skip
    moments = [entry.at for entry in make_timeline(replace(facts, lab=None)) if entry.at]
    assert len(moments) == MAX_ENTRIES - 1
    assert moments == sorted(moments)
    told = [*texts(replace(facts, runs=facts.runs[:4])), *texts(replace(facts, lab=None))]
    for text in (
        "asked for, its task is task-create",
        f"create, attempt 1{JOB}: its container was killed, the message came again",
        f"create, attempt 1, delivered again{JOB}: failed after 2.0 s, again after 5.0 s: It is no_room.",
        "create, attempt 2 (pod pod): failed after 2.0 s, again a little later",
        "create, attempt 3: done after 2.0 s",
        "RUNNING at http://x/",
        "create, attempt 1, after 40 s in the queue (Job lab-operations-x7k2p, pod x): nothing to do",
        f"scale_lab_resources, attempt 1{JOB}: not performed",
        f"delete, attempt 1{JOB}: given up after 2.0 s, its message is in celery.dlq",
        "delete_lab_pod in celery.dlq was requeued by anna@console",
        "task task-create was cancelled",
        "create was put into the outbox as row 5; not published in one try: no reason",
        "odd was put into the outbox as row 5; not published in 2 tries: x",
        "its stop was asked for",
        "STOPPED",
    ):
        assert text in told


@pytest.mark.parametrize(("asked_ago_s", "told"), [(62, True), (9, False)], ids=["before", "by the delete"])
def test_a_stop_that_a_delete_asked_for_itself_is_not_told_twice(asked_ago_s: float, told: bool) -> None:
    lab = make_lab("STOPPED", stop_requested_at=at(asked_ago_s), stopped_at=at(8))
    entries = make_timeline(make_facts(lab, make_run("succeeded", delete=True)))
    assert ("its stop was asked for" in [entry.text for entry in entries]) is told


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (make_run("started"), "running"),
        (make_run("started", ago_s=9000), "its container was killed before it wrote an end"),
        (make_run("failed", task_name="", task_id="unknown"), "a task, attempt 1"),
        (make_run("odd\x1b"), r"odd\x1b"),
    ],
)
def test_an_end_is_named(run: Run, text: str) -> None:
    assert text in texts(make_facts(None, run))[0]


def test_a_long_story_loses_its_middle_and_says_so() -> None:
    runs = [
        make_run("noop", id=number, ago_s=200 - number, error_message=str(number)) for number in range(50)
    ]
    told = texts(make_facts(make_lab(), *runs, earlier_runs=7))
    assert len(told) == MAX_ENTRIES + 2
    assert told[0] == "7 earlier runs (task_ledger has them)"
    assert told[3] == "39 more (--json has them)"
    assert told[2].endswith("nothing to do: 0")
    assert told[-1].endswith("nothing to do: 49")
    assert ".. 39 more" in page(make_facts(make_lab(), *runs, earlier_runs=7))


@pytest.mark.parametrize(
    "hostile", ["\x1b[2J", "\x9b31m", "\u202egnp", "line\nlab is fine:", "\ud800", "\x07"]
)
def test_no_text_of_anybody_steers_the_terminal(hostile: str) -> None:
    text = f"a{hostile}b" + "x" * 5000
    seen = {
        "pod": {"name": text, "phase": text, "message": text},
        "conditions": [{"type": text, "status": text, "reason": text}] * 9,
        "containers": [{"name": text, "state": text, "message": text}] * 9,
        "events": [{"at": text, "type": text, "reason": text, "message": text, "count": 2}] * 99,
        "log": {"container": text, "lines": [text] * 999},
    }
    details = {"seen": seen, "evidence": "\n".join([text] * 99), "steps": {text: 1}, "cause": text}
    run = make_run(
        "failed",
        task_id=text,
        task_name=text,
        job_name=text,
        pod_name=text,
        error_message=text,
        details=details,
    )
    lab = make_lab(
        "FAILED", celery_task_id=text, connection_url=text, error_message=text, error_category=text
    )
    row = make_row(900, task_id=text, task_name=text, last_error=text, failures=99)
    told = make_notification(cause=text, told=text, last_error=text, failures=3)
    done = replace(make_action("requeued"), actor=text, action=text, task_name=text)
    facts = make_facts(
        lab, run, outbox=(row,), notifications=(told,), actions=(done,), cancellations=(cancelled(text),)
    )
    for each in (facts, replace(facts, lab=replace(lab, status="PENDING")), replace(facts, lab=None)):
        shown = page(each)
        assert all(line.isprintable() for line in shown.split("\n"))
        assert "\nlab is fine" not in shown
        assert len(shown) < 30_000
        assert max(map(len, shown.split("\n"))) < 700


@pytest.mark.parametrize(
    "broken", [None, 7, "text", [], {}, [None], [[]], {"lines": 7}, {"lines": [None, {}]}]
)
def test_evidence_of_another_form_is_no_failure(broken: object) -> None:
    parts = ("pod", "conditions", "containers", "events", "log")
    for details in ({"seen": broken}, {"seen": dict.fromkeys(parts, broken)}, {"seen": {"events": [broken]}}):
        for line in seen_lines(make_run("failed", details={**details, "evidence": broken})):
            assert line.isprintable()
    facts = make_facts(make_lab(), make_run("retried", details={"retry_delay_s": broken, "steps": broken}))
    assert page(facts)


def test_the_end_of_what_the_kubelet_says_is_shown() -> None:
    said = (
        f'Failed to create pod sandbox: code = Unknown desc = failed to start sandbox "{"0" * 64}":'
        " failed to create containerd task: failed to create shim task: OCI runtime create failed: runc"
        " create failed: unable to start: container init was OOM-killed (memory limit too low?)"
    )
    (line,) = seen_lines(make_run("retried", details={"seen": {"events": [{"message": said}]}}))
    assert line.endswith("(memory limit too low?)")


def test_an_object_has_facts_and_findings_with_stable_keys() -> None:
    found = json.loads(json.dumps(make_object(FAILED, explain(FAILED))))
    assert set(found) == {"facts", "findings"}
    assert set(found["findings"]) == {
        "situation", "operation", "headline", "timeline", "why", "seen", "who", "told", "next", "commands",
    }  # fmt: skip
    assert found["findings"]["why"] == {
        "sentence": "The image is wrong.",
        "cause": "program_ends",
        "category": "PERMANENT_IMAGE_ERROR",
    }
    assert (found["findings"]["who"], found["findings"]["operation"]) == ("teacher", "create")
    assert found["facts"]["now"] == "2026-11-21T09:05:00.000+00:00"
    assert found["facts"]["runs"][0]["details"]["seen"] == SEEN
    assert found["facts"]["queue"] is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0.0 s"), (0.44, "0.4 s"), (12.4, "12 s"), (99.4, "99 s"), (119, "2 minutes"),
        (5990, "100 minutes"), (7500, "2 hours 5 minutes"), (7200, "2 hours"), (6060, "1 hour 41 minutes"),
        (260_000, "3 days"),
    ],
)  # fmt: skip
def test_durations_are_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_no_name_is_broken() -> None:
    url = "http://" + "-".join(["long"] * 18)
    assert url in page(make_facts(make_lab("RUNNING", connection_url=url)))


def test_a_question_ends_as_one() -> None:
    forgotten = make_lab("RUNNING", stop_requested_at=at(9000))
    assert "since: check that it runs" in " ".join(page(make_facts(forgotten)).split())
    assert "?." not in page(make_facts(forgotten))


def test_moments_are_told_from_now() -> None:
    assert [ago(NOW, at(240)), ago(NOW, at(-12)), ago(NOW, NOW)] == ["4 minutes ago", "in 12 s", "just now"]
    assert [clock(NOW, at(240)), clock(NOW, at(86400))] == ["09:01:00", "2026-11-20 09:05"]


def test_a_long_text_is_cut_and_a_line_is_wrapped() -> None:
    assert one_line("x" * 700) == "x" * 597 + "..."
    facts = make_facts(make_lab("FAILED", error_message="word " * 80))
    assert max(map(len, page(facts).split("\n"))) <= WIDTH
