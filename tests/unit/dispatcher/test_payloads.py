from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dispatcher
from dispatcher import InvalidTask
from dispatcher.broker.topology import BINDINGS
from dispatcher.tasks import (
    CLEANUP_TIMEOUT_LABS,
    CREATE_LAB_POD,
    DELETE_LAB_POD,
    HEALTH_CHECK_PODS,
    PAYLOADS,
    ROUTING_KEYS,
    SCALE_LAB_RESOURCES,
    SYNC_LAB_STATUS,
    CleanupTimeoutLabs,
    DeleteLabPod,
    accept_payload,
    lab_instance_id_of,
    parse_payload,
    payload_kwargs,
)
from tests.support.broker.routing import queue_for
from tests.support.factories import IMAGE, create_kwargs, make_payload

DIGEST = "sha256:" + "a" * 64
#: What other languages write for an id -> the id.
TAKEN = {"123": 123, 123.0: 123, str(2**63 - 1): 2**63 - 1, float(2**53): 2**53}
#: What a person reads as an id, and what is not taken for one -> the id.
MEANT = {
    **dict.fromkeys((" 7", "7\n", "+7", "007", "7.0", "7e0", chr(0x667)), 7),
    "1_000": 1000,
    "9223372036854775807.0": 2**63 - 1,
}
POD_NAMES: list[Any] = ["", "../x", "Lab", "a" * 64, 7, [], {}]
UNREADABLE = [
    *("", " ", "x", "-1", "0", "7.5", "NaN", "inf", "1e400", "1e999999999", str(2**63), "9" * 5000, "0x10"),
    *(0.0, -1.0, 1.5, 1e18, float("nan"), float("inf"), True, False, None, [7], {"id": 7}, b"7"),
]


@pytest.mark.parametrize("value", TAKEN, ids=repr)
def test_an_id_is_taken_as_other_languages_write_it(value: Any) -> None:
    names = ("lab_instance_id", "lab_id", "student_id")
    payload = parse_payload(CREATE_LAB_POD, (), create_kwargs(**dict.fromkeys(names, value)))
    assert {payload_kwargs(payload)[name] for name in names} == {TAKEN[value]}
    assert type(payload_kwargs(payload)["lab_id"]) is int


@pytest.mark.parametrize("value", [*TAKEN, *MEANT, *UNREADABLE], ids=lambda value: repr(value)[:40])
def test_the_lab_of_a_task_is_found_by_what_can_be_read(value: Any) -> None:
    known = {repr(key): lab for key, lab in (TAKEN | MEANT).items()}
    expected = known.get(repr(value))
    assert lab_instance_id_of([], {"lab_instance_id": value}) == expected
    assert lab_instance_id_of([value], {}) == expected


@pytest.mark.parametrize("value", [*TAKEN, *MEANT], ids=repr)
def test_a_stop_is_done_for_whatever_means_one_lab(value: Any) -> None:
    payload, passed_over = accept_payload(DELETE_LAB_POD, [], {"lab_instance_id": value})
    assert payload == DeleteLabPod(lab_instance_id=(TAKEN | MEANT)[value])
    assert ("lab_instance_id" in passed_over) == (value in MEANT)


@pytest.mark.parametrize("value", UNREADABLE, ids=lambda value: repr(value)[:40])
def test_a_stop_of_no_lab_is_refused(value: Any) -> None:
    with pytest.raises(InvalidTask) as caught:
        accept_payload(DELETE_LAB_POD, [], {"lab_instance_id": value})
    assert caught.value.field == "lab_instance_id"


@pytest.mark.parametrize(
    ("args", "kwargs", "fields"),
    [
        *[([], {"k8s_pod_name": name}, ["k8s_pod_name"]) for name in POD_NAMES],
        ([], {"k8s_pod_name": None}, []),
        ([], {"force": "true"}, ["force"]),
        ([], {"force": None, "reason": "bored", "x y": 1}, ["force", "reason", "'x y'"]),
        ([7, "", 1, 2], {}, ["k8s_pod_name", "force", "args"]),
        ([7], {}, []),
        (["7"], {}, []),
    ],
)
def test_a_stop_passes_over_what_it_does_not_need(
    args: list[Any], kwargs: dict[str, Any], fields: list[str]
) -> None:
    payload, passed_over = accept_payload(DELETE_LAB_POD, args, {"lab_instance_id": 7, **kwargs})
    assert payload == DeleteLabPod(lab_instance_id=7)
    assert list(passed_over) == fields


@pytest.mark.parametrize(
    ("args", "kwargs", "problem"), [([7], {"lab_instance_id": 8}, "is not the same"), ([], {}, "is missing")]
)
def test_a_stop_of_two_labs_or_none_is_refused(args: list[Any], kwargs: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidTask, match=problem):
        accept_payload(DELETE_LAB_POD, args, kwargs)


def test_no_other_task_passes_over_anything() -> None:
    with pytest.raises(InvalidTask, match="x: is not an argument"):
        accept_payload(CLEANUP_TIMEOUT_LABS, [], {"x": 1})


@pytest.mark.parametrize(
    "changes",
    [
        {"lab_instance_id": 1},
        {"lab_instance_id": 2**63 - 1},
        {"docker_image": "python"},
        {"docker_image": "python:3.12-slim"},
        {"docker_image": "localhost:5000/a/b_c/d--e:v1"},
        {"docker_image": f"registry.example/x@{DIGEST}"},
        {"docker_image": f"x:1@{DIGEST}"},
        {"resources": {}},
        {"resources": {"cpu": "500m", "memory": "512Mi", "storage": "1Gi"}},
        {"resources": {"cpu": "0.5"}},
        {"resources": {"cpu": "2"}},
        {"resources": {"memory": "1G"}},
        {"resources": {"memory": "16Mi"}},
        {"resources": {"memory": "16777216"}},
        {"resources": {"memory": "16778k"}},
        {"resources": None},
        {"network_isolated": False},
    ],
    ids=repr,
)
def test_a_valid_create_is_accepted(changes: dict[str, Any]) -> None:
    payload = parse_payload(CREATE_LAB_POD, (), create_kwargs(**changes))
    assert parse_payload(CREATE_LAB_POD, (), payload_kwargs(payload)) == payload


@pytest.mark.parametrize(
    ("changes", "field", "allowed"),
    [
        ({"lab_instance_id": 0}, "lab_instance_id", "an integer from 1"),
        ({"lab_instance_id": -1}, "lab_instance_id", "an integer from 1"),
        ({"lab_instance_id": 2**63}, "lab_instance_id", "an integer from 1 to 9223372036854775807"),
        *[
            ({"lab_instance_id": value}, "lab_instance_id", "is not allowed; it must be an integer from 1")
            for value in (*UNREADABLE, *MEANT)
        ],
        ({"lab_instance_id": True}, "lab_instance_id", "True is not allowed"),
        ({"lab_instance_id": None}, "lab_instance_id", "an integer"),
        ({"lab_id": None}, "lab_id", "an integer"),
        ({"student_id": [1]}, "student_id", "an integer"),
        ({"docker_image": ""}, "docker_image", "an image reference"),
        ({"docker_image": 5}, "docker_image", "an image reference"),
        ({"docker_image": "Upper/Case"}, "docker_image", "an image reference"),
        ({"docker_image": "a b"}, "docker_image", "an image reference"),
        ({"docker_image": "x\n"}, "docker_image", "an image reference"),
        ({"docker_image": "http://host/x"}, "docker_image", "an image reference"),
        ({"docker_image": "x@sha256:abc"}, "docker_image", "an image reference"),
        ({"docker_image": "x:" + "t" * 129}, "docker_image", "an image reference"),
        ({"docker_image": "a/" * 300 + "x"}, "docker_image", "..."),
        ({"docker_image": "${student_id}"}, "docker_image", "an image reference"),
        ({"resources": ["cpu"]}, "resources", "a mapping"),
        ({"resources": "500m"}, "resources", "a mapping"),
        ({"resources": {"gpu": "1"}}, "resources.gpu", "allowed are cpu, memory, storage"),
        ({"resources": {"cpu": "0"}}, "resources.cpu", '"500m" or "2"'),
        ({"resources": {"cpu": "0m"}}, "resources.cpu", "quantity"),
        ({"resources": {"cpu": "-1"}}, "resources.cpu", "quantity"),
        ({"resources": {"cpu": 1}}, "resources.cpu", "quantity"),
        ({"resources": {"cpu": "1e3"}}, "resources.cpu", "quantity"),
        ({"resources": {"cpu": "0.0001"}}, "resources.cpu", "quantity"),
        ({"resources": {"memory": "512MB"}}, "resources.memory", '"512Mi" or "2Gi"'),
        ({"resources": {"memory": "0Mi"}}, "resources.memory", "quantity"),
        ({"resources": {"memory": "1"}}, "resources.memory", "'1' is not allowed; it must be at least 16Mi"),
        ({"resources": {"memory": "512"}}, "resources.memory", "a number without a unit is bytes"),
        ({"resources": {"memory": "1Mi"}}, "resources.memory", "at least 16Mi"),
        ({"resources": {"memory": "16M"}}, "resources.memory", "at least 16Mi"),
        ({"resources": {"memory": "16383Ki"}}, "resources.memory", "at least 16Mi"),
        ({"resources": {"storage": "1 Gi"}}, "resources.storage", '"1Gi"'),
        ({"resources": {"memory": "512m"}}, "resources.memory", "quantity"),
        ({"network_isolated": 1}, "network_isolated", "true or false"),
        ({"network_isolated": "yes"}, "network_isolated", "true or false"),
        ({"network_isolated": None}, "network_isolated", "true or false"),
    ],
    ids=repr,
)
def test_an_unacceptable_create_names_the_field_and_what_is_allowed(
    changes: dict[str, Any], field: str, allowed: str
) -> None:
    with pytest.raises(InvalidTask) as caught:
        parse_payload(CREATE_LAB_POD, (), create_kwargs(**changes))
    assert caught.value.field == field
    assert allowed in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("changes", "field", "allowed"),
    [
        ({"lab_instance_id": "x"}, "lab_instance_id", "an integer"),
        ({"k8s_pod_name": ""}, "k8s_pod_name", "at most 63"),
        ({"k8s_pod_name": "a" * 64}, "k8s_pod_name", "at most 63"),
        ({"k8s_pod_name": "../x"}, "k8s_pod_name", "at most 63"),
        ({"k8s_pod_name": "Lab"}, "k8s_pod_name", "[a-z0-9-]"),
        ({"k8s_pod_name": 1}, "k8s_pod_name", "at most 63"),
        ({"force": "true"}, "force", "true or false"),
        ({"grace": 1}, "grace", "allowed are lab_instance_id, k8s_pod_name, force"),
    ],
    ids=repr,
)
def test_an_unacceptable_delete_names_the_field_and_what_is_allowed(
    changes: dict[str, Any], field: str, allowed: str
) -> None:
    with pytest.raises(InvalidTask) as caught:
        parse_payload(DELETE_LAB_POD, (), {"lab_instance_id": 1, **changes})
    assert caught.value.field == field
    assert allowed in str(caught.value)


@pytest.mark.parametrize("scheme", ["https://", "docker://", ""])
def test_a_password_in_the_name_of_an_image_is_not_repeated(scheme: str) -> None:
    with pytest.raises(InvalidTask, match=r"registry\.example") as raised:
        make_payload(docker_image=f"{scheme}teacher:hunter2@registry.example/lab:1")
    assert "hunter2" not in str(raised.value)


def test_arguments_may_come_by_position() -> None:
    assert parse_payload(CREATE_LAB_POD, [12345, 7, 42, IMAGE]) == make_payload()
    assert parse_payload(DELETE_LAB_POD, [5, "pod", True]) == DeleteLabPod(
        lab_instance_id=5, k8s_pod_name="pod", force=True
    )


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "field", "expected"),
    [
        (CREATE_LAB_POD, [], {}, "lab_instance_id", "is missing"),
        (CREATE_LAB_POD, [1, 2], {}, "student_id", "needs lab_instance_id, lab_id, student_id, docker_image"),
        (CREATE_LAB_POD, [1], create_kwargs(), "lab_instance_id", "given twice"),
        (CREATE_LAB_POD, list(range(9)), {}, "args", "9 positional arguments; allowed are 6"),
        (CLEANUP_TIMEOUT_LABS, [], {"x": 1}, "x", "allowed are dry_run, force"),
        (CLEANUP_TIMEOUT_LABS, [True] * 3, {}, "args", "allowed are 2"),
        ("celery_workers.nope", [], {}, "task", "allowed are celery_workers.create_lab_pod"),
        ("", [], {}, "task", "is unknown"),
    ],
)
def test_wrong_arguments_are_named(
    name: str, args: list[Any], kwargs: dict[str, Any], field: str, expected: str
) -> None:
    with pytest.raises(InvalidTask) as caught:
        parse_payload(name, args, kwargs)
    assert caught.value.field == field
    assert expected in str(caught.value)


@given(
    st.sampled_from([*PAYLOADS, "x"]),
    st.lists(st.none() | st.integers() | st.text() | st.lists(st.integers()), max_size=7),
    st.dictionaries(st.sampled_from([*create_kwargs(), "force", "x"]), st.none() | st.integers() | st.text()),
)
def test_any_arguments_are_a_payload_or_invalid(name: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidTask):
        assert parse_payload(name, args, kwargs).task_name == name


def test_cleanup_takes_no_arguments() -> None:
    assert parse_payload(CLEANUP_TIMEOUT_LABS) == CleanupTimeoutLabs()


def test_invalid_task_is_a_value_error_for_the_backend() -> None:
    assert issubclass(InvalidTask, ValueError)
    assert issubclass(InvalidTask, dispatcher.DispatcherError)


@pytest.mark.parametrize(
    ("resources", "field"), [([], "resources"), ("x", "resources"), ({"cpu": 2}, "resources.cpu")]
)
def test_create_lab_refuses_bad_resources_before_anything_is_published(resources: Any, field: str) -> None:
    client = dispatcher.Dispatcher("amqp://nobody@127.0.0.1:1/")
    with pytest.raises(InvalidTask) as caught:
        client.create_lab(**create_kwargs(resources=resources))
    assert caught.value.field == field


@pytest.mark.parametrize("task_id", ["", "x" * 256, "a\nb", 7])
def test_a_task_id_that_a_container_would_refuse_is_refused_here(task_id: Any) -> None:
    client = dispatcher.Dispatcher("amqp://nobody@127.0.0.1:1/")
    with pytest.raises(InvalidTask) as caught:
        client.delete_lab(lab_instance_id=1, task_id=task_id)
    assert caught.value.field == "task_id"


def test_every_task_is_routed_to_the_queue_of_its_priority() -> None:
    by_queue = {name.rpartition(".")[2]: queue_for(key) for name, key in ROUTING_KEYS.items()}
    assert by_queue == {
        "create_lab_pod": "celery.lab_operations",
        "delete_lab_pod": "celery.lab_operations.high",
        "scale_lab_resources": "celery.lab_operations.high",
        "health_check_pods": "celery.lab_operations.high",
        "cleanup_timeout_labs": "celery.cleanup",
        "sync_lab_status": "celery.cleanup",
    }
    assert sorted(key for keys in BINDINGS.values() for key in keys) == sorted(ROUTING_KEYS.values())


@pytest.mark.parametrize(
    ("resources", "field", "expected"),
    [
        ({}, "new_resources", "is empty; allowed are cpu, memory or both"),
        ({"storage": "2Gi"}, "new_resources.storage", "cannot be changed while a lab runs"),
        ({"cpu": "much"}, "new_resources.cpu", '"500m" or "2"'),
        ({"memory": "4Mi"}, "new_resources.memory", "'4Mi' is not allowed; it must be at least 16Mi"),
        ({"gpu": "1"}, "new_resources.gpu", "is unknown; allowed are cpu, memory"),
        (None, "new_resources", "must be a mapping"),
    ],
)
def test_a_resize_names_what_is_wrong(resources: Any, field: str, expected: str) -> None:
    with pytest.raises(InvalidTask) as caught:
        parse_payload(SCALE_LAB_RESOURCES, [], {"lab_instance_id": 7, "new_resources": resources})
    assert caught.value.field == field
    assert expected in str(caught.value)


@pytest.mark.parametrize("name", [CLEANUP_TIMEOUT_LABS, HEALTH_CHECK_PODS, SYNC_LAB_STATUS])
def test_options_of_a_periodic_task_are_true_or_false(name: str) -> None:
    assert parse_payload(name, [], {"force": True}).force is True  # type: ignore[union-attr]
    with pytest.raises(InvalidTask, match="must be true or false"):
        parse_payload(name, [], {"dry_run": "yes"})
