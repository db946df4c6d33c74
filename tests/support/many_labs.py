"""Labs as a create leaves them, made without one: manifests of the shipped templates, rows in bulk."""

from __future__ import annotations

import os
from functools import cache

from dispatcher.tasks import CreateLabPod
from jobs.configs import DEFAULTS, SETTINGS
from jobs.lab_settings import LabSettings, parse_settings
from jobs.manifests import NETWORK_POLICY_TEMPLATE, POD_TEMPLATE, LabManifests, make_lab_manifests


def lab_manifests(lab_instance_id: int, namespace: str) -> LabManifests:
    """Return the objects of a lab of the demo image, without the owner of the last two."""
    settings, pod_template, policy_template = _shipped()
    return make_lab_manifests(
        CreateLabPod(
            lab_instance_id=lab_instance_id, lab_id=7, student_id=42, docker_image=os.environ["LAB_IMAGE"]
        ),
        settings,
        namespace=namespace,
        pod_template=pod_template,
        network_policy_template=policy_template,
    )


@cache
def _shipped() -> tuple[LabSettings, bytes, bytes]:
    settings, *templates = (
        (DEFAULTS / name).read_bytes() for name in (SETTINGS, POD_TEMPLATE, NETWORK_POLICY_TEMPLATE)
    )
    return parse_settings(SETTINGS, settings), templates[0], templates[1]
