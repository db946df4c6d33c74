"""Write docs/file-map.md: each folder and each module with its first sentence.

    python -m tests.file_map [--check]

The sentences are those of the modules themselves, so that the map is right for as long as they are.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from itertools import groupby

from tests.support.source_tree import PACKAGES, ROOT, Module, modules

PAGE = ROOT / "docs" / "file-map.md"
_WIDTH = 118
_HEAD = """\
# File map

Every module with its first sentence. `python -m tests.file_map` writes the page; a test holds it to the code.
[CONTRIBUTING.md](../CONTRIBUTING.md) says which folder may import which. The tests have the same folders.
"""


def file_map(found: Sequence[Module]) -> str:
    """Return the page: a heading for each folder, with the sentence of its `__init__`, and its modules."""
    order = {package: index for index, package in enumerate(PACKAGES)}
    in_order = sorted(found, key=lambda one: (order[one.folder.split("/")[0]], one.folder, one.file))
    return "\n".join(
        [_HEAD, *(_folder(name, list(own)) for name, own in groupby(in_order, lambda m: m.folder))]
    )


def _folder(name: str, found: Sequence[Module]) -> str:
    lines = [f"## {name}/", ""]
    for one in found:
        if one.path.name == "__init__.py":
            lines += [*textwrap.wrap(one.sentence, _WIDTH), ""]
        else:
            text = f"- `{one.path.name}`: {one.sentence}"
            lines += textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.file_map", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the page is not up to date")
    page = file_map(modules())
    if parser.parse_args(argv).check:
        return int(not PAGE.exists() or PAGE.read_text() != page)
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
