"""Build the pinned programs from their Go modules into the cache, once per go.mod, go.sum and flags."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local import fingerprint, golang
from deploy.local.paths import Layout
from deploy.local.settings import KUBERNETES_VERSION
from deploy.local.shell import run, stream
from deploy.local.steps import step

#: -trimpath makes the binaries independent of the checkout, hence the cache valid for all of them.
FLAGS = ("-trimpath", "-buildvcs=false")


def _kubernetes_ldflags() -> str:
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    values = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(f"-X {p}.{name}={value}" for p in packages for name, value in values.items())


@dataclass(frozen=True, slots=True)
class Module:
    """One go.mod of ours: the binaries wanted from it, by name, with their packages."""

    name: str
    packages: Mapping[str, str]
    usual: str
    ldflags: str = ""

    def folder(self, layout: Layout) -> Path:
        """Return the folder of its go.mod."""
        return layout.sources / "programs" / self.name

    def key(self, layout: Layout) -> str:
        """Name what decides about the built programs."""
        files = [(name, self.folder(layout) / name) for name in ("go.mod", "go.sum")]
        return fingerprint.of_files(files, *FLAGS, self.ldflags, *sorted(self.packages))

    def built(self, layout: Layout) -> Path:
        """Return the folder in the cache; it exists only when whole."""
        return layout.cache / "programs" / f"{self.name}-{self.key(layout)}"

    def binary(self, layout: Layout, name: str) -> Path:
        """Return one of its programs."""
        return self.built(layout) / name


KUBERNETES = Module(
    name="kubernetes",
    packages={
        name: f"k8s.io/kubernetes/cmd/{name}"
        for name in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
            "kubelet",
            "kubectl",
        )
    },
    usual="5 min",
    ldflags=_kubernetes_ldflags(),
)
ETCD = Module("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}, "45 s")
KEDA = Module("keda", {"keda": "github.com/kedacore/keda/v2/cmd/operator"}, "4 min")
COREDNS = Module("coredns", {"coredns": "github.com/coredns/coredns"}, "2 min")
MINIO = Module("minio", {"minio": "github.com/minio/minio"}, "2 min")
#: What a cluster needs.
MODULES = (ETCD, KUBERNETES, KEDA, COREDNS, MINIO)

#: Pretends to be the kubelet of nodes that tests and benchmarks make up; built by who wants one first.
KWOK = Module("kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}, "2 min")


def ensure_built(layout: Layout) -> None:
    """Build what the cache lacks; a killed build leaves only a temporary folder behind."""
    missing = [module for module in MODULES if not module.built(layout).exists()]
    if not missing:
        return
    go = golang.find(layout)
    for module in missing:
        _build(layout, module, go, log=layout.logs / f"build-{module.name}.log", prefix=f".{module.name}-")


def ensure_on_need(layout: Layout, module: Module) -> Path:
    """Return the folder of a module that is none of MODULES, built if it is not there.

    Any user may, beside an `up` that runs: everything, locks and logs too, is in the cache.
    """
    if module.built(layout).exists():
        return module.built(layout)
    home = layout.cache / "programs"
    home.mkdir(parents=True, exist_ok=True)
    with _alone(home / f"{module.name}.lock"):
        # An `up` removes what begins with a dot: only a killed build of its own could have left it.
        prefix = f"{module.name}-unfinished-"
        for left in home.glob(f"{prefix}*"):
            shutil.rmtree(left)
        if not module.built(layout).exists():
            log = home / f"build-{module.name}.log"
            _build(layout, module, golang.find(layout), log=log, prefix=prefix)
    return module.built(layout)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(layout: Layout, module: Module, go: Path, *, log: Path, prefix: str) -> None:
    names = ", ".join(module.packages)
    with step(f"Build {names} from the Go modules", f"{module.usual} with an empty Go cache"):
        _build_all(layout, module, go, log=log, prefix=prefix)


def _build_all(layout: Layout, module: Module, go: Path, *, log: Path, prefix: str) -> None:
    home = layout.cache / "programs"
    home.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
    try:
        for name, package in module.packages.items():
            flags = (*FLAGS, "-ldflags", f"-s -w {module.ldflags}".strip())
            command: list[str | Path] = [go, "build", *flags, "-o", temporary / name, package]
            stream(command, cwd=module.folder(layout), env=golang.environment(), log=log)
        temporary.chmod(0o755)
        temporary.rename(module.built(layout))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def module_source(layout: Layout, module: Module, path: str) -> Path:
    """Return the folder of a dependency's source, which Go downloads and verifies if need be."""
    go = golang.find(layout)
    where = module.folder(layout)
    found = run([go, "list", "-m", "-f", "{{.Dir}}", path], cwd=where, env=golang.environment())
    if not found.strip() or not Path(found.strip()).is_dir():
        run([go, "mod", "download", path], cwd=where, env=golang.environment(), timeout_s=600)
        found = run([go, "list", "-m", "-f", "{{.Dir}}", path], cwd=where, env=golang.environment())
    return Path(found.strip())
