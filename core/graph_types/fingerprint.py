"""Whether two workers have the same code for a hop.

A fingerprint is a hash of what decides a hop's effect:

- its source, as a syntax tree. Comments, docstrings, formatting, and the annotations of arguments and
  results are not in it; nor is anything that differs between Python versions.
- every statement at the top level of the hop's module that it reaches by name, directly or through
  others: functions, constants, classes, imports. A name that is local to the hop but is also bound at the
  top level counts as reached: rather one change too many than one unnoticed.
- values that a function caught from the scope around it or as defaults, where they are plain data.
- its options, its `when` and `check` like the hop itself. SQL counts without comments and line breaks.

What other modules do is not in it, only which names are imported from them: a change of a library goes
unnoticed, as does a change of a table's triggers or of the Python version. How a module imports this package's own
names does not matter (`our_names`).
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any, Final

from graph_migrator.core.graph_types.module_source import ModuleSource
from graph_migrator.core.graph_types.our_names import PACKAGE, OurNames, is_ours

_SCHEME: Final = 1
"""Raised when the hash is made of something else; every fingerprint changes with it."""

_SQL_TOKEN: Final = re.compile(
    r"""(?P<kept> \b[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*"
                | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ )
      | (?P<blank> (?: \s | --[^\n]* | /\*.*?\*/ )+ )""",
    re.VERBOSE | re.DOTALL,
)


def fingerprint(code: Callable[..., object] | str, options: Mapping[str, object] | None = None) -> str:
    """Hash a hop's code and its options.

    Args:
        code: The hop's function, or its SQL.
        options: Plain data, selectors, exception types and functions. A batched hop's start size is not
            among them: it changes how long a batch takes, not what becomes of the rows.

    Returns:
        64 hexadecimal digits, the same in every process and under every Python version.

    Raises:
        OSError: The source of a function is unavailable.
    """
    options = options or {}
    for value in (code, *options.values()):
        if callable(value) and not isinstance(value, type) and not inspect.isfunction(inspect.unwrap(value)):
            raise OSError(f"{value!r} is no function that is written in Python")
    seen: set[int] = set()
    what = ["sql", normalise_sql(code)] if isinstance(code, str) else _form_of(code, seen)
    chosen = {name: _form_of(value, seen) for name, value in options.items()}
    text = json.dumps([_SCHEME, what, chosen], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def normalise_sql(sql: str) -> str:
    """The statement without comments, each run of white space as one blank. Quoted text is kept as it is."""
    return _SQL_TOKEN.sub(lambda match: match["kept"] or " ", sql).strip()


def _form_of(value: object, seen: set[int]) -> Any:
    """A value in JSON: equal for equal values, different for different ones where they are plain data."""
    unwrapped = inspect.unwrap(value) if callable(value) else value
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return [type(value).__name__, ascii(value)]
    if isinstance(value, type):
        module = PACKAGE if is_ours(value.__module__) else value.__module__
        return ["type", f"{module}.{value.__qualname__}"]
    if inspect.isfunction(unwrapped):
        return _form_of_function(unwrapped, seen)
    if isinstance(value, tuple | list):
        return [type(value).__name__, [_form_of(each, seen) for each in value]]
    if isinstance(value, set | frozenset):
        return [type(value).__name__, _sorted(_form_of(each, seen) for each in value)]
    if isinstance(value, Mapping):
        pairs = ([_form_of(key, seen), _form_of(each, seen)] for key, each in value.items())
        return ["mapping", _sorted(pairs)]
    if is_dataclass(value):
        return [
            type(value).__qualname__,
            {f.name: _form_of(getattr(value, f.name), seen) for f in fields(value)},
        ]
    return ["object", type(value).__qualname__]


def _sorted(forms: Iterable[Any]) -> list[Any]:
    return sorted(forms, key=lambda form: json.dumps(form, sort_keys=True))


def _form_of_function(function: Callable[..., Any], seen: set[int]) -> Any:
    if id(function) in seen:  # calls itself, or the same function is `when` and `check`
        return ["again", function.__qualname__]
    seen.add(id(function))
    module = ModuleSource.of(function)
    nodes = module.nodes_of(function)
    ours = OurNames(function.__globals__, module.bindings)
    return [
        "function",
        _form_of_node(nodes, ours),
        {name: _form_of_node(statements, ours) for name, statements in _reached(module, nodes, ours).items()},
        {name: _form_of(value, seen) for name, value in _caught(function).items()},
        [_form_of(value, seen) for value in (function.__defaults__, function.__kwdefaults__)],
    ]


def _caught(function: Callable[..., Any]) -> dict[str, object]:
    """The variables that a function caught from the functions around it."""
    caught: dict[str, object] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # not assigned yet
            caught[name] = cell.cell_contents
    return caught


def _reached(module: ModuleSource, nodes: list[ast.AST], ours: OurNames) -> dict[str, list[ast.AST]]:
    """The statements of the module's top level that these nodes reach by name, through others too."""
    reached: dict[str, list[ast.AST]] = {}
    ahead = list(nodes)
    while ahead:
        for name in ours.other_names(ahead.pop()):
            if name in module.bindings and name not in reached:
                reached[name] = module.bindings[name]
                ahead += module.bindings[name]
    return reached


def _form_of_node(node: Any, ours: OurNames) -> Any:
    """A syntax tree in JSON, the same under every Python version.

    Python's own `ast.unparse` and `ast.dump` are not used: quotes inside f-strings, empty lists and fields
    that a later version added make their results differ.
    """
    if isinstance(node, list):
        return [_form_of_node(each, ours) for each in node]
    if isinstance(node, ast.Constant):
        return ["Constant", type(node.value).__name__, ascii(node.value)]
    if not isinstance(node, ast.AST):
        return node
    name = ours.name(node)
    if name is not None:
        return ["ours", name]
    present = {
        name: value
        for name, value in ast.iter_fields(node)
        # An empty field is left out: older versions do not have it.
        if name not in {"ctx", "kind", "type_comment"} and value is not None and value != []
    }
    if isinstance(node, ast.ImportFrom) and ours.imports(node):
        present["module"] = PACKAGE
    if isinstance(node, ast.JoinedStr):
        present["values"] = _joined(node.values)
    return [type(node).__name__, {name: _form_of_node(value, ours) for name, value in present.items()}]


def _joined(values: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string; how constant text is cut into parts depends on the Python version."""
    parts: list[ast.expr] = []
    for value in values:
        if isinstance(value, ast.Constant) and parts and isinstance(parts[-1], ast.Constant):
            parts[-1] = ast.Constant(str(parts[-1].value) + str(value.value))
        elif not isinstance(value, ast.Constant) or value.value != "":
            parts.append(value)
    return parts
