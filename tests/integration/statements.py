"""Every statement of ours that stands in the code as a whole text, and its plan for any parameters."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_VERB = re.compile(r"\s*(--[^\n]*\n\s*)*(SELECT|UPDATE|INSERT|DELETE|WITH)\b")
_PARAMETER = re.compile(r"%%|%s|%\(\w+\)s|(?<![:\w\\]):[a-z_]\w*")
_NOT_RUN = ("core/store/schema/", "core/embedded/", "core/testing/")
"""Changes of the schema, and what has no fleet."""


@cache
def statements() -> dict[str, str]:
    """Where each one stands, by its text: constants of modules as they are put together, and texts in functions."""
    found: dict[str, str] = {}
    for folder in ("core", "console", "tasks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if not name.startswith(_NOT_RUN):
                module = importlib.import_module(_module(path))
                for variable, value in vars(module).items():
                    for text in filter(_VERB.match, _texts(value)):
                        found.setdefault(text, f"{name} {variable}")
                for function, text in _in_functions(path):
                    found.setdefault(text, f"{name} {function}")
    return found


def _module(path: Path) -> str:
    parts = ("graph_migrator", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] in {"__init__", "__main__"} else parts)


def _texts(value: object) -> Iterator[str]:
    value = getattr(value, "text", value)  # of SQLAlchemy
    if isinstance(value, str):
        yield value
    elif isinstance(value, (tuple, list, Mapping)):
        each: Iterable[object] = value.values() if isinstance(value, Mapping) else value
        yield from (text for text in each if isinstance(text, str))


def _in_functions(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef):
            parts = {
                id(part) for each in ast.walk(node) if isinstance(each, ast.JoinedStr) for part in each.values
            }
            for each in ast.walk(node):
                text = each.value if isinstance(each, ast.Constant) and id(each) not in parts else None
                if isinstance(text, str) and _VERB.match(text):
                    yield node.name, text


def numbered(text: str) -> str:
    """The statement with ``$1`` and so on in place of its parameters, and a page in place of a limit."""
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        name = found[0]
        if name == "%%":
            return "%"
        if name == "%s" or name not in names:
            names.append(name)
            return f"${len(names)}"
        return f"${names.index(name) + 1}"

    return re.sub(r"LIMIT \$\d+", "LIMIT 100", _PARAMETER.sub(number, text))


def explain(cursor: Any, text: str) -> dict[str, Any]:
    """Its plan, whatever its parameters are."""
    cursor.execute(f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {numbered(text)}")
    plan: dict[str, Any] = cursor.fetchone()[0][0]["Plan"]
    return plan


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All nodes of a plan."""
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)
