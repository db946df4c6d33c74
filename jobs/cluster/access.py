"""Find the API server and prove who we are: by the ServiceAccount, or by a stored kubeconfig.

A kubeconfig can name programs to run and files to read; both are refused, because whoever can
write the bucket would otherwise run code here.
"""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.failures import Failure

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """One API server and one identity."""

    server: str
    ca_pem: str
    #: Read anew for each connection, as projected tokens rotate.
    token_file: Path | None = None
    token: str | None = field(default=None, repr=False)
    #: PEM file with certificate and key, for urllib3, which takes no client key from memory.
    client_pem_file: str | None = None

    def authorization(self) -> dict[str, str]:
        token = self.token_file.read_text().strip() if self.token_file else self.token
        return {"authorization": f"Bearer {token}"} if token else {}


def service_account_access() -> ClusterAccess:
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    try:
        ca_pem = (_SERVICE_ACCOUNT / "ca.crt").read_text()
    except OSError as exc:
        raise Failure.CLUSTER_ACCESS_MISSING.error(evidence=str(exc)) from exc
    host = f"[{host}]" if ":" in host else host
    return ClusterAccess(f"https://{host}:{port}", ca_pem, token_file=_SERVICE_ACCOUNT / "token")


def kubeconfig_access(content: bytes) -> ClusterAccess:
    """Return access by the current context of a kubeconfig with inline data only."""
    import yaml

    from jobs.config.templates import MAX_DEPTH, nests_deeper

    try:
        if nests_deeper(content, MAX_DEPTH):
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        config = yaml.safe_load(content)
        context = _named(config, "contexts", config["current-context"])["context"]
        cluster = _named(config, "clusters", context["cluster"])["cluster"]
        user = _named(config, "users", context["user"])["user"]
        return _access(cluster, user)
    except yaml.MarkedYAMLError as exc:
        # Never its text, which quotes the line: a key, or a token.
        where = exc.problem_mark
        place = f" in line {where.line + 1}, column {where.column + 1}" if where else ""
        raise Failure.KUBECONFIG_INVALID.error(evidence=f"no YAML{place}: {exc.problem}") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as exc:
        raise Failure.KUBECONFIG_INVALID.error(evidence=f"{type(exc).__name__}: {exc}") from exc


def _named(config: dict[str, Any], section: str, name: str) -> dict[str, Any]:
    for entry in config[section]:
        if entry["name"] == name:
            return dict(entry)
    raise ValueError(f"{section} has no {name!r}")


def _access(cluster: dict[str, Any], user: dict[str, Any]) -> ClusterAccess:
    of_cluster = {"server", "certificate-authority-data"}
    of_user = {"token", "client-certificate-data", "client-key-data"}
    for part, names in ((cluster, of_cluster), (user, of_user)):
        if refused := sorted(set(part) - names):
            raise ValueError(f"{', '.join(refused)} refused; allowed are {', '.join(sorted(names))}")
    if not str(cluster["server"]).startswith("https://"):
        raise ValueError("server must be an https URL")
    ca_pem = _decoded(cluster["certificate-authority-data"])
    if "token" in user:
        if not str(user["token"]).isprintable() or not user["token"]:
            raise ValueError("token is not a printable text")
        return ClusterAccess(cluster["server"].rstrip("/"), ca_pem, token=str(user["token"]))
    pem = _decoded(user["client-certificate-data"]) + "\n" + _decoded(user["client-key-data"])
    descriptor, path = tempfile.mkstemp(suffix=".pem")  # mode 0600
    with os.fdopen(descriptor, "w") as file:
        file.write(pem)
    return ClusterAccess(cluster["server"].rstrip("/"), ca_pem, client_pem_file=path)


def _decoded(data: str) -> str:
    try:
        return base64.b64decode(data, validate=True).decode()
    except binascii.Error as exc:
        raise ValueError("inline data is not base64") from exc
