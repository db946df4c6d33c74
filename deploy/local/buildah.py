"""Build images with buildah, without a registry, in a store of our own below the cache."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from deploy.local import fingerprint, mounts
from deploy.local.errors import CommandError
from deploy.local.paths import Layout
from deploy.local.shell import run, stream
from deploy.local.steps import step

SUITE = "trixie"
#: No package more: a registry's slim image has no CA certificates either.
VARIANT = ("--variant=minbase",)
BASE = "docker.io/library/debian:trixie-slim"
MIRROR = "http://deb.debian.org/debian"
SOURCES = """\
deb http://deb.debian.org/debian trixie main
deb http://deb.debian.org/debian trixie-updates main
deb http://deb.debian.org/debian-security trixie-security main
"""
#: As in Docker's Debian images: apt keeps neither packages nor its 100 MB of caches in a layer.
APT_CLEAN = """\
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
APT::Update::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Acquire::Languages "none";
"""
DPKG_SLIM = """\
path-exclude /usr/share/doc/*
path-exclude /usr/share/man/*
path-exclude /usr/share/locale/*
"""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # as Docker's base images
MOST_LAYERS = 400  # every change of the code adds some; a new store costs half a minute
HOST_CA = "/etc/ssl/certs/ca-certificates.crt"
MOUNTED_CA = "/run/host-ca.crt"


def base_key() -> str:
    """Name the content of the base image."""
    return fingerprint.of_parts([SUITE, *VARIANT, MIRROR, SOURCES, APT_CLEAN, DPKG_SLIM, PATH])


def ensure_base(layout: Layout) -> None:
    """Have debian:trixie-slim in the store, made by debootstrap once per cache."""
    keyed = f"localhost/debian-{SUITE}:{base_key()}"  # BASE alone could be an older one
    if _has(layout, keyed):
        return
    archive = layout.cache / "images" / f"debian-{SUITE}-{base_key()}.tar"
    if not archive.exists():
        with step(f"Make the base image debian:{SUITE}-slim with debootstrap", "40 s"):
            _debootstrap(layout, archive)
    for other in archive.parent.glob(f"debian-{SUITE}-*.tar"):
        if other != archive:
            other.unlink()
    container = _buildah(layout, "from", "scratch").strip()
    _buildah(layout, "add", container, str(archive), "/")
    _buildah(layout, "config", "--cmd", "bash", "--env", f"PATH={PATH}", container)
    _buildah(layout, "commit", "--rm", container, BASE)
    _buildah(layout, "tag", BASE, keyed)


def _debootstrap(layout: Layout, archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    root = layout.cache / "images" / ".debootstrap"
    shutil.rmtree(root, ignore_errors=True)
    stream(
        ["debootstrap", *VARIANT, SUITE, root, MIRROR],
        log=layout.logs / "debootstrap.log",
        timeout_s=1200,
    )
    (root / "etc/apt/sources.list").write_text(SOURCES)
    (root / "etc/apt/apt.conf.d/docker-clean").write_text(APT_CLEAN)
    (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(DPKG_SLIM)
    for heavy in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt"):
        shutil.rmtree(root / heavy, ignore_errors=True)
    shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)
    for folder in ("var/cache/apt/archives/partial", "var/lib/apt/lists/partial"):
        (root / folder).mkdir(parents=True)
    temporary = archive.with_suffix(".tmp")
    run(["tar", "-C", root, "-cf", temporary, "--numeric-owner", "."], timeout_s=300)
    temporary.replace(archive)
    shutil.rmtree(root, ignore_errors=True)


def build(
    layout: Layout, *, name: str, containerfile: Path, context: Path, archive: Path, target: str | None = None
) -> None:
    """Build `name` and leave it as a docker archive, whose layers need no unpacking of gzip."""
    log = layout.logs / f"image-{archive.stem}.log"
    options = ("--layers", "--pull-never", "--isolation", "chroot", *_network_of_the_host(layout))
    stage = ("--target", target) if target else ()
    what = ("--tag", name, "--file", str(containerfile), *stage, str(context))
    stream(
        [*_command(layout), "bud", *options, *what],
        env=_environment(layout),
        log=log,
    )
    temporary = archive.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    archive.parent.mkdir(parents=True, exist_ok=True)
    stream(
        [*_command(layout), "push", name, f"docker-archive:{temporary}:{name}"],
        env=_environment(layout),
        log=log,
    )
    temporary.replace(archive)


def _network_of_the_host(layout: Layout) -> list[str]:
    """Mount what pip needs to reach the index as this machine does: its index and its trust."""
    lines = ["[global]"]
    host = Path("/etc/pip.conf")
    if host.exists():
        lines = [line for line in host.read_text().splitlines() if not line.startswith("cert")]
    for name in ("INDEX_URL", "EXTRA_INDEX_URL", "TRUSTED_HOST", "PROXY", "DEFAULT_TIMEOUT"):
        if value := os.environ.get(f"PIP_{name}"):
            lines.append(f"{name.lower().replace('_', '-')} = {value}")
    options = []
    if Path(HOST_CA).exists():
        lines.append(f"cert = {MOUNTED_CA}")
        options += ["--volume", f"{HOST_CA}:{MOUNTED_CA}:ro"]
    config = layout.config / "pip.conf"
    config.write_text("\n".join(lines) + "\n")
    options += ["--volume", f"{config}:/etc/pip.conf:ro"]
    return options


def _has(layout: Layout, name: str) -> bool:
    try:
        found = json.loads(_buildah(layout, "inspect", "--type", "image", name))
    except CommandError:
        return False
    return bool(found)


def remove_containers(layout: Layout) -> None:
    """Drop the working containers of killed builds; a store that refuses or is full is made anew."""
    store = layout.cache / "buildah"
    try:
        _buildah(layout, "rm", "--all")
        if len(list((store / "overlay").glob("*"))) <= MOST_LAYERS:
            return
    except CommandError:
        pass
    mounts.unmount_below([store])
    shutil.rmtree(store, ignore_errors=True)


def _buildah(layout: Layout, *words: str) -> str:
    return run([*_command(layout), *words], env=_environment(layout), timeout_s=600)


def _command(layout: Layout) -> list[str]:
    store = layout.cache / "buildah"
    return ["buildah", "--root", str(store), "--runroot", str(layout.run / "buildah")]


def _environment(layout: Layout) -> dict[str, str]:
    store = layout.cache / "buildah"
    store.mkdir(parents=True, exist_ok=True)
    registries = store / "registries.conf"
    registries.write_text('unqualified-search-registries = ["docker.io"]\n')
    return {
        "STORAGE_DRIVER": "overlay",
        "BUILDAH_ISOLATION": "chroot",
        "CONTAINERS_REGISTRIES_CONF": str(registries),
    }
