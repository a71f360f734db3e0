"""What a graph type must not do, found before it is used."""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel

from graph_migrator.core.graph_types.directed_hop import (
    BATCH_PARAMETERS,
    BATCH_SIZE,
    UNDO_FOR,
    DirectedHop,
    Direction,
    HopFunction,
)
from graph_migrator.core.graph_types.module_source import ModuleSource
from graph_migrator.core.graph_types.selectors import Edges, Nodes, Rows, Selector

if TYPE_CHECKING:
    from graph_migrator.core.graph_types.definition import GraphType, Hop

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")


def problems_of(graph_type: GraphType) -> Iterator[str]:
    """Everything that is wrong with a graph type, each in one phrase."""
    if not _NAME.fullmatch(graph_type.name):
        yield "its name must be of lower-case letters, digits, _ and -, a letter first, at most 63"
    if not graph_type.hops:
        yield "it has no hops"
        return
    yield from _in_the_chain(graph_type.hops)
    for hop in graph_type.hops:
        for directed in hop.directions.values():
            yield from _in_a_hop(directed)
    yield from _in_the_models(graph_type)
    if graph_type.detector is not None:
        yield from _in_a_function("detect", graph_type.detector, ["ctx"])
    if _imports_alembic(graph_type):
        yield "its module imports alembic: hops change data, tables are changed by schema migrations"


def _in_the_chain(hops: tuple[Hop, ...]) -> Iterator[str]:
    for hop in hops:
        what = f"hop {hop.name!r} (v{hop.from_version}→v{hop.to_version})"
        if hop.from_version < 1:
            yield f"{what} starts below v1"
        if hop.to_version != hop.from_version + 1:
            yield f"{what} does not lead to the next version"
        if not hop.name.replace("-", "_").isidentifier():
            yield f"{what} has no plain name; a lambda cannot be a hop"
    for name, count in Counter(hop.name for hop in hops).items():
        if count > 1:
            yield f"{count} hops are called {name!r}"
    starts = Counter(hop.from_version for hop in hops)
    for start, count in starts.items():
        if count > 1:
            yield f"{count} hops start from v{start}"
    for one, other in pairwise(sorted(starts)):
        if other > one + 1:
            yield f"no hop leads from v{one + 1} to v{other}"


def _in_a_hop(hop: DirectedHop) -> Iterator[str]:
    what = f"hop {hop.name!r}" if hop.direction is Direction.FORWARD else f"the reverse of hop {hop.name!r}"
    over: object = hop.over  # an author's module need not be type-checked
    if over is not None and not isinstance(over, Nodes | Edges | Rows):
        yield f"{what}: over= is neither Nodes, Edges nor Rows"
        return
    if hop.over is None and hop.batch_size != BATCH_SIZE:
        yield f"{what}: batch_size= without over= has no meaning"
    elif hop.batch_size < 1:
        yield f"{what}: batch_size= must be 1 or more"
    yield from _in_the_shards(what, hop)
    yield from _in_the_rebuild(what, hop)
    if hop.timeout is not None and hop.timeout <= 0:
        yield f"{what}: timeout= must be above 0"
    if not all(isinstance(each, type) and issubclass(each, Exception) for each in hop.retry_on):
        yield f"{what}: retry_on= must name exception types"
    for option, function in (("when=", hop.when), ("check=", hop.check)):
        if function is not None:
            yield from _in_a_function(f"{option} of {what}", function, ["ctx"])
    if hop.run is not None:
        yield from _in_a_function(what, hop.run, ["ctx", "rows"] if hop.is_batched else ["ctx"])
    if hop.sql is not None:
        yield from _in_sql(what, hop.sql, hop.over)


def _in_the_shards(what: str, hop: DirectedHop) -> Iterator[str]:
    shards: object = hop.shards
    if shards is None:
        return
    if shards != "auto" and (
        isinstance(shards, bool) or not isinstance(shards, int) or not 2 <= shards <= 1_000
    ):
        yield f"{what}: shards= is neither 'auto' nor a number from 2 to 1000"
    if hop.over is None:
        yield f"{what}: shards= without over= has no meaning"
    if hop.when is not None:
        yield f"{what}: a hop with shards= takes no when="


def _in_the_rebuild(what: str, hop: DirectedHop) -> Iterator[str]:
    if not hop.rebuild:
        if hop.undo_for != UNDO_FOR:
            yield f"{what}: undo_for= without rebuild= has no meaning"
        return
    if hop.over is None:
        yield f"{what}: rebuild= without over= has no meaning; a hop in one transaction is one commit as it is"
    elif isinstance(hop.over, Rows):
        yield f"{what}: rebuild= is for Nodes and Edges; rows of a table of your own are not staged"
    if hop.undo_for < 0:
        yield f"{what}: undo_for= must be 0 or more"


def _in_a_function(what: str, function: HopFunction, arguments: list[str]) -> Iterator[str]:
    inner = inspect.unwrap(function)
    if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
        yield f"{what} is async; hops are plain functions"
    elif inspect.isgeneratorfunction(inner):
        yield f"{what} is a generator: called, it would do nothing"
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        yield f"{what} must take ({', '.join(arguments)})"


def _in_sql(what: str, sql: str, over: Selector | None) -> Iterator[str]:
    for name in ("graph_id",) if over is None else BATCH_PARAMETERS:
        if not re.search(rf"(?<![:\w]):{name}\b", sql):
            yield f"{what}: its SQL does not mention :{name}"
    if over is not None and len(over.key) > 1:
        yield f"{what}: a batched SQL hop needs a key of one column; process these rows with a function"


def _in_the_models(graph_type: GraphType) -> Iterator[str]:
    known = range(graph_type.oldest, graph_type.newest + 1)
    for kind, versions in (("node", graph_type.nodes), ("edge", graph_type.edges)):
        for version, models in versions.items():
            if version not in known:
                yield f"there are {kind} models for v{version}, which no hop touches"
            declared: Mapping[str, object] = models
            for label, model in declared.items():
                if not (isinstance(model, type) and issubclass(model, BaseModel)):
                    yield f"the {kind} model of {label!r} in v{version} is no pydantic model"


def _imports_alembic(graph_type: GraphType) -> bool:
    ways = [way for hop in graph_type.hops for way in hop.directions.values()]
    sources = [ModuleSource.of(inspect.unwrap(way.run)) for way in ways if way.run is not None]
    if graph_type.module in sys.modules:
        with suppress(OSError):  # a type that is made in a REPL, of SQL hops only: nothing to look at
            sources.append(ModuleSource.of(sys.modules[graph_type.module]))
    return any("alembic" in source.imports for source in sources)
