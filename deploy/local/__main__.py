"""Run `python3 -m deploy.local up|down|env|status`."""

from __future__ import annotations

import argparse
import os
import sys

from deploy.local import commands, existing
from deploy.local.errors import LocalClusterError
from deploy.local.paths import Layout

EPILOG = """\
environment:
  CLUSTER=existing   use the cluster of KUBECONFIG; nothing is built or started (README)
  AUTOLABS_CACHE     folder of built programs and images (default: ~/.cache/autolabs)
"""


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python3 -m deploy.local",
        description="A single-node Kubernetes on this machine, without Docker, and our system on it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subcommands = made.add_subparsers(dest="command", required=True)
    subcommands.add_parser("up", help="start everything, or bring what runs up to date")
    down = subcommands.add_parser("down", help="stop everything and take away what it made")
    down.add_argument("--purge", action="store_true", help="remove the kept images, logs and the cache too")
    subcommands.add_parser("env", help="print `export` lines for clients on this machine")
    subcommands.add_parser("status", help="show what runs; exit code 1 when something does not")
    return made


def main() -> int:
    """Run one command; return the exit code."""
    arguments = parser().parse_args()
    layout = Layout.from_env(os.environ)
    # A root shell opened by `su` has no sbin in its PATH.
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
    try:
        if os.environ.get("CLUSTER") == "existing":
            return existing.main(arguments.command, layout, os.environ)
        if cluster := os.environ.get("CLUSTER"):
            raise LocalClusterError(f"CLUSTER={cluster}: only `existing` is known")
        if arguments.command == "up":
            commands.up(layout)
        elif arguments.command == "down":
            commands.down(layout, purge=arguments.purge)
        elif arguments.command == "env":
            print("\n".join(commands.env(layout)))
        else:
            return 0 if commands.status(layout) else 1
    except LocalClusterError as exc:
        print(f"{arguments.command} failed: {exc}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (head, less) has seen enough; the interpreter must not complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("interrupted; `make up` clears what was left", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
