"""One certificate authority per start of the cluster, and what it signs; made with openssl."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploy.local.settings import API_SERVICE_IP, NODE_IP, NODE_NAME
from deploy.local.shell import run

DAYS = "365"


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is certified: file name, subject, and how the other side may use it."""

    name: str
    subject: str
    usage: str  # serverAuth, clientAuth or both
    names: tuple[str, ...] = ()  # subjectAltName entries


API_NAMES = (
    "DNS:kubernetes",
    "DNS:kubernetes.default",
    "DNS:kubernetes.default.svc",
    "DNS:kubernetes.default.svc.cluster.local",
    "DNS:localhost",
    "IP:127.0.0.1",
    f"IP:{API_SERVICE_IP}",
    f"IP:{NODE_IP}",
)
KEDA_NAMES = ("DNS:keda-operator", "DNS:keda-operator.keda.svc", "DNS:localhost")

CERTIFICATES = (
    Certificate("apiserver", "/CN=kube-apiserver", "serverAuth", API_NAMES),
    Certificate("apiserver-kubelet", "/O=system:masters/CN=kube-apiserver-kubelet", "clientAuth"),
    Certificate("etcd", "/CN=etcd", "serverAuth,clientAuth", ("IP:127.0.0.1",)),
    # The kubelet's serving certificate needs the node IP, or `kubectl logs` fails.
    Certificate("kubelet", f"/CN={NODE_NAME}", "serverAuth", (f"DNS:{NODE_NAME}", f"IP:{NODE_IP}")),
    Certificate("node", f"/O=system:nodes/CN=system:node:{NODE_NAME}", "clientAuth"),
    Certificate("admin", "/O=system:masters/CN=autolabs-admin", "clientAuth"),
    Certificate("controller-manager", "/CN=system:kube-controller-manager", "clientAuth"),
    Certificate("scheduler", "/CN=system:kube-scheduler", "clientAuth"),
    Certificate("proxy", "/CN=system:kube-proxy", "clientAuth"),
    Certificate("keda", "/CN=keda-operator", "serverAuth,clientAuth", KEDA_NAMES),
)


def make_all(pki: Path) -> None:
    """Make the authority and every certificate anew; the old ones stop being valid."""
    pki.chmod(0o700)
    _key(pki / "ca.key")
    _key(pki / "service-account.key")
    # keyUsage is not optional: Python 3.13 refuses an authority without it.
    usage = "keyUsage=critical,keyCertSign,cRLSign"
    subject = ("-days", DAYS, "-subj", "/CN=autolabs-local-ca", "-addext", usage)
    files = ("-key", pki / "ca.key", "-out", pki / "ca.crt")
    run(["openssl", "req", "-x509", "-new", *files, *subject])
    for certificate in CERTIFICATES:
        _sign(pki, certificate)


def extensions(certificate: Certificate) -> str:
    """Return openssl's extension file for a certificate."""
    lines = [
        "basicConstraints=critical,CA:FALSE",
        "keyUsage=critical,digitalSignature",
        f"extendedKeyUsage={certificate.usage}",
    ]
    if certificate.names:
        lines.append("subjectAltName=" + ",".join(certificate.names))
    return "\n".join(lines) + "\n"


def _key(path: Path) -> None:
    run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path])
    path.chmod(0o600)


def _sign(pki: Path, certificate: Certificate) -> None:
    key = pki / f"{certificate.name}.key"
    _key(key)
    request = run(["openssl", "req", "-new", "-key", key, "-subj", certificate.subject])
    extra = pki / f"{certificate.name}.ext"
    extra.write_text(extensions(certificate))
    authority = ("-CA", pki / "ca.crt", "-CAkey", pki / "ca.key", "-CAcreateserial")
    wanted = ("-days", DAYS, "-extfile", extra, "-out", pki / f"{certificate.name}.crt")
    run(["openssl", "x509", "-req", *authority, *wanted], stdin=request)
    extra.unlink()
