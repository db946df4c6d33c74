"""The packages of a checkout as their syntax trees show them: modules, imports, sizes, first sentences.

The test of import directions, the file map (tests/file_map.py) and the figures of tests/size.py read it.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Those that are shipped, in the order in which a reader meets them.
PACKAGES = ("dispatcher", "jobs", "keda", "cronjobs", "console")
_FACES = {
    **dict.fromkeys(("__init__", "client", "handle", "labs", "results"), "dispatcher API"),
    **dict.fromkeys(("celery_config", "testing"), "dispatcher API"),
    "__main__": "dispatcher entry",
}
_ENTRIES = {"jobs": ("__main__", "configs"), "console": ("__main__", "commands")}
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Module:
    """One file of a package."""

    path: Path
    root: Path

    @property
    def file(self) -> str:
        return self.path.relative_to(self.root).as_posix()

    @property
    def folder(self) -> str:
        return self.path.parent.relative_to(self.root).as_posix()

    @property
    def name(self) -> str:
        """Return the dotted name; of a package it is that of its `__init__`."""
        return self.file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def sentence(self) -> str:
        """Return the first sentence of the module's docstring, on one line."""
        paragraph = " ".join((ast.get_docstring(self.tree) or "").partition("\n\n")[0].split())
        return re.split(r"(?<=\.) ", paragraph, maxsplit=1)[0].rstrip(":")

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())

    @property
    def code_lines(self) -> int:
        """Return how many lines are neither empty nor comment nor docstring."""
        coded: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type not in _NO_CODE:
                coded |= set(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(self.tree):
            if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node) is not None:
                first = node.body[0]
                coded -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
        return len(coded)


def modules(packages: Iterable[str] = PACKAGES, root: Path = ROOT) -> list[Module]:
    """Return the modules of packages; one that does not exist has none."""
    return [Module(path, root) for package in packages for path in sorted((root / package).rglob("*.py"))]


def imports(module: Module, *, lazy: bool = True) -> Iterator[str]:
    """Yield the dotted names that a module imports; without lazy ones, those of its import alone.

    `from a.b import c` yields `a.b.c`, which may be a module or a name in one: see `imported_modules`.
    """
    for node in _nodes(module.tree, lazy=lazy):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{module.file} has a relative import in line {node.lineno}")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_graph(found: Iterable[Module], *, lazy: bool = True) -> dict[str, set[str]]:
    """Return for each module the others of `found` that it imports."""
    names = {module.name: module for module in found}
    graph: dict[str, set[str]] = {}
    for name, module in names.items():
        targets = {_longest_known(imported, names) for imported in imports(module, lazy=lazy)}
        graph[name] = {target for target in targets if target and target != name}
    return graph


def room_of(module: Module) -> str:
    """Return a module's room: its folder, but for the top of a package, which has words and a face.

    Words are what all of the package may import; the face imports all of it.
    """
    package, stem = module.file.split("/")[0], module.path.stem
    if module.folder != package or package in ("keda", "cronjobs"):
        return "outside" if "/src/" in module.file or "/versions/" in module.file else module.folder
    if package == "dispatcher":
        return _FACES.get(stem, "dispatcher words")
    return f"{package} entry" if stem in _ENTRIES.get(package, ()) else f"{package} words"


def room_graph(found: Iterable[Module]) -> dict[str, set[str]]:
    """Return for each room the others that its modules import, lazily or not."""
    known = list(found)
    rooms = {module.name: room_of(module) for module in known}
    graph: dict[str, set[str]] = {room: set() for room in rooms.values()}
    for name, targets in import_graph(known).items():
        graph[rooms[name]] |= {rooms[target] for target in targets} - {rooms[name]}
    return graph


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of nodes that reach each other (Tarjan 1972), without single ones."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in order:
                visit(target)
            if target in stack:
                low[node] = min(low[node], low[target])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return groups


def depth(graph: Mapping[str, set[str]]) -> int:
    """Return the number of floors: the longest way down, a cycle counted as one floor."""
    room = {node: index for index, group in enumerate(cycles(graph)) for node in group}
    of = {node: room.get(node, node) for node in graph}
    below: dict[object, set[object]] = {}
    for node, targets in graph.items():
        below.setdefault(of[node], set()).update({of[target] for target in targets} - {of[node]})
    floors: dict[object, int] = {}

    def floor(node: object) -> int:
        if node not in floors:
            floors[node] = 1 + max((floor(target) for target in below[node]), default=0)
        return floors[node]

    return max(map(floor, below), default=0)


def _nodes(tree: ast.Module, *, lazy: bool) -> Iterator[ast.AST]:
    if lazy:
        yield from ast.walk(tree)
        return
    # What runs when the module is imported; a block of types alone does not.
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or _is_type_checking(node):
            continue
        yield node
        pending += list(ast.iter_child_nodes(node))


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _longest_known(name: str, known: Mapping[str, Module]) -> str | None:
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None
