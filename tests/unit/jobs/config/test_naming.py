from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.tasks import _IMAGE
from jobs.config.naming import belongs_to_lab, image_base_name, lab_labels, lab_object_name, lab_selector

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
ids = st.integers(1, 2**63 - 1)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("python", "lab-instance-7-python"),
        ("registry.gitlab.com/autolabs/labs/demo:1.0.0", "lab-instance-7-demo"),
        ("localhost:5000/my_lab.v2", "lab-instance-7-my-lab-v2"),
        ("host:5000/a/b@sha256:" + "0" * 64, "lab-instance-7-b"),
        ("x/" + "long-" * 20 + "name:tag", "lab-instance-7-long-long-long-long-long-long-long-long-long-lon"),
    ],
)
def test_the_name_tells_the_lab_and_its_image(image: str, name: str) -> None:
    assert lab_object_name(7, image) == name


def test_the_cut_name_does_not_end_in_a_dash() -> None:
    # 15 characters stand before the base name: the cut falls right behind a dash.
    assert not lab_object_name(7, "x/" + "a" * 47 + "-b").endswith("-")


@given(ids, st.from_regex(_IMAGE, fullmatch=True))
def test_every_name_is_a_dns_label(lab_instance_id: int, image: str) -> None:
    name = lab_object_name(lab_instance_id, image)
    assert len(name) <= 63
    assert DNS_1035.fullmatch(name)
    assert name.startswith(f"lab-instance-{lab_instance_id}-{image_base_name(image)[:3].rstrip('-')}")


@given(ids, ids, ids)
def test_every_label_is_valid(lab_instance_id: int, lab_id: int, student_id: int) -> None:
    labels = lab_labels(lab_instance_id, lab_id, student_id)
    assert all(len(value) <= 63 and LABEL_VALUE.fullmatch(value) for value in labels.values())
    assert belongs_to_lab({"metadata": {"labels": labels}}, lab_instance_id)
    assert not belongs_to_lab({"metadata": {"labels": labels}}, lab_instance_id + 1)
    assert all(f"{key}={labels[key]}" in lab_selector(lab_instance_id) for key in ("lab_instance_id",))


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"metadata": None},
        {"metadata": {"labels": None}},
        {"metadata": {"labels": {}}},
        {"metadata": {"labels": {"lab_instance_id": "7"}}},
        {"metadata": {"labels": {"lab_instance_id": "7", "app.kubernetes.io/managed-by": "Helm"}}},
        {"metadata": {"labels": {"lab_instance_id": 7, "app.kubernetes.io/managed-by": "autolabs-jobs"}}},
    ],
)
def test_what_lacks_our_labels_belongs_to_no_lab(manifest: dict[str, object]) -> None:
    assert not belongs_to_lab(manifest, 7)
