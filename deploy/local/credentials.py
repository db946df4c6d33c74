"""Passwords of the local services: made at the first `up`, kept in the state folder, never shown."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import string
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deploy.local.paths import Layout

ALPHABET = string.ascii_letters + string.digits  # safe in URLs, YAML and shells alike
LENGTH = 32


@dataclass(frozen=True, slots=True)
class Credentials:
    """The passwords, kept out of every repr."""

    amqp_admin: str = field(repr=False)
    amqp_jobs: str = field(repr=False)
    amqp_keda: str = field(repr=False)
    postgresql: str = field(repr=False)
    minio: str = field(repr=False)
    redis: str = field(repr=False)


def ensure(layout: Layout) -> Credentials:
    """Return the passwords of the running cluster; each is made when it is first asked for."""
    path = layout.state / "credentials.json"
    kept: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    made = Credentials(**{name: kept.get(name) or _password() for name in Credentials.__slots__})
    if asdict(made) != kept:
        _write_private(path, json.dumps(asdict(made)))
    return made


def _password() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(text)
    temporary.replace(path)


def redis_config(credentials: Credentials) -> str:
    """Return Redis' configuration: a password, nothing on disk, the oldest results go first."""
    lines = (
        f"requirepass {credentials.redis}",
        'save ""',
        "appendonly no",
        "dir /tmp",
        "maxmemory 128mb",
        "maxmemory-policy volatile-ttl",
    )
    return "\n".join(lines) + "\n"


def rabbitmq_hash(password: str, salt: bytes) -> str:
    """Hash as RabbitMQ stores it: base64(salt + SHA-256(salt + password)), a salt of 4 bytes.

    The salt comes from the password, so that a second `up` renders the same Secret.
    """
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def rabbitmq_definitions(credentials: Credentials) -> str:
    """Return users and permissions as a definitions file; topology is declared by the setup Job."""
    users: tuple[tuple[str, str, list[str], tuple[str, str, str]], ...] = (
        # name, password, tags, (configure, write, read)
        ("autolabs", credentials.amqp_admin, ["administrator"], (".*", ".*", ".*")),
        ("jobs", credentials.amqp_jobs, [], ("^$", r"^(autolabs\.|celery_delayed_27$)", r"^celery\.")),
        # A passive declare needs no permission of the three: it counts, and can do nothing else.
        ("keda", credentials.amqp_keda, [], ("^$", "^$", "^$")),
    )
    content = {
        "vhosts": [{"name": "/"}],
        "users": [
            {
                "name": name,
                "password_hash": rabbitmq_hash(
                    password, hashlib.sha256(b"salt" + password.encode()).digest()[:4]
                ),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": tags,
            }
            for name, password, tags, _ in users
        ],
        "permissions": [
            {"user": name, "vhost": "/", "configure": configure, "write": write, "read": read}
            for name, _, _, (configure, write, read) in users
        ],
    }
    return json.dumps(content, indent=1)
