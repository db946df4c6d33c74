"""Whatever stands in a text field of a payload, the objects of a lab keep their structure."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from dispatcher.errors import InvalidTask
from dispatcher.ids import read_id
from dispatcher.tasks import CREATE_LAB_POD, DELETE_LAB_POD, CreateLabPod, parse_payload
from jobs.config import naming
from jobs.config.lab_settings import LabSettings
from jobs.config.manifests import NETWORK_POLICY_TEMPLATE, POD_TEMPLATE, make_lab_manifests
from jobs.config.stored import DEFAULTS
from tests.support.cluster import templates
from tests.support.cluster.templates import shape
from tests.support.factories import IMAGE, create_kwargs

TEMPLATES = {
    "own": (templates.POD_AND_SERVICE, templates.NETWORK_POLICY),
    "default": ((DEFAULTS / POD_TEMPLATE).read_bytes(), (DEFAULTS / NETWORK_POLICY_TEMPLATE).read_bytes()),
}
#: Field -> a valid value, which is mutated too.
TEXTS = {
    "docker_image": IMAGE,
    "resources.cpu": "500m",
    "resources.memory": "512Mi",
    "resources.storage": "1Gi",
}
ENORMOUS = {"cpu": "9999999", "memory": "999999999999999Ti", "storage": "999999999999999Ti"}
HOSTILE = st.sampled_from(
    [
        "demo:1\n  hostNetwork: true\n---\nkind: Secret",
        '"}\n      securityContext: {privileged: true}',
        "${namespace}/${docker_image}:1",
        "../../../etc/passwd",
        "7,app.kubernetes.io/managed-by=autolabs-jobs",
        '1"\n    lab_instance_id: "1',
        "!!python/object/apply:os.system ['true']",
        "&a [*a, *a]",
        "{{ . }} %s {0} $(id) `id`",
        "\x00\u2028\u202e\ud800",
    ]
)


def hostile(valid: str) -> st.SearchStrategy[str]:
    """Return anything, and what is nearly or really valid."""
    pieces = st.tuples(
        st.integers(0, len(valid)), HOSTILE | st.text(max_size=3) | st.sampled_from("\n\r\t:{}[]")
    )
    return HOSTILE | st.text() | pieces.map(lambda at: valid[: at[0]] + at[1] + valid[at[0] :])


def arguments(field: str, value: Any) -> dict[str, Any]:
    name, _, key = field.partition(".")
    return create_kwargs(**{name: {key: value} if key else value})


def objects(payload: CreateLabPod, kind: str) -> list[dict[str, Any]]:
    pod, policy = TEMPLATES[kind]
    made = make_lab_manifests(
        payload,
        LabSettings(allowed_images=["*"], max_resources=ENORMOUS),
        namespace="labs",
        pod_template=pod,
        network_policy_template=policy,
    )
    return [made.pod, made.service, made.network_policy]


def check(payload: CreateLabPod, kind: str) -> None:
    made, plain = objects(payload, kind), objects(CreateLabPod(**create_kwargs()), kind)
    assert shape(made) == shape(plain)
    for item, like in zip(made, plain, strict=True):
        assert item["metadata"]["labels"] == like["metadata"]["labels"]
        assert item["metadata"]["namespace"] == "labs"
        # What the API server would check: a name that is one path segment.
        name = item["metadata"]["name"]
        assert name.startswith("lab-instance-12345")
        assert len(name) <= 63
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    # One more reading and writing makes nothing else of it.
    assert yaml.safe_load(yaml.safe_dump(made, allow_unicode=False)) == made


def refused_field(name: str, kwargs: dict[str, Any]) -> str | None:
    try:
        parse_payload(name, kwargs=kwargs)
    except InvalidTask as exc:
        return exc.field
    return None


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("field", TEXTS)
@given(st.data())
def test_no_text_changes_the_structure_of_the_objects(field: str, kind: str, data: st.DataObject) -> None:
    kwargs = arguments(field, data.draw(hostile(TEXTS[field])))
    if refused := refused_field(CREATE_LAB_POD, kwargs):
        assert refused == field
    else:
        check(CreateLabPod(**kwargs), kind)


@pytest.mark.parametrize("kind", TEMPLATES)
@given(value=hostile(IMAGE))
def test_not_even_one_that_nobody_checked(kind: str, value: str) -> None:
    payload = CreateLabPod(**create_kwargs())
    object.__setattr__(payload, "docker_image", value)
    check(payload, kind)


@pytest.mark.parametrize(
    "field", ["lab_instance_id", "lab_id", "student_id", "network_isolated", "resources"]
)
@given(value=HOSTILE | st.text())
def test_a_text_where_none_belongs_is_refused(field: str, value: str) -> None:
    assume(read_id(value) is None)
    with pytest.raises(InvalidTask) as caught:
        parse_payload(CREATE_LAB_POD, kwargs=create_kwargs(**{field: value}))
    assert caught.value.field == field


@given(key=HOSTILE | st.text())
def test_no_key_is_added_to_a_payload(key: str) -> None:
    for kwargs in (create_kwargs(**{f"x{key}": 1}), create_kwargs(resources={f"x{key}": "1"})):
        with pytest.raises(InvalidTask):
            parse_payload(CREATE_LAB_POD, kwargs=kwargs)


@given(name=hostile("lab-instance-7-demo"))
def test_a_pod_name_is_one_segment_of_a_path(name: str) -> None:
    if refused := refused_field(DELETE_LAB_POD, {"lab_instance_id": 7, "k8s_pod_name": name}):
        assert refused == "k8s_pod_name"
    else:
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@given(text=HOSTILE | st.text())
def test_a_name_made_of_any_text_is_a_dns_label(text: str) -> None:
    name = naming.lab_object_name(2**63 - 1, text)
    assert len(name) <= 63
    assert name[0].isalpha()
    assert name[-1] != "-"
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
