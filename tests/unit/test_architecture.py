"""docs/architecture.md draws what the code does: its arrows are imports, and no import between packages is missing."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
NODE = re.compile(r'^\s*(\w+)\["?([\w/. ]+?)(?:<br>.*)?"?\]', re.M)
ARROW = re.compile(r"^\s*(\w+)\s+-+>(?:\|[^|]*\|)?\s+(.+)$", re.M)


def diagrams() -> list[str]:
    return re.findall(r"```mermaid\n(.*?)```", PAGE.read_text("utf-8"), re.S)


def arrows(diagram: str) -> set[tuple[str, str]]:
    names = dict(NODE.findall(diagram))
    return {
        (names[source], names[target.strip()])
        for source, targets in ARROW.findall(diagram)
        for target in targets.split("&")
    }


def imports() -> set[tuple[str, str]]:
    """(importing module, imported module) as paths below the repository without the suffix: `core/planning`."""
    found = set()
    for folder in ("core", "tasks", "console"):
        for path in (ROOT / folder).rglob("*.py"):
            source = path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__")
            found |= {(source, target) for target in imported(path) if target != source}
    return found


def imported(path: Path) -> set[str]:
    found = set()
    tree = ast.parse(path.read_text("utf-8"))
    for_types = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    left_out = {id(node) for block in for_types for node in ast.walk(block)}
    for node in ast.walk(tree):
        if (
            id(node) not in left_out
            and isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("graph_migrator.")
        ):
            for name in node.names:
                module = f"{node.module}.{name.name}".removeprefix("graph_migrator.").replace(".", "/")
                found.add(module if is_module(module) else module.rpartition("/")[0])
    return found


def is_module(name: str) -> bool:
    return (ROOT / name).with_suffix(".py").exists() or (ROOT / name / "__init__.py").exists()


def package(module: str) -> str:
    """The box of the second diagram that a module stands in; core's single modules share one."""
    parts = module.split("/")
    if parts[0] == "console":
        return "console"
    if parts[0] == "tasks":
        return "tasks/cli" if parts[1:2] == ["cli"] else "tasks"
    if len(parts) > 1 and (ROOT / "core" / parts[1]).is_dir():
        return f"core/{parts[1]}"
    return "core"


def test_each_arrow_of_a_migration_is_an_import() -> None:
    drawn = arrows(diagrams()[0])
    assert len(drawn) > 10
    assert not drawn - imports()


def test_packages_are_drawn_with_each_import_between_them_and_no_other() -> None:
    between = {(package(source), package(target)) for source, target in imports()}
    assert arrows(diagrams()[1]) == {(source, target) for source, target in between if source != target}


def test_the_page_names_each_package_and_nothing_that_is_not_there() -> None:
    text = PAGE.read_text("utf-8")
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "core").glob("*/__init__.py")}
    assert not {folder for folder in folders if f"`{folder}/`" not in text}
    named = set(re.findall(r"`((?:core|tasks|console|docs|tests)/[\w/.*]+)`", text))
    assert not {name for name in named if not list(ROOT.glob(name.rstrip("/")))}


def test_contributing_names_nothing_that_is_not_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = set(re.findall(r"`((?:core|tasks|console|docs|tests|bench|examples)/[\w/.*]+)`", text))
    assert len(named) > 10
    assert not {name for name in named if not list(ROOT.glob(name.rstrip("/")))}
