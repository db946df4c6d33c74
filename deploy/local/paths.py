"""Where things live: built things in a cache that may be deleted, the cluster's state in one fixed folder.

The state folder does not depend on the checkout, so any later checkout finds what a killed run left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: As manifests/volumes.yaml names them.
VOLUMES = ("rabbitmq", "postgresql", "minio")
STATE = Path("/var/lib/autolabs-local")
RUN = Path("/run/autolabs-local")  # sockets: their paths must stay under 108 bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of one installation; every other path is derived from these four."""

    checkout: Path
    cache: Path
    state: Path = STATE
    run: Path = RUN

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Layout:
        """Find the cache as the XDG rules say, unless AUTOLABS_CACHE names it."""
        home = Path(environ.get("HOME") or "/root")
        caches = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
        cache = Path(environ.get("AUTOLABS_CACHE") or caches / "autolabs")
        return cls(checkout=Path(__file__).resolve().parents[2], cache=cache)

    @property
    def sources(self) -> Path:
        """This package's folder: go.mod files, Containerfiles, manifests."""
        return self.checkout / "deploy" / "local"

    @property
    def logs(self) -> Path:
        """Logs of the daemons and of builds; kept by `down`."""
        return self.state / "log"

    @property
    def pids(self) -> Path:
        """Records of the daemons: pid, start time, words."""
        return self.state / "pids"

    @property
    def pki(self) -> Path:
        """Keys and certificates, new at every start."""
        return self.state / "pki"

    @property
    def config(self) -> Path:
        """Configuration files of the daemons."""
        return self.state / "config"

    @property
    def bin(self) -> Path:
        """Holds kubectl alone, so that it can go first in a PATH."""
        return self.state / "bin"

    @property
    def kubectl(self) -> Path:
        """The kubectl that fits the cluster."""
        return self.bin / "kubectl"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.state / "kubeconfig"

    @property
    def containerd_socket(self) -> Path:
        """Where containerd of ours answers."""
        return self.run / "containerd.sock"

    @property
    def image_store(self) -> Path:
        """The store of containerd, kept between two `up`, so that a warm start imports nothing."""
        return self.state / "containerd"

    @property
    def volumes(self) -> Path:
        """Data of RabbitMQ, PostgreSQL and MinIO."""
        return self.state / "volumes"

    def make_folders(self) -> None:
        """Make what is missing."""
        self.cache.mkdir(parents=True, exist_ok=True)
        for folder in (self.state, self.run, self.logs, self.pids, self.pki, self.config, self.bin):
            folder.mkdir(parents=True, exist_ok=True)
        self.state.chmod(0o700)  # holds keys and passwords
        self.run.chmod(0o700)
        for name in VOLUMES:
            # The pods' fsGroup gives their user the folder.
            (self.volumes / name).mkdir(parents=True, exist_ok=True)
