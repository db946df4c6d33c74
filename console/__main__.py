"""Run any command of `autolabs` in the console image or a checkout: `python -m console`."""

from __future__ import annotations

import sys

from console.commands import COMMANDS
from dispatcher.cli.program import make_parser, run


def main(argv: list[str] | None = None) -> int:
    return run(make_parser(COMMANDS), sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
