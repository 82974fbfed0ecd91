"""The import graph: packages import downwards only, and no two modules share a name."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLUGINS = {f"ragfm_{name}": ROOT / name for name in ("backends", "connectors", "indexes")}
FOLDERS = {"ragfm": ROOT / "ragfm", **PLUGINS}

# From the bottom up: a package may import those on its own line and on the lines above it. See docs/architecture.md.
LAYERS = (
    ("core",),
    ("models", "samples"),
    ("parsing", "chunking", "embedders"),
    ("store",),
    ("ingestion", "maintenance", "retrieval"),
    ("answering", "generation"),
    ("collection",),
    ("rag",),
    ("async_rag",),
    ("evaluation",),
    ("training",),
    ("server", "integrations", "testing"),
    ("cli",),
)
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}


def modules() -> dict[str, Path]:
    """All modules that ship, by dotted name."""
    found = {}
    for name, folder in FOLDERS.items():
        base = folder.parent if name == "ragfm" else folder
        for path in folder.rglob("*.py"):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of ragfm that a file imports, within functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@cache
def graph() -> dict[str, set[str]]:
    known = modules()
    return {
        name: {target for target in imports(path, known) if target in known and target != name}
        for name, path in known.items()
    }


def package(module: str) -> str:
    """The part of the tree that a module belongs to: `core`, `rag`, or the package of indexes or connectors."""
    parts = module.split(".")
    return parts[1] if parts[0] == "ragfm" and len(parts) > 1 else parts[0]


def cycles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in arrows.get(node, ()):
            if target not in index:
                visit(target)
            if target in stack:
                low[node] = min(low[node], low[target])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in arrows:
        if node not in index:
            visit(node)
    return found


def test_every_package_has_a_layer() -> None:
    packages = {package(name) for name in modules()} - {"ragfm", "__main__", *PLUGINS}
    assert packages == set(LEVEL)


def test_packages_import_downwards_only() -> None:
    wrong = [
        f"{name} → {target}"
        for name, targets in graph().items()
        for target in targets
        if LEVEL.get(package(target), -1) > LEVEL.get(package(name), len(LAYERS))
    ]
    assert not wrong, "\n".join(sorted(wrong))


def test_no_cycle_between_packages() -> None:
    arrows: dict[str, set[str]] = defaultdict(set)
    for name, targets in graph().items():
        arrows[package(name)] |= {package(target) for target in targets} - {package(name), "ragfm"}
    assert not cycles(arrows)


def test_no_cycle_between_modules() -> None:
    assert not cycles(graph())


def test_plugins_know_only_the_core_and_the_parsers() -> None:
    """Connectors may use the parser of mails, and backends the store; plugins know nothing else of ragfm."""
    allowed = {"ragfm_indexes": set(), "ragfm_connectors": {"parsing"}, "ragfm_backends": {"store"}}
    wrong = {
        f"{name} → {target}"
        for name, targets in graph().items()
        if (own := package(name)) in PLUGINS
        for target in targets
        if package(target) not in {"core", own, *allowed[own]}
    }
    assert not wrong


def test_no_two_modules_share_a_name() -> None:
    names = Counter(
        name.rpartition(".")[2]
        for name, path in modules().items()
        if path.name != "__init__.py" and package(name) != "cli"
    )
    assert not [name for name, count in names.items() if count > 1]
