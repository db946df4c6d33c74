"""`python -m jobs` with an oddity that no setting can bring about; like all tests, this is in no image.

TEST_ODDITY is `bug`, an error at the step "rendered" that nothing expects; `rival`, somebody else who makes
the lab's Pod between each look for it and our own attempt, and then takes it away; or `hasty`, a job that
waits some seconds where another waits up to a minute, for Pods that go and for nodes that take a change back.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
from functools import partialmethod

from jobs import steps
from jobs.cluster import client, lab_objects
from jobs.handlers import resize

#: Seconds; the Pods for which a hasty job waits stay for longer.
_HASTE_S = 5.0


def _break(step: str) -> None:
    if step == "rendered":
        raise ZeroDivisionError("a bug at rendered")


_create = client.Cluster.create


def _kubectl(*words: str, given: bytes = b"") -> None:
    subprocess.run(["kubectl", *words], input=given, stdout=subprocess.DEVNULL, check=True, timeout=30)


def _create_beside_rival(
    self: client.Cluster, path: str, manifest: client.Manifest
) -> client.Manifest | None:
    _kubectl("create", "--filename=-", given=json.dumps(manifest).encode())
    created = _create(self, path, manifest)
    name, namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
    _kubectl("delete", "pod", name, f"--namespace={namespace}", "--grace-period=0", "--force")
    return created


def _have_a_rival() -> None:
    client.Cluster.create = _create_beside_rival  # type: ignore[method-assign]  # a test's own fault
    lab_objects.GONE_TIMEOUT_S = 3.0


def _hasten() -> None:
    hasty = partialmethod(lab_objects.LabObjects.wait_gone, timeout_s=_HASTE_S)
    lab_objects.LabObjects.wait_gone = hasty  # type: ignore[method-assign,assignment]  # as above
    resize.UNDO_S = _HASTE_S


_ODDITIES = {"bug": lambda: steps.observers.append(_break), "rival": _have_a_rival, "hasty": _hasten}


if __name__ == "__main__":
    _ODDITIES[os.environ["TEST_ODDITY"]]()
    runpy.run_module("jobs", run_name="__main__", alter_sys=True)
