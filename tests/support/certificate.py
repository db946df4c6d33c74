"""A certificate for servers of tests on 127.0.0.1."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_certificate(folder: Path) -> Path:
    """Make a key and a certificate for 127.0.0.1 that signs itself; return the one file with both."""
    path = folder / "server.pem"
    names = ("-addext", "subjectAltName=IP:127.0.0.1")
    usage = ("-addext", "keyUsage=critical,digitalSignature,keyCertSign")
    files = ("-keyout", path, "-out", path.with_suffix(".crt"))
    kind = ("-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1")
    subprocess.run(["openssl", "req", *kind, *names, *usage, *files], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path
