"""What is read out of a dead letter, whatever it is."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.dlq.letters import _BROKER_REASONS, DeadLetter, Selector, read_letter
from console.dlq.output import plain_json, plain_text
from dispatcher.broker import delay_ladder
from dispatcher.message.envelope import encode
from dispatcher.wording import printable
from jobs.failures import Failure
from tests.support.broker.dead_letters import make_delete, why
from tests.support.factories import create_kwargs, make_task

DIED = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc)


def read(body: Any, headers: Any, *, routing_key: Any = "lab.delete", **properties: Any) -> DeadLetter:
    properties = {"content_type": "application/json", **properties}
    return read_letter(body, pika.BasicProperties(headers=headers, **properties), routing_key)


def of_container(**changes: Any) -> DeadLetter:
    task = make_delete(7, id="t")
    body, sent = encode(task)
    return read(body, {**sent["headers"], **why(task, **changes)})


def of_broker(reason: str, **headers: Any) -> DeadLetter:
    body, sent = encode(make_delete(7, retries=2))
    death = {"queue": "celery.lab_operations", "reason": reason, "count": 1, "time": DIED}
    older = {"queue": "celery_delayed_3", "reason": "expired", "count": 1, "time": DIED.replace(year=2020)}
    last = {"x-last-death-reason": reason, "x-last-death-queue": "celery.lab_operations"}
    return read(body, {**sent["headers"], **last, "x-death": [older, death], **headers})


def test_a_letter_of_a_container_tells_what_the_container_wrote() -> None:
    letter = of_container(**{"dead-at": DIED.isoformat()})
    assert (letter.made_by, letter.task_id, letter.lab_instance_id) == ("container", "t", 7)
    assert (letter.category, letter.cause) == ("TEMPORARY_RESOURCE_ERROR", "slow_stop")
    assert (letter.attempts, letter.died_at, letter.problem) == (4, DIED, None)
    assert letter.reason == letter.last_error != letter.first_error
    assert (letter.queue, letter.job, letter.pod) == ("celery.lab_operations.high", "job-1", "pod-1")


@pytest.mark.parametrize(
    ("word", "cause", "sentence"),
    [
        ("delivery_limit", "container_crashed", "within 6 deliveries: containers crashed over it"),
        ("expired", "expired", "before a container took it"),
        ("rejected", "rejected", "rejected it without a reason"),
        ("maxlen", "queue_full", "its queue was full"),
        ("something new", "something new", "the broker moved it here: something new"),
    ],
)
def test_a_letter_of_the_broker_says_in_words_what_it_died_of(word: str, cause: str, sentence: str) -> None:
    letter = of_broker(word)
    assert (letter.made_by, letter.cause, letter.died_at) == ("broker", cause, DIED)
    assert sentence in letter.reason
    assert (letter.queue, letter.attempts) == ("celery.lab_operations", 3)


@pytest.mark.parametrize("failure", [Failure.CONTAINER_CRASHED, Failure.EXPIRED])
def test_what_a_container_records_too_has_the_same_cause_and_category(failure: Failure) -> None:
    assert (failure.cause, failure.category) in [(row[0], row[1]) for row in _BROKER_REASONS.values()]


def test_the_broker_came_last_where_both_say_why() -> None:
    letter = of_broker("delivery_limit", **why(make_delete(7)))
    assert (letter.made_by, letter.cause) == ("broker", "container_crashed")


def test_the_ladder_is_no_reason_for_a_letter_of_a_container() -> None:
    task = make_delete(7)
    body, sent = encode(task)
    waited = {"x-death": [{"queue": "celery_delayed_3", "reason": "expired", "time": DIED}]}
    letter = read(
        body,
        {**sent["headers"], **waited, **why(task)},
        routing_key=delay_ladder.delayed_routing_key(5, "lab.delete"),
    )
    assert (letter.made_by, letter.cause, letter.routing_key) == ("container", "slow_stop", "lab.delete")


def test_what_somebody_put_there_by_hand_is_of_unknown_cause() -> None:
    letter = read(b"hello", None, routing_key="celery.dlq")
    assert (letter.made_by, letter.cause, letter.task_id) == ("unknown", "unknown", None)
    assert letter.reason == "nothing says why it is here"
    assert letter.problem is not None


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        (make_task(name="celery_workers.grade_lab", kwargs={}), "is unknown"),
        (make_task(kwargs=create_kwargs(lab_instance_id=" 7")), "lab_instance_id"),
        (make_delete(unsupported={"chain": [1]}), "asks for chain"),
    ],
    ids=["unknown task", "wrong argument", "follow-up"],
)
def test_what_no_container_performs_has_a_problem(task: Any, problem: str) -> None:
    body, sent = encode(task)
    assert problem in str(read(body, sent["headers"]).problem)


def test_the_lab_is_the_one_that_the_task_would_change() -> None:
    assert of_container(**{"lab-instance-id": 9}).lab_instance_id == 7


def test_each_death_has_a_key_of_its_own() -> None:
    first = of_container(**{"dead-at": DIED.isoformat()})
    second = of_container(**{"dead-at": DIED.replace(minute=1).isoformat()})
    other_body = read(b"a", {"id": "t"})
    assert len({first.key, second.key, other_body.key, read(b"b", {"id": "t"}).key}) == 4
    assert read(b"b", {"id": "t"}).key == read(b"b", {"id": "t"}).key


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63),
        st.floats(),
        st.text(),
        st.binary(),
        st.datetimes(),
        st.decimals(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.text(), st.binary()), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        *sorted(why(make_delete())),
        *("id", "task", "retries", "eta", "expires", "compression", "timelimit", "stamps"),
        *("x-death", "x-last-death-reason", "x-last-death-queue", "autolabs_first_error"),
    ]
)


@given(
    body=st.binary(max_size=200),
    headers=st.none() | st.dictionaries(NAMES, VALUES),
    routing_key=st.text() | st.binary(),
    texts=st.dictionaries(st.sampled_from(["content_type", "content_encoding"]), st.text() | st.binary()),
)
def test_nothing_makes_reading_fail(body: bytes, headers: Any, routing_key: Any, texts: Any) -> None:
    letter = read(body, headers, routing_key=routing_key, **texts)
    assert letter.problem is not None
    assert len(letter.key) == 64
    assert json.dumps(plain_json(headers or {}), allow_nan=False)
    assert printable(letter.reason).isprintable()


def test_a_value_is_kept_in_a_form_that_postgresql_takes() -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = {"a": deep}
    odd = {b"\xff": "\x00\ud800", "n": math.nan, "d": Decimal("1.5"), "t": DIED, "deep": deep, "big": 2**63}
    kept = plain_json(odd)
    assert (kept["\\xff"], kept["n"], kept["d"]) == ("\\x00\\ud800", "nan", "1.5")
    assert (kept["t"], kept["big"]) == (str(DIED), 2**63)
    assert "nested too deep" in json.dumps(kept)
    assert plain_text(None) is None


@pytest.mark.parametrize(
    ("conditions", "matches"),
    [
        ({}, True),
        ({"lab": 7}, True),
        ({"lab": 8}, False),
        ({"category": "TEMPORARY_RESOURCE_ERROR", "cause": "slow_stop"}, True),
        ({"category": "TEMPORARY_RESOURCE_ERROR", "cause": "expired"}, False),
        ({"task": "celery_workers.delete_lab_pod"}, True),
        ({"ids": ("other", "t")}, True),
        ({"ids": ("other",)}, False),
        ({"ids": ("t",), "lab": 8}, False),
    ],
)
def test_a_message_is_meant_when_all_conditions_hold(conditions: Any, matches: bool) -> None:
    assert Selector(**conditions).matches(of_container()) is matches


def test_a_key_is_named_by_its_first_six_characters_or_more() -> None:
    letter = of_container()
    wanted = [letter.key[:5], letter.key[:6], letter.key[:12].upper(), letter.key, letter.key + "0"]
    assert [Selector(ids=(name,)).matches(letter) for name in wanted] == [False, True, True, True, False]
