"""`python -m jobs` with an oddity that no setting can bring about; like all tests, this is in no image.

TEST_ODDITY is `bug`, an error at the step "rendered" that nothing expects, or `rival`, somebody else who
makes the lab's Pod between the container's look for it and its own apply.
"""

from __future__ import annotations

import copy
import json
import os
import runpy
import subprocess

from jobs import cluster, steps


def _break(step: str) -> None:
    if step == "rendered":
        raise ZeroDivisionError("a bug at rendered")


_apply = cluster.Cluster.apply


def _apply_after_rival(self: cluster.Cluster, path: str, manifest: cluster.Manifest) -> cluster.Manifest:
    other = copy.deepcopy(manifest)
    other["spec"]["containers"][0]["image"] = "registry.gitlab.com/autolabs/labs/other:1"
    subprocess.run(
        ["kubectl", "apply", "--server-side", "--field-manager=rival", "--filename=-"],
        input=json.dumps(other).encode(),
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=30,
    )
    return _apply(self, path, manifest)


if __name__ == "__main__":
    if os.environ["TEST_ODDITY"] == "bug":
        steps.observers.append(_break)
    else:
        cluster.Cluster.apply = _apply_after_rival  # type: ignore[method-assign,assignment]  # a test's own fault
    runpy.run_module("jobs", run_name="__main__", alter_sys=True)
