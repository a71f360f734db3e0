"""Rebuild hops in shards: staged side by side, swapped in by the attempt that closes the hop."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from graph_migrator import Edge, GraphType, HopContext, MigrationReport, Node, Nodes, graph_repair
from graph_migrator.core.audit.digests import verify_data
from graph_migrator.core.audit.verify import verify_chains
from graph_migrator.core.errors import CheckFailed
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.in_process import follow, run_graph_migration
from graph_migrator.core.execution.recovery import sweep
from graph_migrator.core.graph_types import registry
from graph_migrator.core.interchange import export_graph
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.core.store.session import Executors
from graph_migrator.testing import MakeGraph, assert_survives_crash
from tests.rows import add_graph, graph_row, migration_of, properties, rows

pytest_plugins = ["graph_migrator.testing"]

ALL = [f"n{i:04}" for i in range(30)]
WHOLE = {"": 30}
MOVED = {"widen": 30}

batches: list[list[str]] = []
acts: dict[str, Any] = {}
"""By the id of a row: what to do, once, in the batch that has it."""


def wide(*, shards: int | None = 3, rebuild: bool = True, release: Literal[1, 2] = 1) -> GraphType:
    """v1 to v2 in three shards of two batches of five. Each release has a fingerprint of its own."""
    kind = GraphType("wide-rebuild", digest=True)

    def check(_: HopContext) -> str | None:
        return "not yet" if acts.pop("check", None) else None

    @kind.hop(1, 2, over=Nodes(), batch_size=5, shards=shards, rebuild=rebuild, check=check)
    def widen(ctx: HopContext, nodes: list[Node]) -> None:
        assert release
        batches.append([node.id for node in nodes])
        for node in nodes:
            if act := acts.pop(node.id, None):
                act(ctx)
            node.properties.setdefault("trail", []).append(ctx.hop)

    @widen.reverse
    def narrow(ctx: HopContext, nodes: list[Node]) -> None:
        for node in nodes:
            del node.properties["trail"]

    registry.register(kind)
    return kind


@contextmanager
def released(**options: Any) -> Iterator[None]:
    """The process has another release of the type."""
    registry.reset()
    wide(**options)
    yield


@pytest.fixture(autouse=True)
def graph(engine: Engine) -> Iterator[None]:
    wide()
    edges = ((f"e{i:04}", f"n{i:04}", f"n{(i + 1) % 30:04}") for i in range(30))
    add_graph(engine, "g", "wide-rebuild", nodes=30, edges=edges)
    yield
    batches.clear()
    acts.clear()


def exported(engine: Engine) -> bytes:
    stream = io.BytesIO()
    export_graph(engine, "g", stream, format="jsonl")
    return stream.getvalue()


def seen(engine: Engine) -> dict[str, int]:
    """How many nodes bear which trail."""
    trails = [" ".join(values.get("trail", [])) for values in properties(engine, "g").values()]
    return {trail: trails.count(trail) for trail in trails}


def staged(engine: Engine) -> list[tuple[Any, ...]]:
    return rows(
        engine,
        "SELECT r.status, r.done, r.rows, (SELECT count(*) FROM rebuilt_rows x WHERE x.rebuild_id = r.id) "
        "FROM rebuilds r ORDER BY r.id",
    )


def attempts(engine: Engine) -> list[tuple[Any, ...]]:
    return rows(engine, "SELECT shard, status, rows_changed FROM hop_attempts ORDER BY id")


def fail(_: HopContext) -> None:
    raise ValueError("half-way")


def retried(executors: Executors) -> MigrationReport:
    with executors.borrow() as executor:
        _, again = operations.retry(executor, "g", accept_new_code=True)
    assert again is not None
    return follow(executors, again)


def test_readers_see_one_version_whole_and_the_way_back_is_one_commit(
    engine: Engine, executors: Executors
) -> None:
    before, met = exported(engine), []
    for row in ALL:
        acts[row] = lambda _: met.append(exported(engine) == before)
    report = run_graph_migration(executors, "g")
    assert met == [True] * 30
    assert (report.version, seen(engine), sorted(chain.from_iterable(batches))) == (2, MOVED, ALL)
    assert attempts(engine) == [
        (1, "succeeded", 0),
        (2, "succeeded", 0),
        (3, "succeeded", 0),
        (None, "succeeded", 30),
    ]
    assert staged(engine) == [("kept", 30, 30, 30)]
    assert rows(engine, "SELECT * FROM shards") == rows(engine, "SELECT * FROM checkpoints") == []
    assert run_graph_migration(executors, "g", 1).version == 1
    assert exported(engine) == before
    assert attempts(engine)[4:] == [(None, "succeeded", 30)], "no code ran"
    assert (verify_data(engine).graphs, verify_data(engine).differences) == (1, ())
    assert verify_chains(engine).count == 0


def test_it_survives_a_crash_at_every_boundary(make_graph: MakeGraph) -> None:
    nodes = [Node(f"n{i:02}", "Node") for i in range(12)]
    edges = [Edge(f"e{i:02}", f"n{i:02}", f"n{(i + 1) % 12:02}", "KNOWS") for i in range(12)]
    kind = wide(shards=2)
    assert_survives_crash(kind, make_graph(kind, nodes=nodes, edges=edges))


def test_a_shard_writes_nothing_of_the_graph(engine: Engine, executors: Executors) -> None:
    codes = []

    def attack(ctx: HopContext) -> None:
        for statement in (
            "UPDATE nodes SET label = 'X' WHERE graph_id = :graph_id AND id = 'n0012'",  # of its own range
            "INSERT INTO edges VALUES (:graph_id, 'e', 'n0001', 'n0002', 'X')",
            "UPDATE graphs SET config = '{\"a\": 1}' WHERE id = :graph_id",
        ):
            savepoint = ctx.connection.begin_nested()
            try:
                ctx.execute(statement)
            except DBAPIError as error:
                codes.append(getattr(error.orig, "pgcode", None))
            savepoint.rollback()

    acts["n0012"] = attack
    assert run_graph_migration(executors, "g").version == 2
    assert codes == ["23000", "23000", "23000"]


@pytest.mark.parametrize("shards", [3, None])
def test_rows_that_its_code_writes_elsewhere_are_not_counted_as_staged(
    engine: Engine, executors: Executors, shards: int | None
) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE public.notes (id text)"))
    acts["n0012"] = lambda ctx: ctx.execute("INSERT INTO public.notes VALUES ('n0012')")
    with released(shards=shards):
        assert run_graph_migration(executors, "g").version == 2
    assert staged(engine) == [("kept", 30, 30, 30)]


def test_a_retry_does_only_what_is_left(engine: Engine, executors: Executors) -> None:
    acts["n0017"] = fail
    with pytest.raises(ValueError, match="half-way"):
        run_graph_migration(executors, "g")
    assert (seen(engine), graph_row(engine, "g").version) == (WHOLE, 1)
    assert staged(engine) == [("staging", 15, 15, 15)]
    done = len(batches)
    assert retried(executors).version == 2
    assert sorted(chain.from_iterable(batches[done:])) == ALL[15:]
    assert (seen(engine), staged(engine)) == (MOVED, [("kept", 30, 30, 30)])


def test_a_swap_that_fails_is_done_again_without_the_batches(engine: Engine, executors: Executors) -> None:
    acts["check"] = True
    with pytest.raises(CheckFailed):
        run_graph_migration(executors, "g")
    assert (seen(engine), staged(engine)) == (WHOLE, [("staging", 30, 30, 30)])
    assert retried(executors).version == 2
    assert (len(batches), seen(engine)) == (6, MOVED)


@pytest.mark.parametrize(
    "options",
    [{"release": 2}, {"release": 2, "shards": None}, {"release": 2, "rebuild": False},
     {"release": 2, "rebuild": False, "shards": None}],
    ids=["other code", "no shards", "no rebuild", "neither"],
)  # fmt: skip
def test_a_retry_with_other_code_begins_anew(
    engine: Engine, executors: Executors, options: dict[str, Any]
) -> None:
    acts["n0017"] = fail
    with pytest.raises(ValueError, match="half-way"):
        run_graph_migration(executors, "g")
    done = len(batches)
    with released(**options):
        assert retried(executors).version == 2
    assert sorted(chain.from_iterable(batches[done:])) == ALL
    assert seen(engine) == MOVED
    with executors.borrow() as executor:
        sweep(executor)
    assert staged(engine) == ([] if options.get("rebuild") is False else [("kept", 30, 30, 30)])


@pytest.mark.parametrize("shards", [3, None])
def test_a_hop_that_stands_half_way_in_the_graph_goes_on_as_it_began(
    engine: Engine, executors: Executors, shards: int | None
) -> None:
    with released(shards=shards, rebuild=False):
        acts["n0017"] = fail
        with pytest.raises(ValueError, match="half-way"):
            run_graph_migration(executors, "g")
    half = seen(engine)
    assert half == {"": 15, "widen": 15}
    with released(shards=shards, rebuild=True, release=2):
        assert retried(executors).version == 2
    assert (seen(engine), staged(engine)) == (MOVED, [])


def test_staged_without_shards_it_goes_on_without(engine: Engine, executors: Executors) -> None:
    with released(shards=None):
        acts["n0017"] = fail
        with pytest.raises(ValueError, match="half-way"):
            run_graph_migration(executors, "g")
    hop = registry.graph_type("wide-rebuild").directed(1, 2)
    object.__setattr__(hop, "shards", 3)  # and the same fingerprint
    assert retried(executors).version == 2
    assert (seen(engine), staged(engine)) == (MOVED, [("kept", 30, 30, 30)])
    assert {shard for shard, *_ in attempts(engine)} == {None}


def test_after_a_repair_it_stages_anew(engine: Engine, executors: Executors) -> None:
    acts["n0017"] = fail
    with pytest.raises(ValueError, match="half-way"):
        run_graph_migration(executors, "g")
    with engine.begin() as connection, graph_repair(connection, "g", by="ada", reason="corrected"):
        connection.execute(text("UPDATE nodes SET properties = '{\"mended\": true}' WHERE id = 'n0003'"))
    assert retried(executors).version == 2
    assert properties(engine, "g")["n0003"] == {"mended": True, "trail": ["widen"]}
    assert seen(engine) == MOVED


def test_cancelled_on_the_way_the_graph_is_whole_and_free(engine: Engine, executors: Executors) -> None:
    def cancel(_: HopContext) -> None:
        with executors.borrow() as executor:
            operations.cancel(executor, "g")

    before = exported(engine)
    acts["n0017"] = cancel
    with pytest.raises(Exception, match="cancelled"):
        run_graph_migration(executors, "g")
    assert migration_of(engine, "g").status == MigrationStatus.CANCELLED
    row = graph_row(engine, "g")
    assert (row.migration_id, row.partially_migrated, exported(engine)) == (None, None, before)
    assert rows(engine, "SELECT * FROM shards") == []
    with executors.borrow() as executor:
        sweep(executor)
    assert staged(engine) == []
    assert run_graph_migration(executors, "g").version == 2
