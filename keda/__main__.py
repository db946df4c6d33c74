"""Print the KEDA manifests as YAML: `python -m keda --image IMAGE | kubectl apply --server-side -f -`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from keda.podspec import OVERRIDABLE, pinned_image
from keda.profiles import EVERY, PROFILES, InvalidProfile, Profile, fitted_to, with_overrides
from keda.scaledjob import make_scaled_job, make_trigger_authentication


def _setting(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    # An empty value would mean the default, without a word. The message leaves out what may be a secret.
    if name not in OVERRIDABLE or not value.strip() or not value.isprintable():
        raise argparse.ArgumentTypeError(
            f"{name!r} cannot be set so; allowed is NAME=VALUE with one of {', '.join(OVERRIDABLE)}"
        )
    return name, value


def _numbered(text: str) -> tuple[str, int]:
    name, equals, count = text.rpartition("=")
    # "=3" would silently mean all of them.
    if not re.fullmatch("[0-9]{1,5}", count) or (equals and not name):
        raise argparse.ArgumentTypeError(f"{text!r} is not understood; allowed are N and NAME=N")
    return name or EVERY, int(count)


def _cores(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", text) or not float(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not understood; allowed is a number such as 8 or 1.5")
    return float(text)


def make_parser() -> argparse.ArgumentParser:
    names = ", ".join(profile.name for profile in PROFILES)
    parser = argparse.ArgumentParser(
        prog="python -m keda", description=__doc__, epilog=f"A ScaledJob is one of {names}."
    )
    parser.add_argument("--image", type=pinned_image, required=True, help="the job image, with tag or digest")
    parser.add_argument(
        "--env",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"a setting of the containers, one of {', '.join(OVERRIDABLE)}; may be repeated",
    )
    parser.add_argument(
        "--cores",
        type=_cores,
        metavar="N",
        help="CPU cores of the nodes: no more containers at once than these start in seconds",
    )
    for option, what in (
        ("--spares", "containers that wait ahead of time, for one ScaledJob or all (0: scale to zero)"),
        ("--max-replicas", "containers at once, spares included, for one ScaledJob or for all"),
    ):
        parser.add_argument(
            option, type=_numbered, action="append", default=[], metavar="[SCALEDJOB=]N", help=what
        )
    return parser


def render(profiles: Sequence[Profile], *, image: str, env: Mapping[str, str] | None = None) -> str:
    manifests: list[dict[str, Any]] = [
        make_trigger_authentication(),
        *(make_scaled_job(profile, image=image, env=env or {}) for profile in profiles),
    ]
    return str(yaml.safe_dump_all(manifests, sort_keys=False))


def main(argv: list[str] | None = None) -> int:
    """Print the manifests; arguments that are not acceptable exit with 2 and a line for each problem."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    try:
        known = PROFILES if arguments.cores is None else fitted_to(PROFILES, arguments.cores)
        profiles = with_overrides(
            known, spares=dict(arguments.spares), max_replicas=dict(arguments.max_replicas)
        )
    except InvalidProfile as exc:
        parser.error(str(exc))
    sys.stdout.write(render(profiles, image=arguments.image, env=dict(arguments.env)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
