from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from dispatcher.failure_contract import Category
from jobs.cluster import access as cluster_access
from jobs.cluster.access import ClusterAccess, kubeconfig_access, service_account_access
from jobs.cluster.client import Cluster
from jobs.errors import PermanentError


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def kubeconfig(user: dict[str, Any] | None = None, **cluster: Any) -> bytes:
    ours = {"server": "https://api:6443/", "certificate-authority-data": b64("CA"), **cluster}
    config = {
        "current-context": "c",
        "contexts": [{"name": "other"}, {"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {key: v for key, v in ours.items() if v is not None}}],
        "users": [{"name": "u", "user": {"token": "token-secret"} if user is None else user}],
    }
    return yaml.safe_dump(config).encode()


def refusal(content: bytes) -> str:
    with pytest.raises(PermanentError, match="administrator must correct it") as caught:
        kubeconfig_access(content)
    assert caught.value.category is Category.PERMANENT_PERMISSION_ERROR
    return caught.value.evidence


def test_a_token_is_used_and_not_shown() -> None:
    access = kubeconfig_access(kubeconfig())
    assert (access.server, access.ca_pem) == ("https://api:6443", "CA")
    assert access.authorization() == {"authorization": "Bearer token-secret"}
    assert "token-secret" not in repr(access)


def test_a_client_certificate_goes_to_a_private_file() -> None:
    user = {"client-certificate-data": b64("CERT"), "client-key-data": b64("KEY")}
    access = kubeconfig_access(kubeconfig(user))
    assert access.authorization() == {}
    path = Path(access.client_pem_file or "")
    assert path.read_text() == "CERT\nKEY"
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()


@pytest.mark.parametrize(
    "user",
    [
        {"exec": {"command": "sh", "args": ["-c", "id"]}},
        {"token": "t", "exec": {"command": "sh"}},
        {"auth-provider": {"name": "gcp", "config": {"cmd-path": "sh"}}},
        {"tokenFile": "/etc/shadow"},
        {"client-certificate": "/etc/x", "client-key": "/etc/y"},
        {"username": "u", "password": "p"},
        {"token": "t", "as": "system:masters"},
    ],
    ids=lambda user: next(iter(user)),
)
def test_programs_files_and_impersonation_are_refused(user: dict[str, Any]) -> None:
    assert "refused; allowed are client-certificate-data, client-key-data, token" in refusal(kubeconfig(user))


@pytest.mark.parametrize(
    "cluster",
    [{"certificate-authority": "/etc/x"}, {"insecure-skip-tls-verify": True}, {"proxy-url": "http://x"}],
    ids=lambda cluster: next(iter(cluster)),
)
def test_what_weakens_the_connection_is_refused(cluster: dict[str, Any]) -> None:
    assert "refused" in refusal(kubeconfig(**cluster))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "TypeError"),
        (b"text", "TypeError"),
        (b"[1]", "TypeError"),
        (b"a: [", "no YAML in line 2, column 1"),
        (b"a: " + b"[" * 100_000, "nested deeper than 50 levels"),
        (b"\xff\xff", "Error"),
        (kubeconfig().replace(b"current-context: c", b"current-context: gone"), "contexts has no 'gone'"),
        (kubeconfig(server="http://api"), "must be an https URL"),
        (kubeconfig(server=None), "KeyError: 'server'"),
        (kubeconfig(server=5), "must be an https URL"),
        (kubeconfig().replace(b64("CA").encode(), b"'%%%'"), "not base64"),
        (kubeconfig().replace(b"certificate-authority-data", b"token"), "refused"),
        (kubeconfig({}), "client-certificate-data"),
        (kubeconfig({"client-certificate-data": b64("x")}), "client-key-data"),
        (kubeconfig({"token": "a\nb"}), "token"),
        (kubeconfig({"token": ""}), "token"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_says_why(content: bytes, problem: str) -> None:
    assert problem in refusal(content)


def test_a_ca_that_is_no_certificate_is_a_permission_error() -> None:
    with pytest.raises(PermanentError, match="administrator") as caught:
        Cluster(ClusterAccess("https://api", ca_pem="CA"))
    assert caught.value.category is Category.PERMANENT_PERMISSION_ERROR


def test_the_service_account_token_is_read_anew_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_access, "_SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    (tmp_path / "ca.crt").write_text("CA")
    (tmp_path / "token").write_text("first\n")
    access = service_account_access()
    assert access.server == "https://[fd00::1]:6443"
    assert access.authorization() == {"authorization": "Bearer first"}
    (tmp_path / "token").write_text("second")
    assert access.authorization() == {"authorization": "Bearer second"}


def test_without_a_service_account_the_administrator_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_access, "_SERVICE_ACCOUNT", tmp_path)
    with pytest.raises(PermanentError, match="mount a ServiceAccount token") as caught:
        service_account_access()
    assert caught.value.category is Category.PERMANENT_PERMISSION_ERROR


@pytest.mark.parametrize("line", [b"token: {0}: x", b'token: {0} "unclosed: "', b"- {0}: [x"])
def test_a_kubeconfig_that_does_not_parse_is_not_quoted(line: bytes) -> None:
    secret = b"RVktLS0tLQpNSUlFcEFJQkFBS0NBUUVB"
    content = b"users:\n- name: u\n  user:\n    " + line.replace(b"{0}", secret)
    assert secret.decode() not in refusal(content)
