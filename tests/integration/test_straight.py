"""A migration on one session that keeps the graph's lock: it begins and opens only what is as it was decided on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import Engine, text

from graph_migrator import GraphType, HopContext, Node, Nodes
from graph_migrator.core.decisions import Later
from graph_migrator.core.embedded import Postgres
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.in_process import _wait_for_the_end, run_graph_migration
from graph_migrator.core.execution.model import Applied, Caller, Worker
from graph_migrator.core.execution.recorded import load_report
from graph_migrator.core.execution.straight import FreeGraph, Straight, run_straight
from graph_migrator.core.graph_types import registry
from graph_migrator.core.planning import make_plan
from graph_migrator.core.rollouts import operations
from graph_migrator.core.rollouts.packs import Pack, Surroundings, _locked, _Run, _take
from graph_migrator.core.rollouts.turn import SendingPack
from graph_migrator.core.store.schema import upgrade
from graph_migrator.core.store.session import Executors
from tests.databases import connect
from tests.integration.fleet_inline import PACKED, Fleet, add_tenants, tenants
from tests.integration.scripted import Script, trails
from tests.integration.test_packs import ADA
from tests.integration.test_sessions import LEFT
from tests.rows import add_graph, advisory_locks, attempts, dump, graph_row, rows

THREE = [("one", "succeeded"), ("two", "succeeded"), ("three", "succeeded")]


def straight(
    executors: Executors, engine: Engine, slug: str, target: int, *, task: str | None = None
) -> Straight | None:
    graph = graph_row(engine, slug)
    kind = registry.graph_type(graph.graph_type)
    return run_straight(
        executors,
        kind,
        FreeGraph(graph.id, slug, graph.version),
        make_plan(slug, kind, graph.version, target),
        caller=Caller(task),
        worker=Worker("w"),
    )


def test_its_rows_and_report_are_those_of_a_chain(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "plain", nodes=2)
    ran = straight(executors, engine, "g", 4, task="call")
    assert ran is not None
    assert isinstance(ran.outcome, Applied)
    said = ran.outcome.report
    with executors.borrow() as executor:
        recorded = load_report(executor, ran.begun.migration_id)
    assert said is not None
    own_clock = {"created_at", "started_at", "finished_at", "hops"}
    assert said.model_dump(exclude=own_clock) == recorded.model_dump(exclude=own_clock)
    assert [hop.model_dump(exclude={"seconds"}) for hop in said.hops] == [
        hop.model_dump(exclude={"seconds"}) for hop in recorded.hops
    ]
    assert attempts(engine, "g") == THREE
    assert trails(engine, "g") == {"one two three"}
    assert graph_row(engine, "g").changed_at is not None
    assert rows(engine, "SELECT migration_id, settled_at IS NOT NULL FROM requests") == [
        (ran.begun.migration_id, True)
    ]
    assert not advisory_locks(engine)


def test_a_batched_hop_is_left_to_its_message(engine: Engine, executors: Executors) -> None:
    kind = GraphType("mixed")

    def whole(ctx: HopContext) -> None:
        ctx.execute("UPDATE nodes SET label = 'Seen' WHERE graph_id = :graph_id")

    def by_batches(ctx: HopContext, nodes: list[Node]) -> None:
        raise AssertionError("not here")

    kind.hop(1, 2)(whole)
    kind.hop(2, 3, over=Nodes())(by_batches)
    registry.register(kind)
    add_graph(engine, "g", "mixed")
    ran = straight(executors, engine, "g", 3)
    assert ran is not None
    assert (ran.applied, ran.outcome) == (1, None)
    assert attempts(engine, "g") == [("whole", "succeeded")]
    assert not advisory_locks(engine)
    assert straight(executors, engine, "g", 3) is None, "it is owned now"


def test_between_two_hops_its_lock_is_held_and_nothing_of_the_first_is_left(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "plain")
    found: dict[str, Any] = {}
    locks: list[int] = []

    def leave_everything(ctx: HopContext) -> None:
        for leave, _, _ in LEFT.values():
            leave(ctx)

    def look(ctx: HopContext) -> None:
        found.update({what: ask(ctx) for what, (_, ask, _) in LEFT.items()})
        locks.append(len(advisory_locks(engine)))

    script.on["one"], script.on["two"] = leave_everything, look
    ran = straight(executors, engine, "g", 3)
    assert ran is not None
    assert ran.applied == 2
    assert found == {what: expected for what, (_, _, expected) in LEFT.items()}
    assert locks == [1]
    assert not advisory_locks(engine)


def test_a_crash_of_postgres_takes_hops_back_as_a_whole_and_none_of_a_migration_that_has_ended(
    script: Script,
) -> None:
    # Nothing reaches the disk by itself.
    with Postgres(durable=False, settings={"wal_writer_delay": "10s"}) as postgres:
        upgrade(postgres.url)
        engine = connect(postgres.url)
        executors = Executors(engine)
        for slug in ("done", "hit"):
            add_graph(engine, slug, "plain")
        ended = straight(executors, engine, "done", 4)
        assert ended is not None

        def make_durable(_: HopContext) -> None:
            with engine.begin() as connection:
                connection.execute(text("CREATE TABLE public.waits_for_the_disk ()"))

        def crash(_: HopContext) -> None:
            postgres.kill()
            postgres.start()

        script.on["two"], script.on["three"] = make_durable, crash
        hit = straight(executors, engine, "hit", 4)
        assert hit is not None
        assert isinstance(hit.outcome, Later)
        assert attempts(engine, "done") == THREE
        assert graph_row(engine, "done").version == 4
        # The second hop was committed, and is gone with its data and version.
        assert attempts(engine, "hit") == [THREE[0], ("two", "running")]
        assert (graph_row(engine, "hit").version, trails(engine, "hit")) == (2, {"one"})
        script.on.clear()
        _wait_for_the_end(executors, hit.begun.migration_id)
        assert attempts(engine, "hit") == [THREE[0], ("two", "lost"), *THREE[1:]]
        assert trails(engine, "hit") == {"one two three"}
        executors.close()
        engine.dispose()


# ── nothing is begun that is not as it was read ─────────────────────────────────────────────────────


@pytest.fixture
def fleet(executors: Executors) -> Fleet:
    registry.register(tenants())
    return Fleet(executors)


def _sql(statement: str) -> Callable[[Engine, Fleet, ExitStack], Any]:
    def do(engine: Engine, _fleet: Fleet, _stack: ExitStack) -> None:
        with engine.begin() as connection:
            connection.execute(text(statement))

    return do


def _write(engine: Engine, _fleet: Fleet, stack: ExitStack) -> None:
    writer = stack.enter_context(engine.connect())
    stack.callback(writer.rollback)
    writer.execute(text("UPDATE nodes SET label = 'Open'"))


def _hold_and_resume(_engine: Engine, fleet: Fleet, _stack: ExitStack) -> None:
    fleet.do(operations.pause, "tenant", ADA)
    fleet.do(operations.resume, "tenant", ADA)


CHANGED: dict[str, Callable[[Engine, Fleet, ExitStack], Any]] = {
    "moved": lambda engine, *_: run_graph_migration(engine, "t000", 3),
    "moved half the way": lambda engine, *_: run_graph_migration(engine, "t000", 2),
    "claimed": lambda _, fleet, __: fleet.do(begin_migration, "t000", 3),
    "partially migrated": _sql(
        "ALTER TABLE graphs DISABLE TRIGGER graph_migrator_guard; UPDATE graphs SET partially_migrated = '{}'; "
        "ALTER TABLE graphs ENABLE ALWAYS TRIGGER graph_migrator_guard"
    ),
    "of another type": _sql(
        "ALTER TABLE graphs DISABLE TRIGGER graph_migrator_guard; UPDATE graphs SET graph_type = 'other'; "
        "ALTER TABLE graphs ENABLE ALWAYS TRIGGER graph_migrator_guard"
    ),
    "deleted": _sql("DELETE FROM graphs"),
    "being written": _write,
    "a known request": _sql(
        "INSERT INTO requests (task_id, verb, graph_id) SELECT request_id::text, 'migrate', graph_id "
        "FROM rollout_members"
    ),
    "no longer in the pack": _sql("UPDATE rollout_members SET pack_id = NULL, resend_at = now()"),
    "another try": _sql("UPDATE rollout_members SET number = 2"),
    "skipped": _sql("UPDATE rollout_members SET status = 'skipped', note = 'by ada', settled_at = now()"),
    "held": lambda _, fleet, __: fleet.do(operations.pause, "tenant", ADA),
    "held with all": lambda _, fleet, __: fleet.do(operations.hold_all, ADA),
    "held and resumed, perhaps with other code": _hold_and_resume,
    "in a pack that is closed": _sql("UPDATE packs SET status = 'closed', ended_at = now()"),
}


@pytest.mark.parametrize("what", ["nothing", *CHANGED])
def test_a_pack_begins_straight_what_is_as_it_was_read_and_else_writes_nothing(
    engine: Engine, fleet: Fleet, executors: Executors, what: str
) -> None:
    add_tenants(engine, 2)
    fleet.start(PACKED.model_copy(update={"max_in_flight": 1}))
    (sent,) = fleet.turn()
    assert isinstance(sent, SendingPack)
    with executors.borrow() as session, _locked(session, sent.pack_id), ExitStack() as stack:
        pack = _take(session, sent.pack_id, Worker("w"))
        assert isinstance(pack, Pack)
        if what != "nothing":
            CHANGED[what](engine, fleet, stack)
        before = dump(engine)
        run = _Run(executors, pack, Worker("w"), Surroundings(lambda *_: None))
        begun = run._run_straight(pack.graphs[0])
        assert (begun is not None) is (what == "nothing")
        if begun is None:
            assert dump(engine) == before
            held = [mode for _, mode in advisory_locks(engine) if mode == "ExclusiveLock"]
            assert len(held) == 1, "the pack's; none of a graph is left"
