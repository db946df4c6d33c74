"""Run `autolabs`, or `python -m dispatcher`: a backend administrator's commands, and those of the console.

The console is a distribution of its own, because it needs the platform's cluster. It names its commands by an
entry point, and is imported only for one of them or for the list.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

from dispatcher.cli.program import COMMANDS, EXIT_USAGE, Commands, complain, make_parser, run

#: Each entry point of this group is a mapping of names to commands.
ENTRY_POINTS = "autolabs.commands"
#: Commands of the distribution autolabs-console.
_OPERATORS = ("dlq", "explain", "schedule", "verify")
_INSTALL = (
    "autolabs-console: use the console image, or in a checkout python3 -m console or pipx install ./console"
)


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    named = words[0] if words else ""
    if named in COMMANDS:
        return run(make_parser(COMMANDS), words)
    commands, problem = {**COMMANDS}, ""
    try:
        commands |= _installed()
    except Exception as exc:  # a distribution that is broken must cost nobody the help
        if named in _OPERATORS:
            raise
        problem = f" What is installed of it cannot be loaded: {exc!r}"
    missing = [name for name in _OPERATORS if name not in commands]
    if named in missing:
        return complain(f"{named} is a command of {_INSTALL}", EXIT_USAGE)
    epilog = f"More commands ({', '.join(missing)}) come with {_INSTALL}.{problem}" if missing else None
    return run(make_parser(commands, epilog=epilog), words)


def _installed() -> Commands:
    return {name: command for one in entry_points(group=ENTRY_POINTS) for name, command in one.load().items()}


if __name__ == "__main__":
    sys.exit(main())
