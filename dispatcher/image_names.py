"""Names of container images, as commands take them."""

from __future__ import annotations

import argparse
import re

# A tag or a digest after the last path component: a port of the registry is not a tag.
_IMAGE = re.compile(r"[^\s@]*[^\s@:/](:\w[\w.-]{0,127}|(:\w[\w.-]{0,127})?@sha256:[0-9a-f]{64})")


def pinned_image(text: str) -> str:
    """Return an image that an option of a command line names. Raises what argparse tells of."""
    # With latest and IfNotPresent two nodes may run different code.
    if not _IMAGE.fullmatch(text) or text.endswith(":latest"):
        raise argparse.ArgumentTypeError(f"{text!r} needs a tag other than latest, or a digest")
    return text
