"""What commands have in common at a terminal."""

from __future__ import annotations

import argparse


def natural(text: str) -> int:
    """Return the number that an option of a command line has. Raises what argparse tells of."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number
