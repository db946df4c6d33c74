"""`python -m jobs` with an oddity that no setting can bring about; like all tests, this is in no image.

TEST_ODDITY is `bug`, an error at the step "rendered" that nothing expects, or `rival`, somebody else who
makes the lab's Pod between each look for it and our own attempt, and then takes it away.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess

from jobs import cluster, lab_objects, steps


def _break(step: str) -> None:
    if step == "rendered":
        raise ZeroDivisionError("a bug at rendered")


_create = cluster.Cluster.create


def _kubectl(*words: str, given: bytes = b"") -> None:
    subprocess.run(["kubectl", *words], input=given, stdout=subprocess.DEVNULL, check=True, timeout=30)


def _create_beside_rival(
    self: cluster.Cluster, path: str, manifest: cluster.Manifest
) -> cluster.Manifest | None:
    _kubectl("create", "--filename=-", given=json.dumps(manifest).encode())
    created = _create(self, path, manifest)
    name, namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
    _kubectl("delete", "pod", name, f"--namespace={namespace}", "--grace-period=0", "--force")
    return created


if __name__ == "__main__":
    if os.environ["TEST_ODDITY"] == "bug":
        steps.observers.append(_break)
    else:
        cluster.Cluster.create = _create_beside_rival  # type: ignore[method-assign]  # a test's own fault
        lab_objects.GONE_TIMEOUT_S = 3.0
    runpy.run_module("jobs", run_name="__main__", alter_sys=True)
