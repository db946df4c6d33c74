"""The images of the cluster: what goes into each, built once per content, imported if absent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.local import buildah, fingerprint, programs
from deploy.local.context import files_of
from deploy.local.errors import LocalClusterError
from deploy.local.node import ctr
from deploy.local.paths import Layout
from deploy.local.programs import Module
from deploy.local.settings import (
    CONSOLE_IMAGE,
    COREDNS_VERSION,
    JOB_IMAGE,
    KEDA_VERSION,
    LAB_IMAGE,
    PAUSE_IMAGE,
)
from deploy.local.steps import note, step

KEPT_BUILDS = 4
CONSOLE_ALONE = "console/"  # the folder that the job image does not have
LABEL = "autolabs.io/content"  # on the image in containerd: the key that it was built from


@dataclass(frozen=True, slots=True)
class Image:
    """An image with its content key; `files` are (name in the context, file) pairs."""

    short: str
    name: str
    key: str
    containerfile: Path
    files: tuple[tuple[str, Path], ...]
    usual: str
    target: str | None = None  # stage of the Dockerfile

    def archive(self, layout: Layout) -> Path:
        """Return the file in the cache that holds the built image."""
        return layout.cache / "images" / f"{self.short}-{self.key}.tar"


def wanted(layout: Layout) -> list[Image]:
    """Return all images of this checkout; those whose Dockerfile is not there yet are left out."""
    busybox = Path(shutil.which("busybox") or "/bin/busybox")
    found = [
        _of_folder(layout, "pause", PAUSE_IMAGE, {"busybox": busybox}, usual="1 s"),
        _of_program(layout, programs.COREDNS, f"registry.k8s.io/coredns/coredns:v{COREDNS_VERSION}"),
        _of_folder(layout, "rabbitmq", None, {}, usual="30 s", based=True),
        _of_folder(layout, "postgresql", None, {}, usual="30 s", based=True),
        _of_folder(layout, "redis", None, {}, usual="20 s", based=True),
        _of_program(layout, programs.MINIO, None),
        _of_program(layout, programs.KEDA, f"ghcr.io/kedacore/keda:{KEDA_VERSION}"),
    ]
    if image := _lab_image(layout):
        found.append(image)
    return found + _own_images(layout)


def _of_program(layout: Layout, module: Module, name: str | None) -> Image:
    """Make the image of one static binary; its content key is that of the program."""
    short = module.name
    folder = layout.sources / "images" / short
    key = fingerprint.of_files([("Containerfile", folder / "Containerfile")], module.key(layout))
    files = ((short, module.binary(layout, short)),)
    return Image(short, name or _local(short, key), key, folder / "Containerfile", files, "8 s")


def _of_folder(
    layout: Layout,
    short: str,
    name: str | None,
    extra: Mapping[str, Path],
    *,
    usual: str,
    based: bool = False,
) -> Image:
    folder = layout.sources / "images" / short
    files = [(path.name, path) for path in sorted(folder.iterdir())] + list(extra.items())
    key = fingerprint.of_files(files, buildah.base_key() if based else "")
    return Image(short, name or _local(short, key), key, folder / "Containerfile", tuple(files), usual)


def _local(short: str, key: str) -> str:
    return f"registry.gitlab.com/autolabs/local/{short}:{key}"


def _own_images(layout: Layout) -> list[Image]:
    """Return the job image, then the console image, which is built on its layers."""
    dockerfile = layout.checkout / "Dockerfile"
    if not dockerfile.exists():
        note("no Dockerfile in the checkout: the job image is left out")
        return []
    files = files_of(layout.checkout)
    # A change of the console must not make containers anew.
    of_job = [(name, path) for name, path in files if not name.startswith(CONSOLE_ALONE)]
    found = []
    for target, name, own, usual in (
        ("job", JOB_IMAGE, of_job, "20 s"),
        ("console", CONSOLE_IMAGE, files, "10 s"),
    ):
        key = fingerprint.of_files([("Dockerfile", dockerfile), *own], buildah.base_key())
        found.append(Image(target, f"{name}:dev-{key}", key, dockerfile, tuple(own), usual, target))
    return found


def _lab_image(layout: Layout) -> Image | None:
    folder = layout.checkout / "deploy" / "lab-demo"
    if not (folder / "Dockerfile").exists():
        note("no deploy/lab-demo/Dockerfile in the checkout: the demo lab's image is left out")
        return None
    files = files_of(folder)
    dockerfile = folder / "Dockerfile"
    key = fingerprint.of_files([("Dockerfile", dockerfile), *files], buildah.base_key())
    return Image("lab-demo", LAB_IMAGE, key, dockerfile, tuple(files), "20 s")


def ensure_built(layout: Layout, images: list[Image]) -> None:
    """Build what the cache lacks."""
    missing = [image for image in images if not image.archive(layout).exists()]
    if missing:
        buildah.remove_containers(layout)
    for image in missing:
        if "debian:" in image.containerfile.read_text():
            buildah.ensure_base(layout)
        with step(f"Build the image {image.name}", image.usual):
            _build(layout, image)


def _build(layout: Layout, image: Image) -> None:
    with tempfile.TemporaryDirectory(prefix=".context-", dir=layout.cache) as folder:
        for name, path in image.files:
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _place(path, target)
        buildah.build(
            layout,
            name=image.name,
            containerfile=image.containerfile,
            context=Path(folder),
            target=image.target,
            archive=image.archive(layout),
        )


def _place(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)  # a 160 MB program need not be copied
    except OSError:
        shutil.copy2(source, target)


def ensure_imported(layout: Layout, images: list[Image]) -> None:
    """Import into containerd what it lacks; a label written last marks a whole import."""
    present = _present(layout)
    missing = [image for image in images if present.get(image.name) != image.key]
    if not missing:
        return
    with step(f"Import {len(missing)} images into containerd", "1-3 s each"):
        for image in missing:
            ctr(layout, "images", "import", image.archive(layout), timeout_s=300)
            ctr(layout, "images", "label", image.name, f"{LABEL}={image.key}")
    absent = [image.name for image in images if _present(layout).get(image.name) != image.key]
    if absent:
        raise LocalClusterError(f"containerd does not list {', '.join(absent)} after the import")


def _present(layout: Layout) -> dict[str, str]:
    """Return the images in containerd that carry our label, with their keys."""
    return parse_images(ctr(layout, "images", "ls"))


def parse_images(listing: str) -> dict[str, str]:
    """Return name and content key from `ctr images ls`, for the images with our label."""
    found = {}
    for line in listing.splitlines()[1:]:
        words = line.split()
        labels = dict(part.partition("=")[::2] for part in words[-1].split(","))
        if words and LABEL in labels:
            found[words[0]] = labels[LABEL]
    return found


def parse_unnamed(listing: str) -> list[str]:
    """Return the names by image id that CRI made for images whose real names are all gone."""
    rows = [line.split() for line in listing.splitlines()[1:]]
    named = {row[2] for row in rows if not row[0].startswith("sha256:")}
    return [row[0] for row in rows if row[0].startswith("sha256:") and row[2] not in named]


def remove_old(layout: Layout, images: list[Image]) -> None:
    """Keep the newest builds of each image, in the cache and in containerd; drop the others.

    Several, because a shell that evaluated `make env` a while ago still names an earlier one.
    """
    for image in images:
        image.archive(layout).touch()  # newest means last used, not last built
        archives = image.archive(layout).parent.glob(f"{image.short}-{'?' * len(image.key)}.tar")
        newest = sorted(archives, key=lambda path: path.stat().st_mtime, reverse=True)
        for path in newest[KEPT_BUILDS:]:
            path.unlink(missing_ok=True)
    keys = {image.key for image in images}
    keys |= {path.stem.rpartition("-")[2] for path in (layout.cache / "images").glob("*.tar")}
    old = [name for name, key in _present(layout).items() if key not in keys]
    if old:
        ctr(layout, "images", "rm", *old)
    if unnamed := parse_unnamed(ctr(layout, "images", "ls")):
        ctr(layout, "images", "rm", *unnamed)
