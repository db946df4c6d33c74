"""The options of the commands `autolabs schedule …`."""

from __future__ import annotations

import argparse

from dispatcher.cli.arguments import natural, positive
from keda.podspec import pinned_image

#: Key of an entry that `set` can change, and what it is.
SETTABLE = {
    "schedule": "when it runs",
    "time_zone": "of the tz database",
    "concurrency": "whether runs overlap",
    "starting_deadline_s": "by which a run may begin late",
    "deadline_s": "that a run may take",
}


def list_options(parser: argparse.ArgumentParser) -> None:
    _add_namespace(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON array")


def show_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="one entry, and when it runs next")


def apply_options(parser: argparse.ArgumentParser) -> None:
    _add_change(parser)
    parser.add_argument("--file", metavar="FILE", help="store this document first; - is standard input")


def set_options(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    _add_change(parser)
    parser.add_argument("--schedule", metavar="CRON", help='five cron fields, "*/10 * * * *", or @hourly')
    parser.add_argument("--time-zone", metavar="NAME", help="such as Europe/Moscow")
    parser.add_argument("--concurrency", metavar="POLICY", help="Forbid, Allow or Replace")
    for key in ("starting_deadline_s", "deadline_s"):
        option = f"--{key.removesuffix('_s').replace('_', '-')}"
        parser.add_argument(option, dest=key, type=natural, metavar="SECONDS", help=SETTABLE[key])


def suspend_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="*", metavar="NAME", help="names of `schedule list`")
    parser.add_argument("--all", action="store_true", help="every schedule")
    _add_change(parser)


def run_now_options(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    _add_namespace(parser)
    parser.add_argument("--dry-run", action="store_true", help="the task only says what it would do")
    parser.add_argument("--force", action="store_true", help="the task does it however many labs it is")
    parser.add_argument("--no-follow", action="store_true", help="do not wait for it")


def history_options(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    _add_namespace(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument(
        "--limit", type=positive, default=20, metavar="N", help="show at most N runs (default: 20)"
    )


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a name of `schedule list`")


def _add_namespace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--namespace", default="platform", metavar="NAME", help="of the CronJobs (default: platform)"
    )


def _add_change(parser: argparse.ArgumentParser) -> None:
    _add_namespace(parser)
    parser.add_argument("--dry-run", action="store_true", help="only print what would change")
    parser.add_argument(
        "--image", type=pinned_image, metavar="IMAGE", help="of the containers (default: as it is)"
    )
