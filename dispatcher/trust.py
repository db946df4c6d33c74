"""Trust private authorities beside the system's public ones: whoever opens a TLS connection asks here.

`ssl` is imported by the functions that need it: a plain connection pays nothing for it.
"""

from __future__ import annotations

import binascii
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from dispatcher.errors import InvalidSettings

if TYPE_CHECKING:
    import ssl

#: A certificate as PEM has it; what stands between two of them is a comment.
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\s(.*?)-----END CERTIFICATE-----", re.DOTALL)
#: Modes of libpq in which it looks at who signed the server's certificate.
_VERIFIED = ("verify-ca", "verify-full")


def ca_problem(path: str) -> str | None:
    """Return why a file is of no use as CA_FILE, or None; without `ssl`, so that each start can ask."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as exc:
        return f"CA_FILE: cannot read {path} ({exc.strerror})"
    except UnicodeDecodeError:
        return f"CA_FILE: {path} is no PEM file (not text: a DER file needs `openssl x509 -inform der`)"
    found = _CERTIFICATE.findall(text)
    if not found:
        what = "is empty" if not text.strip() else "has no certificate in it"
        return f"CA_FILE: {path} {what}; it must have one or more, each from -----BEGIN CERTIFICATE----- on"
    for number, body in enumerate(found, start=1):
        if not _is_der(body):
            return f"CA_FILE: certificate {number} of {len(found)} in {path} is damaged"
    return None


def _is_der(body: str) -> bool:
    try:
        # A certificate is a SEQUENCE of ASN.1.
        return binascii.a2b_base64("".join(body.split()), strict_mode=True)[:1] == b"\x30"
    except ValueError:
        return False


def make_context(ca_file: str = "") -> ssl.SSLContext:
    """Return a context that verifies servers by the system's authorities and those of `ca_file`.

    Raises InvalidSettings for a file that OpenSSL cannot read.
    """
    import ssl

    context = ssl.create_default_context()
    if ca_file:
        if problem := ca_problem(ca_file):
            raise InvalidSettings([problem])
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as exc:
            raise InvalidSettings([f"CA_FILE: OpenSSL cannot read {ca_file} ({exc})"]) from exc
    return context


def with_root_certificate(url: str, ca_file: str) -> str:
    """Return a URL of libpq that names `ca_file`, if it verifies the server and names no file itself.

    libpq takes one file only: authorities of the system count for `sslrootcert=system` alone.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if not ca_file or query.get("sslmode") not in _VERIFIED or "sslrootcert" in query:
        return url
    return urlunsplit(parts._replace(query=f"{parts.query}&sslrootcert={quote(ca_file, safe='/')}"))


def why_untrusted(exc: BaseException) -> str | None:
    """Return what OpenSSL has against a server's certificate, if that is what an error is about."""
    seen: set[int] = set()
    inner: BaseException | None = exc
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        if type(inner).__name__ == "SSLCertVerificationError":
            said = getattr(inner, "verify_message", "") or str(inner)
            return f"certificate verify failed: {said}; is its authority in CA_FILE?"
        nested = next((arg for arg in inner.args if isinstance(arg, BaseException)), None)
        inner = nested or getattr(inner, "reason", None) or inner.__cause__ or inner.__context__
        if not isinstance(inner, BaseException):
            inner = None
    return None
