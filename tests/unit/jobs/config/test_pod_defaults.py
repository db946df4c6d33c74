"""What a lab's Pod carries though its template does not say so, and how a template says otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.config.manifests import make_lab_manifests
from jobs.config.naming import SPEC_HASH
from jobs.config.pod_defaults import KEEP_ON_NODE, apply_defaults
from tests.support.cluster import templates
from tests.support.factories import make_payload
from tests.unit.jobs.config.test_manifests import SETTINGS_OF_LABS

EVICT, DISRUPT = KEEP_ON_NODE


def completed(annotations: object) -> dict[str, Any]:
    pod: dict[str, Any] = {"metadata": {"annotations": annotations}, "spec": {}}
    apply_defaults(pod)
    its: dict[str, Any] = pod["metadata"]["annotations"]
    return its


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        (None, {EVICT: "false", DISRUPT: "true"}),
        ({}, {EVICT: "false", DISRUPT: "true"}),
        ({"own": "x", "empty": ""}, {EVICT: "false", DISRUPT: "true", "own": "x", "empty": ""}),
        ({EVICT: "true"}, {EVICT: "true", DISRUPT: "true"}),
        ({DISRUPT: "30m"}, {EVICT: "false", DISRUPT: "30m"}),
        ({EVICT: None, DISRUPT: ""}, {}),
    ],
    ids=["none", "empty", "others", "says otherwise", "karpenter's duration", "removed"],
)
def test_an_autoscaler_leaves_a_lab_alone_unless_its_template_says_otherwise(
    annotations: object, expected: dict[str, str]
) -> None:
    assert completed(annotations) == expected


@pytest.mark.parametrize("said", ["", f"  annotations: {{{EVICT}: null}}\n"], ids=["silent", "removed"])
def test_every_pod_that_is_made_has_gone_through_the_defaults(said: str) -> None:
    template = templates.POD_AND_SERVICE.replace(b"metadata:\n", b"metadata:\n" + said.encode(), 1)
    made = make_lab_manifests(
        make_payload(),
        SETTINGS_OF_LABS,
        namespace="labs",
        pod_template=template,
        network_policy_template=templates.NETWORK_POLICY,
    )
    annotations = made.pod["metadata"]["annotations"]
    assert (EVICT in annotations, annotations[DISRUPT]) == (not said, "true")
    assert SPEC_HASH in annotations
