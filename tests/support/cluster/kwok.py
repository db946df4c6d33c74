"""kwok as a process of this machine: the kubelet of nodes that do not exist.

It answers for the nodes with one label only, listens on no port, and dies with the process that started it.
`python -m tests.support.cluster.kwok` builds it, so that no test has to.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from deploy.local import programs
from deploy.local.paths import Layout

#: Reserved for benchmarks of networks (RFC 2544), so an address of a fake Pod leads nowhere.
POD_CIDR = "198.18.0.1/16"
NODE_IP = "198.19.0.1"
_PR_SET_PDEATHSIG = 1
_CONFIG = """\
apiVersion: config.kwok.x-k8s.io/v1alpha1
kind: KwokConfiguration
options:
  podPlayStageParallelism: 8
  # As a kubelet's; without it a node has no heartbeat at all.
  nodeLeaseDurationSeconds: 40
"""


def binary() -> Path:
    """Return the program, built if it is not in the cache, which takes two minutes."""
    return programs.ensure_on_need(Layout.from_env(os.environ), programs.KWOK) / "kwok"


@dataclass
class Kwok:
    """One running kwok."""

    log: Path
    popen: subprocess.Popen[bytes]

    @classmethod
    def start(cls, label: str, folder: Path) -> Kwok:
        """Start it for the nodes with this label; the log and all its files are in the folder."""
        program, log = binary(), folder / "kwok.log"
        config = folder / "kwok.yaml"
        config.write_text(_CONFIG)
        libc = ctypes.CDLL(None, use_errno=True)

        def die_with_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

        with log.open("ab") as out:
            popen = subprocess.Popen(
                [
                    program,
                    f"--kubeconfig={os.environ['KUBECONFIG']}",
                    f"--config={config}",
                    f"--manage-nodes-with-label-selector={label}",
                    f"--cidr={POD_CIDR}",
                    f"--node-ip={NODE_IP}",
                ],
                # Or a ~/.kwok/kwok.yaml of somebody else would count.
                env={"PATH": os.environ["PATH"], "HOME": str(folder), "KWOK_WORKDIR": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for the tests, which end it
                preexec_fn=die_with_parent,
            )
        return cls(log, popen)

    def check(self) -> None:
        """Raise when it ended by itself."""
        if self.popen.poll() is not None:
            raise AssertionError(f"kwok ended by itself ({self.popen.returncode}):\n{self.tail()}")

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-4000:]

    def end(self) -> None:
        """End it."""
        self.popen.terminate()
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


if __name__ == "__main__":
    binary()
