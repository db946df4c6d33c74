"""Small builders of Kubernetes objects, and the folders of generated kustomizations."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.local.paths import Layout

LABELS = {
    "app.kubernetes.io/part-of": "autolabs",
    "app.kubernetes.io/managed-by": "autolabs-local",
}


def make_secret(namespace: str, name: str, values: Mapping[str, str]) -> dict[str, Any]:
    """Make a Secret of plain strings."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/name": name, **LABELS},
        },
        "type": "Opaque",
        "stringData": dict(values),
    }


def write_kustomization(
    layout: Layout,
    name: str,
    *,
    folders: list[Path],
    objects: list[dict[str, Any]],
    images: Mapping[str, str],
    patches: list[dict[str, Any]] | None = None,
) -> Path:
    """Write a kustomization over other folders plus generated objects; return its folder.

    `images` maps a name to a full new one. Passwords are in it, so it is for root alone.
    """
    home = layout.state / "kustomize" / name
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    objects_file = home / "objects.json"
    objects_file.touch(mode=0o600)
    objects_file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        # kustomize refuses absolute paths
        "resources": [os.path.relpath(folder.resolve(), home.resolve()) for folder in folders]
        + ([objects_file.name] if objects else []),
        "images": [{"name": old, **image_override(new)} for old, new in images.items()],
        "patches": patches or [],
    }
    (home / "kustomization.yaml").write_text(json.dumps(content, indent=1))
    return home


def image_override(image: str) -> dict[str, str]:
    """Split an image as kustomize wants it; a registry's port is no tag."""
    if "@" in image:
        name, _, digest = image.partition("@")
        return {"newName": name, "digest": digest}
    name, colon, tag = image.rpartition(":")
    if not colon or "/" in tag:
        return {"newName": image, "newTag": "latest"}
    return {"newName": name, "newTag": tag}
