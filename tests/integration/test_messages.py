"""How many messages a migration sends to Postgres; each costs more than most of what is in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from sqlalchemy import Engine, text

from graph_migrator import GraphType, HopContext
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.execution.model import Caller, Worker
from graph_migrator.core.execution.run_hop import MOST_TYPES
from graph_migrator.core.execution.straight import FreeGraph, run_straight
from graph_migrator.core.graph_types import registry
from graph_migrator.core.planning import make_plan
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Script
from tests.rows import add_graph, graph_row
from tests.wire import Wire, counting

HOP = ["lock_and_open_hop", "hop", "finish_hop"]


@pytest.fixture
def wired(database_url: str) -> Iterator[tuple[Executors, Wire]]:
    """Executors whose messages are counted; their session is open already."""
    with counting(database_url) as (url, wire):
        through = make_engine(url)
        executors = Executors(through)
        with executors.borrow():
            pass
        wire.take()
        yield executors, wire
        executors.close()
        through.dispose()


def _named(messages: list[str]) -> list[str]:
    """Each message by the first function of the protocol in it, or as one of a hop's own."""
    found = [re.search(r'EXECUTE "graph_migrator\.(\w+)|FROM graph_migrator\.(\w+)\(', m) for m in messages]
    return [(name[1] or name[2]) if name else "hop" for name in found]


def test_a_hop_takes_three_messages(engine: Engine, wired: tuple[Executors, Wire], script: Script) -> None:
    executors, wire = wired
    add_graph(engine, "one", "plain")
    add_graph(engine, "three", "plain")
    run_graph_migration(executors, "one", 2)
    assert _named(wire.take()) == ["lock_and_load_graph", "begin_migration", *HOP]
    run_graph_migration(executors, "three", 4)
    assert _named(wire.take()) == ["lock_and_load_graph", "begin_migration", *3 * HOP]


def test_a_hop_takes_four_where_many_types_have_one_between_its_versions(
    engine: Engine, wired: tuple[Executors, Wire], script: Script
) -> None:
    executors, wire = wired
    add_graph(engine, "g", "plain")
    for number in range(MOST_TYPES):
        kind = GraphType(f"kind-{number}")
        kind.sql_hop(1, 2, name="one", forward="UPDATE nodes SET label = label WHERE graph_id = :graph_id")
        registry.register(kind)
    run_graph_migration(executors, "g", 3)
    apart = ["lock_and_load_hop", "open_hop", "hop", "finish_hop"]
    assert _named(wire.take()) == ["lock_and_load_graph", "begin_migration", *apart, *HOP]


def test_a_hop_of_a_pack_takes_two_messages(
    engine: Engine, wired: tuple[Executors, Wire], script: Script
) -> None:
    executors, wire = wired
    kind = registry.graph_type("plain")
    for slug in ("first", "g"):
        wire.take()
        add_graph(engine, slug, "plain")
        graph = FreeGraph(graph_row(engine, slug).id, slug, 1)
        run_straight(executors, kind, graph, make_plan(slug, kind, 1, 4), caller=Caller(), worker=Worker())
    assert _named(wire.take()) == ["begin_and_open", *2 * ["hop", "finish_and_open"], "hop", "finish_hop"]


def test_a_savepoint_takes_two_more_and_a_session_none(
    engine: Engine, wired: tuple[Executors, Wire], script: Script
) -> None:
    executors, wire = wired
    add_graph(engine, "g", "plain")

    def change(ctx: HopContext) -> None:
        with ctx.savepoint():
            ctx.session.execute(text("SELECT 1"))

    script.on["one"] = change
    run_graph_migration(executors, "g", 2)
    assert wire.take()[3:-2] == ["SAVEPOINT sa_savepoint_1", "SELECT 1", "RELEASE SAVEPOINT sa_savepoint_1"]


def test_a_batch_takes_nine_messages(engine: Engine, wired: tuple[Executors, Wire], script: Script) -> None:
    executors, wire = wired
    add_graph(engine, "g", "batched", nodes=25)
    run_graph_migration(executors, "g", 3)
    names = _named(wire.take())
    opened = [place for place, name in enumerate(names) if name == "open_batch"]
    # After the first batch it asks for the health signals, and then every few seconds.
    assert names.count("health_level") == 1
    assert [later - earlier for earlier, later in pairwise(opened)] == [9 + 1, 9]
    assert names[opened[-1] :] == ["open_batch", *6 * ["hop"], "finish_hop", *HOP]


def test_a_session_is_opened_with_one_message_of_ours(engine: Engine, wired: tuple[Executors, Wire]) -> None:
    executors, wire = wired
    with executors.borrow(), executors.borrow():
        sent = wire.take()
    assert [m for m in sent if "graph_migrator" in m] == sent[-1:]
