"""Read the URL of the broker as Celery does, so that one URL means the same to both."""

from __future__ import annotations

from urllib.parse import quote, unquote, urlsplit, urlunsplit


def virtual_host(path: str) -> str:
    """Return the vhost that kombu reads in a path: `//`, `/`, `/%2F` and nothing are the default."""
    return unquote(path[1:]) or "/"


def pika_url(url: str) -> str:
    """Return the URL as pika reads what kombu reads in `url`. Raises ValueError."""
    parts = urlsplit(url)
    # kombu's other name of the same protocol.
    scheme = parts.scheme.removeprefix("py")
    netloc = parts.netloc
    if parts.username is not None and parts.password is None:
        # A user without a password is a TypeError for pika.
        user, at, host = netloc.rpartition("@")
        netloc = f"{user}:{at}{host}"
    path = "/" + quote(virtual_host(parts.path), safe="")
    return urlunsplit((scheme, netloc, path, parts.query, ""))
