"""A graph that is migrated forward and back again is the same, byte for byte."""

from __future__ import annotations

import io
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from graph_migrator import GraphType, HopContext, Node, Nodes
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.graph_types import registry
from graph_migrator.core.interchange import export_graph
from graph_migrator.core.store.session import Executors
from tests.rows import add_graph

pytestmark = pytest.mark.usefixtures("script")


round_trip = GraphType("round_trip")
round_trip.sql_hop(
    1,
    2,
    name="rename_edges",
    forward="UPDATE edges SET type = 'ACQUAINTED_WITH' WHERE graph_id = :graph_id AND type = 'KNOWS'",
    reverse="UPDATE edges SET type = 'KNOWS' WHERE graph_id = :graph_id AND type = 'ACQUAINTED_WITH'",
)


@round_trip.hop(2, 3, over=Nodes(), batch_size=3)
def wrap(ctx: HopContext, nodes: list[Node]) -> None:
    for node in nodes:
        node.properties = {"wrapped": node.properties}


@wrap.reverse
def unwrap(ctx: HopContext, nodes: list[Node]) -> None:
    for node in nodes:
        node.properties = node.properties["wrapped"]


@round_trip.hop(3, 4)
def mark(ctx: HopContext) -> None:
    ctx.execute("UPDATE nodes SET label = label || '+' WHERE graph_id = :graph_id")


@mark.reverse
def unmark(ctx: HopContext) -> None:
    ctx.execute("UPDATE nodes SET label = left(label, -1) WHERE graph_id = :graph_id")


_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=6)
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=5,
)
_graphs = st.dictionaries(_texts, st.dictionaries(_texts, _values, max_size=3), max_size=8).flatmap(
    lambda nodes: st.tuples(
        st.just(nodes),
        st.lists(st.tuples(st.sampled_from(sorted(nodes)), st.sampled_from(sorted(nodes))), max_size=5)
        if nodes
        else st.just([]),
    )
)


@hypothesis_settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(_graphs)
def test_up_to_the_last_version_and_back_gives_the_same_bytes(
    engine: Engine, graph: tuple[dict[str, Any], list[tuple[str, str]]]
) -> None:
    registry.register(round_trip)
    nodes, pairs = graph
    slug = f"g{uuid4().hex}"
    add_graph(
        engine, slug, "round_trip", nodes=nodes, edges=[(f"e{i}", *pair) for i, pair in enumerate(pairs)]
    )
    before = exported(engine, slug)
    executors = Executors(engine)
    assert run_graph_migration(executors, slug).version == 4
    if nodes:
        assert exported(engine, slug) != before
    assert run_graph_migration(executors, slug, 1).version == 1
    executors.close()
    assert exported(engine, slug) == before


def exported(engine: Engine, slug: str) -> bytes:
    stream = io.BytesIO()
    export_graph(engine, slug, stream, format="jsonl")
    return stream.getvalue()
