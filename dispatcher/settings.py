"""Read settings from a mapping, and name every problem in one error; whoever starts the process calls it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from dispatcher.errors import InvalidSettings
from dispatcher.trust import ca_problem, with_root_certificate

T = TypeVar("T")

#: Where deploy/ mounts the Secret of a container, one file per setting.
SECRETS_DIR = Path("/run/secrets/autolabs")
#: Key of the Secret with private authorities; the default of CA_FILE where it is mounted.
CA_KEY = "ca.crt"


class Environment:
    """Look settings up and collect every problem, so that one error can list them all.

    A setting NAME is taken from the variable NAME, from the file named by NAME_FILE, or from
    a mounted secret file called NAME, in this order.
    """

    def __init__(self, environ: Mapping[str, str], secrets_dir: Path = SECRETS_DIR) -> None:
        self._environ = environ
        self._secrets_dir = secrets_dir
        self.problems: list[str] = []

    def find(self, name: str) -> str | None:
        """Return the value, or None when it is set nowhere or empty."""
        if value := self._environ.get(name, "").strip():
            return value
        named = self._environ.get(f"{name}_FILE", "").strip()
        path = Path(named) if named else self._secrets_dir / name
        try:
            return path.read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError) as exc:
            if named:
                reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
                self.problems.append(f"{name}_FILE: cannot read {named} ({reason})")
            return None

    @cached_property
    def ca_file(self) -> str:
        """The file with private authorities, CA_FILE or the mounted one, read once for all servers; or ""."""
        mounted = self._secrets_dir / CA_KEY
        path = self._environ.get("CA_FILE", "").strip() or (str(mounted) if mounted.exists() else "")
        if path and (problem := ca_problem(path)):
            self.problems.append(problem)
        return path

    def text(self, name: str, default: str) -> str:
        return self.find(name) or default

    def url(self, name: str, schemes: tuple[str, ...], default: str | None = None) -> str:
        """Return a URL with one of the schemes and a host; it is never echoed, as it may hold a password."""
        value = self.find(name) or default
        if value is None:
            self.problems.append(f"{name}: not set (or {name}_FILE, or {self._secrets_dir}/{name})")
            return ""
        if not _is_url(value, schemes):
            self.problems.append(f"{name}: must look like {' or '.join(f'{one}://host…' for one in schemes)}")
        return value

    def number(self, name: str, default: float, *, minimum: float, maximum: float) -> float:
        raw = self.find(name)
        if raw is None:
            return default
        try:
            value = float(raw)
        except ValueError:
            value = float("nan")
        if not minimum <= value <= maximum:
            self.problems.append(f"{name}: {raw!r} is not a number from {minimum:g} to {maximum:g}")
            return default
        return value

    def count(self, name: str, default: int, *, minimum: int, maximum: int) -> int:
        value = self.number(name, default, minimum=minimum, maximum=maximum)
        if value != int(value):
            self.problems.append(f"{name}: {value:g} is not an integer")
        return int(value)

    def flag(self, name: str, *, default: bool) -> bool:
        raw = self.find(name)
        if raw is None:
            return default
        if raw.lower() not in ("true", "false", "1", "0"):
            self.problems.append(f"{name}: {raw!r} is not true or false")
        return raw.lower() in ("true", "1")

    def done(self) -> None:
        """Raise InvalidSettings if anything looked up so far was wrong."""
        if self.problems:
            raise InvalidSettings(self.problems)


def _is_url(value: str, schemes: tuple[str, ...]) -> bool:
    # libpq and pika quote a URL with a bad escape in their errors, password and all.
    # urlsplit drops tabs and line ends from the middle of it.
    if re.search(r"%(?![0-9A-Fa-f]{2})|%00|[\x00-\x1f\x7f]", value):
        return False
    try:
        parts = urlsplit(value)
        # An invalid port is found only when asked for.
        port_fits = parts.port != 0
        return parts.scheme in schemes and port_fits and _is_host(parts.hostname or "")
    except ValueError:
        return False


def _is_host(name: str) -> bool:
    """Tell whether a name server may know the name: idna refuses labels that are empty or too long."""
    if re.search(r"\s", name):
        return False
    try:
        # Only for names that need it: the codec's tables are 2 ms of imports.
        plain = name if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        return False
    return all(0 < len(label) < 64 for label in plain.removesuffix(".").split("."))


def read_settings(environ: Mapping[str, str], build: Callable[[Environment], T]) -> T:
    """Build settings from `environ` and raise one InvalidSettings that lists all problems."""
    env = Environment(environ)
    settings = build(env)
    env.done()
    return settings


def database_url(env: Environment) -> str:
    """Read DATABASE_URL as a URL of libpq; SQLAlchemy's form with a driver is accepted too."""
    url = env.url("DATABASE_URL", ("postgresql", "postgres", "postgresql+psycopg2"))
    url = url.replace("postgresql+psycopg2://", "postgresql://", 1)
    return with_root_certificate(url, env.ca_file) if url else url


AMQP_SCHEMES = ("amqp", "amqps", "pyamqp")


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """How to reach RabbitMQ."""

    #: amqp(s)://user:password@host:port/vhost
    url: str = field(repr=False)
    #: Seconds for one connection attempt: longer than a broker's failover of the listener.
    connect_timeout_s: float = 5.0
    #: Seconds a publish may take in all, reconnects included.
    publish_timeout_s: float = 10.0
    #: Seconds; the broker closes a connection that is silent for twice as long. `autolabs verify` and the
    #: sync wait four of their own for containers, which have to have the same.
    heartbeat_s: int = 30
    #: PEM file of authorities that are trusted beside the system's; empty: the system's alone.
    ca_file: str = ""

    @classmethod
    def from_environment(cls, env: Environment) -> BrokerSettings:
        """Read AMQP_URL, AMQP_PUBLISH_TIMEOUT_S, AMQP_HEARTBEAT_S and CA_FILE."""
        url = env.url("AMQP_URL", AMQP_SCHEMES)
        if ";" in url:
            env.problems.append(
                "AMQP_URL: has a ';', with which Celery separates several URLs; give one (in a password: %3B)"
            )
        return cls(
            url=url,
            publish_timeout_s=env.number("AMQP_PUBLISH_TIMEOUT_S", 10.0, minimum=0.1, maximum=300),
            # With less, RabbitMQ's documentation warns, busy programs are taken for dead. With more, a sync
            # that waits four of them would not end within its deadline of 300 s.
            heartbeat_s=env.count("AMQP_HEARTBEAT_S", 30, minimum=5, maximum=60),
            ca_file=env.ca_file,
        )


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Broker and database: what a relay of the outbox and the periodic work need."""

    broker: BrokerSettings
    database_url: str = field(repr=False)

    @classmethod
    def from_environment(cls, env: Environment) -> ServerSettings:
        """Read DATABASE_URL and the settings of the broker."""
        return cls(BrokerSettings.from_environment(env), database_url(env))
