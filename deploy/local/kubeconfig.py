"""kubeconfig files; JSON, which every YAML reader accepts."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from deploy.local.settings import API_URL


def write(path: Path, pki: Path, certificate: str) -> None:
    """Write a kubeconfig with the certificates embedded, readable by its owner only."""

    def embedded(name: str) -> str:
        return base64.b64encode((pki / name).read_bytes()).decode()

    name = "autolabs-local"
    cluster = {"server": API_URL, "certificate-authority-data": embedded("ca.crt")}
    user = {
        "client-certificate-data": embedded(f"{certificate}.crt"),
        "client-key-data": embedded(f"{certificate}.key"),
    }
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": certificate, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": certificate}}],
        "current-context": name,
    }
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(json.dumps(config, indent=1))
