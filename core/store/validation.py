"""Holding a graph's rows against the pydantic models of the version that a hop moved them to.

What is stored is JSON, so it is validated as JSON: a model in strict mode takes a date written as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ValidationError
from sqlalchemy import text

from graph_migrator.core.errors import InvalidGraphData
from graph_migrator.core.graph_types.context import HopContext
from graph_migrator.core.graph_types.data import Node
from graph_migrator.core.graph_types.selectors import Edges, Nodes, Rows

if TYPE_CHECKING:
    from graph_migrator.core.graph_types.definition import DirectedHop

_NAMED: Final = 20
"""At most this many failing rows are named; the others are counted."""
_PIECE: Final = 1_000

_Row = tuple[str, str, type[BaseModel], str]
"""What it is (node or edge), its id, its model, and its properties as JSON."""


def validate_rows(ctx: HopContext, hop: DirectedHop, rows: Iterable[tuple[Any, str]]) -> None:
    """Validate the nodes or edges of one batch before they are written.

    Raises:
        InvalidGraphData: Names the failing ids and fields, never their values.
    """
    if hop.node_models or hop.edge_models:
        _require_valid(ctx, hop, _with_models(hop, rows))


def validate_graph(ctx: HopContext, hop: DirectedHop) -> None:
    """Validate every row of the graph that has a model, after a hop that is one transaction.

    Raises:
        InvalidGraphData: Names the failing ids and fields, never their values.
    """
    _require_valid(ctx, hop, _stored(ctx, hop, "node", list(hop.node_models)))
    _require_valid(ctx, hop, _stored(ctx, hop, "edge", list(hop.edge_models)))


def validate_range(
    ctx: HopContext, hop: DirectedHop, over: Nodes | Edges | Rows, first: Any, last: Any
) -> None:
    """Validate what a batch's SQL left between two ids.

    Raises:
        InvalidGraphData: Names the failing ids and fields, never their values.
    """
    match over:
        case Nodes():
            _require_valid(ctx, hop, _stored(ctx, hop, "node", list(hop.node_models), (first, last)))
        case Edges():
            _require_valid(ctx, hop, _stored(ctx, hop, "edge", list(hop.edge_models), (first, last)))


def validate_labels(ctx: HopContext, hop: DirectedHop, *, except_for: Nodes | Edges | Rows) -> None:
    """After the last batch, validate what the hop did not process: other labels, the other table.

    Raises:
        InvalidGraphData: Names the failing ids and fields, never their values.
    """
    match except_for:
        case Nodes(label):
            labels, types = _others(hop.node_models, label), list(hop.edge_models)
        case Edges(kind):
            labels, types = list(hop.node_models), _others(hop.edge_models, kind)
        case Rows():
            labels, types = list(hop.node_models), list(hop.edge_models)
    _require_valid(ctx, hop, _stored(ctx, hop, "node", labels))
    _require_valid(ctx, hop, _stored(ctx, hop, "edge", types))


def _others(models: Iterable[str], processed: str | None) -> list[str]:
    return [] if processed is None else [name for name in models if name != processed]


def _with_models(hop: DirectedHop, rows: Iterable[tuple[Any, str]]) -> Iterator[_Row]:
    for row, properties in rows:
        if isinstance(row, Node):
            model, what = hop.node_models.get(row.label), "node"
        else:
            model, what = hop.edge_models.get(row.type), "edge"
        if model is not None:
            yield what, row.id, model, properties


def _stored(
    ctx: HopContext, hop: DirectedHop, what: str, kinds: list[str], between: tuple[Any, Any] | None = None
) -> Iterator[_Row]:
    """The graph's rows of these labels or types, a piece at a time: memory does not grow with the graph."""
    if not kinds:
        return
    column, models = ("label", hop.node_models) if what == "node" else ("type", hop.edge_models)
    limits = " AND id BETWEEN :first AND :last" if between else ""
    first, last = between or (None, None)
    found = ctx.connection.execute(
        text(
            f"SELECT id, {column}, properties::text FROM graph_migrator.{what}s "  # noqa: S608 - own names
            f"WHERE graph_id = :graph AND {column} = ANY(:kinds){limits}"
        ),
        {"graph": ctx.graph.id, "kinds": kinds} | ({"first": first, "last": last} if between else {}),
        execution_options={"yield_per": _PIECE},
    )
    for id_, kind, properties in found:
        yield what, id_, models[kind], properties


def _require_valid(ctx: HopContext, hop: DirectedHop, rows: Iterable[_Row]) -> None:
    count = 0
    named: list[str] = []
    for what, id_, model, properties in rows:
        try:
            model.__pydantic_validator__.validate_json(properties)
        except ValidationError as error:
            count += 1
            if len(named) < _NAMED:
                named.append(describe(what, id_, error))
    if count:
        raise InvalidGraphData(ctx.graph.slug, hop.name, ctx.to_version, count, named)


def describe(what: str, id_: str, error: ValidationError) -> str:
    """A row that does not fit its model, by its id and its fields; never their values."""
    fields = ", ".join(
        f"{'.'.join(map(str, item['loc'])) or 'properties'} ({item['type']})"
        for item in error.errors(include_input=False, include_url=False, include_context=False)
    )
    return f"{what} {id_!r}: {fields}"
