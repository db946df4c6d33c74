"""Replace the spares that wait with an earlier image, so that changed code takes the next message.

A rollout in production lets them serve first (`rollout.strategy: gradual`); who develops would
wonder why the old code answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

NAMESPACE = "platform"
OF_SCALED_JOBS = "scaledjob.keda.sh/name"


def replace_outdated(kubectl: Callable[..., str], image: str) -> int:
    """Delete the Jobs of outdated spares; KEDA makes new ones at its next look."""
    listed = json.loads(
        kubectl("get", "pods", "--namespace", NAMESPACE, "-l", OF_SCALED_JOBS, "--output=json")
    )
    jobs = sorted(outdated(listed["items"], image))
    if jobs:
        # A spare that claims a message in this moment gives it back: that is what its SIGTERM does.
        kubectl(
            *("delete", "jobs", "--namespace", NAMESPACE, "--ignore-not-found", "--wait=false"),
            *jobs,
        )
    return len(jobs)


def outdated(pods: list[dict[str, Any]], image: str) -> set[str]:
    """Return the Jobs of pods that wait for a message (not Ready) with another image."""
    return {
        pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]
        for pod in pods
        if pod["status"].get("phase") in ("Pending", "Running")
        and pod["spec"]["containers"][0]["image"] != image
        and not any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in pod["status"].get("conditions", [])
        )
    }
