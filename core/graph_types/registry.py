"""The graph types that this process knows.

Types come from installed packages, through the entry-point group ``graph_migrator.graph_types``, and from
the setting ``GRAPH_MIGRATOR_TYPES`` (comma-separated ``module:attribute``). Either names a `GraphType` or
several in an iterable. Every type is checked before it is used.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from importlib import metadata
from typing import Final

from graph_migrator.core.errors import InvalidGraphType, InvalidRequest, UnknownGraphType
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.settings import settings

ENTRY_POINTS: Final = "graph_migrator.graph_types"

_registered: dict[str, GraphType] = {}


def load_types(spec: str | None = None) -> dict[str, GraphType]:
    """Load and check all types, by name.

    Args:
        spec: Comma-separated ``module:attribute``, found also from the current working directory; None for
            what the settings say.

    Raises:
        InvalidGraphType: A type contradicts itself, two have one name, or an entry point names no type.
        InvalidRequest: A part of `spec` names no type.
    """
    found: dict[str, tuple[GraphType, str]] = {}
    named = settings().types if spec is None else spec
    for source, graph_type in (*_from_entry_points(), *_from_spec(named)):
        graph_type.validate()
        other, other_source = found.setdefault(graph_type.name, (graph_type, source))
        if other is not graph_type:
            reason = f"it is defined twice, by {other_source} and by {source}"
            raise InvalidGraphType(graph_type.name, reason)
    return {name: found[name][0] for name in sorted(found)}


def graph_types() -> dict[str, GraphType]:
    """All types that this process knows, by name.

    Raises:
        InvalidGraphType, InvalidRequest: As `load_types`, which is called once in a process.
    """
    return dict(sorted((_loaded() | _registered).items()))


def graph_type(name: str) -> GraphType:
    """The type of this name.

    Raises:
        UnknownGraphType: This process knows none.
        InvalidGraphType, InvalidRequest: As `load_types`, which is called once in a process.
    """
    found = _registered.get(name) or _loaded().get(name)
    if found is None:
        raise UnknownGraphType(name, list(graph_types()))
    return found


def register(graph_type: GraphType) -> GraphType:
    """Make a type known to this process, in place of one of the same name: for tests and embedding.

    Raises:
        InvalidGraphType: It contradicts itself.
    """
    graph_type.validate()
    _registered[graph_type.name] = graph_type
    return graph_type


def reset() -> None:
    """Forget all types; those that are found by name are loaded again when they are needed."""
    _registered.clear()
    _loaded.cache_clear()


@cache
def _loaded() -> dict[str, GraphType]:
    return load_types()


def _from_entry_points() -> Iterator[tuple[str, GraphType]]:
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        source = f"entry point {entry.name!r} ({entry.value})"
        try:
            yield from _types_in(entry.load, source)
        except ValueError as error:
            raise InvalidGraphType(entry.name, str(error)) from error


def _from_spec(spec: str) -> Iterator[tuple[str, GraphType]]:
    for part in filter(None, map(str.strip, spec.split(","))):
        try:
            yield from _types_in(partial(_resolve, part), repr(part))
        except ValueError as error:
            raise InvalidRequest("GRAPH_MIGRATOR_TYPES", str(error)) from error


def _resolve(part: str) -> object:
    module, _, attribute = part.partition(":")
    if not module or not attribute:
        raise ValueError("it is not of the form module:attribute")
    # Like `celery -A`: what lies in the current directory can be named. It stays, for imports inside hops.
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    found: object = importlib.import_module(module)
    for name in attribute.split("."):
        found = getattr(found, name)
    return found


def _types_in(load: Callable[[], object], source: str) -> Iterator[tuple[str, GraphType]]:
    """The types that a name leads to, each with where it was found.

    Raises:
        ValueError: It leads nowhere, or to something else.
    """
    try:
        found = load()
    except InvalidGraphType:
        raise
    except Exception as error:  # a module may raise anything while it is imported
        raise ValueError(f"{source} cannot be loaded: {type(error).__name__}: {error}") from error
    for each in found if isinstance(found, Iterable) else [found]:
        if not isinstance(each, GraphType):
            raise ValueError(f"{source} is {type(each).__name__}, neither a GraphType nor several")
        yield source, each
