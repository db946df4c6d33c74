"""Print how large the packages are and how they hang together.

    python -m tests.size [CHECKOUT]

Tests, deployment and docs are not counted. Another checkout is measured by the same rules, so that two
states of the project can be compared.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.source_tree import (
    PACKAGES,
    ROOT,
    Module,
    cycles,
    depth,
    import_graph,
    modules,
    room_graph,
)

#: A module of fewer lines costs a reader more in its head than it holds.
SMALL = 60
_WRITES_A_LAB = re.compile(r"\b(?:UPDATE|INSERT INTO|DELETE FROM)\s+lab_instances\b")


def statements_on_labs(found: Sequence[Module]) -> list[str]:
    """Return `file:line` of each SQL statement that writes lab_instances."""
    return [
        f"{module.file}:{line}"
        for module in found
        for line, text in _texts(module.tree)
        for _ in _WRITES_A_LAB.findall(text)
        if "/migrations/" not in module.file
    ]


def _texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def report(found: Sequence[Module]) -> str:
    """Return the figures as text."""
    lines = [f"{'package':<12}{'modules':>9}{'lines':>9}{'code':>9}"]
    for package in PACKAGES:
        lines.append(_row(package, [one for one in found if one.file.startswith(f"{package}/")]))
    lines.append(_row("all", found))
    largest, files = Counter(one.folder for one in found).most_common(1)[0]
    graph, rooms = import_graph(found), room_graph(found)
    room_arrows = sum(map(len, rooms.values()))
    small = [one for one in found if one.lines < SMALL and one.path.name != "__init__.py"]
    written = statements_on_labs(found)
    return "\n".join(
        [
            *lines,
            "",
            f"modules under {SMALL} lines, without __init__: {len(small)}",
            f"largest folder: {largest}, {files} files",
            f"imports between modules: {sum(map(len, graph.values()))}, {depth(graph)} floors",
            f"imports between rooms: {room_arrows}, {depth(rooms)} floors of {len(rooms)} rooms",
            f"rooms that import each other: {cycles(rooms) or 'none'}",
            f"statements that write lab_instances: {len(written)} in {_files(written)} modules",
        ]
    )


def _row(name: str, found: Sequence[Module]) -> str:
    lines, code = sum(one.lines for one in found), sum(one.code_lines for one in found)
    return f"{name:<12}{len(found):>9,}{lines:>9,}{code:>9,}"


def _files(places: Sequence[str]) -> int:
    return len({place.partition(":")[0] for place in places})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.size", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", nargs="?", type=Path, default=ROOT, help="default: this one")
    print(report(modules(root=parser.parse_args(argv).checkout.resolve())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
