"""Tests that all imports, including those in functions, follow the order in docs/rooms.toml.

`python tests/test_architecture.py --write` makes the table in docs/architecture.md from that list.
"""

import ast
import functools
import graphlib
import sys
import tomllib
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
PACKAGE = REPO / "elva_jax"
PAGE = REPO / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: made from docs/rooms.toml -->", "<!-- end of rooms -->"
ROOMS = tomllib.loads((REPO / "docs" / "rooms.toml").read_text())
ORDER = list(ROOMS)


def module_name(path: Path) -> str:
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(p): p for p in PACKAGE.rglob("*.py") if "remote_code" not in p.parts}


def imports_of(path: Path):
    """(module of the package, line) of every import that runs, not only for type checkers."""
    tree = ast.parse(path.read_text())
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    unreal = {id(inner) for block in blocks for inner in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in unreal:
            continue
        if isinstance(node, ast.Import):
            yield from ((a.name, node.lineno) for a in node.names if a.name in FILES)
        elif isinstance(node, ast.ImportFrom) and node.module in FILES:
            for a in node.names:
                full = f"{node.module}.{a.name}"
                yield full if full in FILES else node.module, node.lineno


def room(module: str) -> str:
    """The room of a module; `elva_jax` itself, which only names what is lazily loaded, has none."""
    return module.split(".")[1] if "." in module else ""


@functools.cache  # not while tests are collected, which every process does
def imports() -> dict[str, list[tuple[str, int]]]:
    """What each module imports, but itself."""
    return {name: [f for f in imports_of(path) if f[0] != name] for name, path in FILES.items()}


def test_every_room_is_listed():
    assert {room(name) for name in FILES} - {""} == set(ROOMS)


def test_rooms_import_only_rooms_before_them():
    for name, entry in ROOMS.items():
        assert set(entry["imports"]) <= set(ORDER[: ORDER.index(name)]), name


@pytest.mark.parametrize("name", ORDER)
def test_no_import_points_upwards(name):
    allowed = {*ROOMS[name]["imports"], name, ""}
    wrong = [
        f"{module}:{line} imports {target}"
        for module in FILES
        if room(module) == name
        for target, line in imports()[module]
        if room(target) not in allowed
    ]
    assert not wrong, wrong


def test_files_import_one_another_in_no_circle():
    graph = {name: {target for target, _ in found} for name, found in imports().items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def test_the_trainer_reaches_neither_models_nor_data():
    """Also through the rooms that it imports: it knows its work as `training.task.Task` alone."""
    reached, left = set(), ["elva_jax.training.train"]
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            left += [target for target, _ in imports()[name]]
    rooms = {room(name) for name in reached} - {""}
    assert rooms == {"errors", "version", "utils", "config", "parallel", "checkpoints", "training"}
    assert len(reached) <= 80


def table() -> str:
    rows = ["| Room | What is in it | What it may import |", "|---|---|---|"]
    for name, entry in ROOMS.items():
        listed = ", ".join(f"`{other}`" for other in entry["imports"]) or "nothing"
        rows.append(f"| `{name}` | {entry['holds']} | {listed} |")
    return "\n".join(rows)


def page(text: str) -> str:
    """docs/architecture.md with the table of today."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def test_the_page_shows_the_list():
    text = PAGE.read_text()
    assert page(text) == text, "run: python tests/test_architecture.py --write"


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    PAGE.write_text(page(PAGE.read_text()))
