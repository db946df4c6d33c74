"""Print the KEDA manifests as YAML: `python -m keda --image IMAGE | kubectl apply --server-side -f -`."""

from __future__ import annotations

import argparse
import re
import sys

import yaml

from keda.authentication import make_trigger_authentication
from keda.profiles import PROFILES, InvalidProfile, with_spares
from keda.scaledjob import make_scaled_job

_IMAGE = re.compile(r"[^\s:@]+(:[0-9]+/[^\s:@]+)?(:[\w][\w.-]{0,127}|@sha256:[0-9a-f]{64})")


def _image(text: str) -> str:
    if not _IMAGE.fullmatch(text) or text.endswith(":latest"):
        raise argparse.ArgumentTypeError(f"{text!r} needs a tag other than latest, or a digest")
    return text


def _spares(text: str) -> tuple[str, int]:
    name, _, count = text.rpartition("=")
    if not count.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not N or NAME=N")
    return name or "*", int(count)


def main(argv: list[str] | None = None) -> int:
    """Print TriggerAuthentication and ScaledJobs; 2 for arguments that are not acceptable."""
    parser = argparse.ArgumentParser(prog="python -m keda", description=__doc__)
    parser.add_argument("--image", type=_image, required=True, help="the job image, with tag or digest")
    parser.add_argument("--namespace", default="platform", help="default: platform")
    parser.add_argument(
        "--spares",
        type=_spares,
        action="append",
        default=[],
        metavar="[NAME=]N",
        help="containers that wait ahead of time, for one ScaledJob or for all (0: scale to zero)",
    )
    arguments = parser.parse_args(argv)
    try:
        profiles = with_spares(PROFILES, dict(arguments.spares)) if arguments.spares else PROFILES
    except InvalidProfile as exc:
        parser.error(str(exc))
    manifests = [
        make_trigger_authentication(arguments.namespace),
        *(make_scaled_job(p, namespace=arguments.namespace, image=arguments.image) for p in profiles),
    ]
    sys.stdout.write(yaml.safe_dump_all(manifests, sort_keys=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
