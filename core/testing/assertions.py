"""Assertions about the hops of a graph type. A failure says which rows differ, and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from graph_migrator.core.errors import IrreversibleHop
from graph_migrator.core.graph_types.data import Edge, Node
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.testing.sample import Contents, SampleGraph

_SHOWN = 10
_Row = TypeVar("_Row", Node, Edge)


def assert_hop(
    graph: SampleGraph,
    from_version: int,
    to_version: int,
    *,
    nodes: Sequence[Node] | None = None,
    edges: Sequence[Edge] | None = None,
) -> None:
    """Move a graph along one hop (or several) and hold what it has then against what is expected.

    Args:
        graph: The graph; it stays at `to_version`.
        from_version: The version that it must have now.
        to_version: The version to reach, above or below.
        nodes: All nodes that are expected, in any order; None leaves them unchecked.
        edges: All edges that are expected, in any order; None leaves them unchecked.

    Raises:
        AssertionError: It is at another version, or has other data afterwards.
        Exception: What the hop raised.
    """
    at = graph.version
    if at != from_version:
        raise AssertionError(f"the graph is at v{at}, not at v{from_version}")
    found = graph.migrate(to_version).contents()
    expected = Contents(
        found.nodes if nodes is None else _sorted(nodes), found.edges if edges is None else _sorted(edges)
    )
    require_same(found, expected, f"after v{from_version}→v{to_version}")


def assert_reversible(graph_type: GraphType, graph: SampleGraph) -> None:
    """Migrate a graph forward to the newest version and back; each version must look as it did on the way forward.

    Args:
        graph_type: The type whose hops are run.
        graph: A graph at the version to begin with, usually the oldest; it is there again afterwards.

    Raises:
        AssertionError: A hop has no reverse, or its reverse does not lead back.
        Exception: What a hop raised.
    """
    require_type(graph_type, graph)
    start = graph.version
    seen = {start: graph.contents()}
    for version in range(start + 1, graph_type.newest + 1):
        seen[version] = graph.migrate(version).contents()
    for version in reversed(range(start, graph_type.newest)):
        try:
            back = graph.migrate(version).contents()
        except IrreversibleHop as error:
            raise AssertionError(f"hop {error.hop!r} (v{version}→v{version + 1}) has no reverse") from None
        require_same(back, seen[version], f"back at v{version}")


def require_same(found: Contents, expected: Contents, when: str) -> None:
    """Compare two graphs' data.

    Raises:
        AssertionError: They differ; names the rows.
    """
    lines = [
        *_differences("node", found.nodes, expected.nodes),
        *_differences("edge", found.edges, expected.edges),
    ]
    if lines:
        more = [f"… and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise AssertionError("\n  ".join([f"{when}, the graph differs:", *lines[:_SHOWN], *more]))


def require_type(graph_type: GraphType, graph: SampleGraph) -> None:
    """A graph of another type would pass by mistake."""
    if graph.graph_type is not graph_type:
        raise AssertionError(f"the graph is a {graph.graph_type.name!r}, not a {graph_type.name!r}")


def _differences(
    what: str, found: Sequence[Node] | Sequence[Edge], expected: Sequence[Node] | Sequence[Edge]
) -> list[str]:
    there = {row.id: row for row in found}
    wanted = {row.id: row for row in expected}
    lines = []
    for id_ in sorted({*there, *wanted}):
        if id_ not in wanted:
            lines.append(f"{what} {id_!r} is there and was not expected: {there[id_]}")
        elif id_ not in there:
            lines.append(f"{what} {id_!r} is missing")
        elif there[id_] != wanted[id_]:
            lines.append(f"{what} {id_!r} is      {there[id_]}\n     expected {wanted[id_]}")
    return lines


def _sorted(rows: Sequence[_Row]) -> list[_Row]:
    return sorted(rows, key=lambda row: row.id)
