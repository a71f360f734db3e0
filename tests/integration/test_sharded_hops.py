"""Hops in shards: every row once, whoever runs, fails, dies or is stopped; one commit that moves the version."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import chain

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from graph_migrator import Edge, HopContext, Node
from graph_migrator.core.audit.digests import verify_data
from graph_migrator.core.audit.verify import verify_chains
from graph_migrator.core.decisions import HopMessage, Ignored, Later
from graph_migrator.core.errors import CheckFailed, GraphPartiallyMigrated, InvalidRequest, PartiallyMigrated
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.in_process import execute_migration, follow, run_graph_migration
from graph_migrator.core.execution.model import Applied, Dispatch, Failed, Sharded
from graph_migrator.core.execution.recovery import sweep
from graph_migrator.core.execution.run_hop import run_hop
from graph_migrator.core.inspection.graph_state import graph_state
from graph_migrator.core.interchange import export_graph
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.core.store.session import Executors
from graph_migrator.testing import MakeGraph, assert_survives_crash
from tests.integration.scripted import Flaky, Killed, Script, fails_now, sharded, trails
from tests.rows import add_graph, graph_row, migration_of, one, rows

pytest_plugins = ["graph_migrator.testing"]
pytestmark = pytest.mark.usefixtures("script")

ALL = [f"n{i:04}" for i in range(90)]
DONE = [(1, "succeeded"), (2, "succeeded"), (3, "succeeded"), (None, "succeeded")]


def circle(engine: Engine, slug: str = "g", nodes: int = 90) -> None:
    """A graph of nodes n0000 … in a circle."""
    add_graph(
        engine, slug, "sharded", nodes=nodes,
        edges=((f"e{i:04}", f"n{i:04}", f"n{(i + 1) % nodes:04}") for i in range(nodes)),
    )  # fmt: skip


def exported(engine: Engine, slug: str = "g") -> bytes:
    stream = io.BytesIO()
    export_graph(engine, slug, stream, format="jsonl")
    return stream.getvalue()


def tries(engine: Engine) -> list[tuple[int | None, str]]:
    """(shard, status) of every attempt of the first hop, in order."""
    return [tuple(row) for row in rows(  # type: ignore[misc]
        engine, "SELECT shard, status FROM hop_attempts WHERE to_version = 2 ORDER BY id")]  # fmt: skip


def at_row(script: Script, id_: str, act: Callable[[HopContext], object]) -> None:
    """Do something, once, in the batch that has this row."""

    def play(ctx: HopContext) -> None:
        if id_ in script.batches[-1]:
            del script.on["visit_shard"]
            act(ctx)

    script.on["visit_shard"] = play


def begun(executors: Executors, target: int = 2) -> tuple[Dispatch, tuple[HopMessage, ...]]:
    """A migration whose first hop is cut, and the messages of its shards."""
    with executors.borrow() as executor:
        dispatch = begin_migration(executor, "g", target)
    assert isinstance(dispatch, Dispatch)
    cut = run_hop(executors, dispatch.messages()[0])
    assert isinstance(cut, Sharded)
    return dispatch, cut.messages


def finish(executors: Executors, *messages: HopMessage) -> None:
    """Run shards, and what comes of the last one."""
    outcomes = [run_hop(executors, message) for message in messages]
    (closing,) = [each.closing for each in outcomes if isinstance(each, Sharded) and each.closing]
    assert follow(executors, closing).status is MigrationStatus.SUCCEEDED


# ── the way ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_hop_in_shards_processes_every_row_once_and_there_and_back_nothing_differs(
    engine: Engine, script: Script
) -> None:
    circle(engine)
    before = exported(engine)
    report = run_graph_migration(engine, "g")
    assert (report.version, trails(engine, "g")) == (3, {"visit_shard"})
    assert sorted(chain.from_iterable(script.batches)) == ALL
    assert rows(
        engine, "SELECT to_version, shard, status, done, rows_changed FROM hop_attempts ORDER BY id"
    ) == [
        (2, 1, "succeeded", 30, 30),
        (2, 2, "succeeded", 30, 30),
        (2, 3, "succeeded", 30, 30),
        (2, None, "succeeded", 90, 0),
        (3, 1, "succeeded", 45, 45),
        (3, 2, "succeeded", 45, 45),
        (3, None, "succeeded", 90, 0),
    ]
    assert [(hop.shards, hop.attempts, hop.rows_changed, hop.status) for hop in report.hops] == [
        (3, 4, 90, "succeeded"),
        (2, 3, 90, "succeeded"),
    ]
    assert rows(engine, "SELECT * FROM shards") == rows(engine, "SELECT * FROM checkpoints") == []
    assert one(engine, "SELECT count(*) AS n FROM edges WHERE type = 'MET'").n == 90
    digests = rows(
        engine, "SELECT digest_before, digest_after FROM hop_attempts WHERE shard IS NULL ORDER BY id"
    )
    assert digests[0][1] == digests[1][0]
    assert None not in digests[0]
    run_graph_migration(engine, "g", 1)
    assert exported(engine) == before
    assert (verify_data(engine).graphs, verify_data(engine).differences) == (1, ())
    assert (verify_chains(engine).attempts, verify_chains(engine).count) == (14, 0)


def test_a_graph_with_less_than_two_batches_is_not_cut(engine: Engine, script: Script) -> None:
    circle(engine, nodes=19)
    assert run_graph_migration(engine, "g", 2).version == 2
    assert tries(engine) == [(None, "succeeded")]


def test_in_the_callers_transaction_a_hop_is_not_cut(engine: Engine) -> None:
    circle(engine)
    with engine.begin() as connection:
        assert execute_migration(connection, "g").version == 3
    assert tries(engine) == [(None, "succeeded")]


def test_two_shards_are_written_at_a_time_and_the_last_one_closes(
    engine: Engine, executors: Executors, script: Script
) -> None:
    circle(engine)
    dispatch, (one_, two, three) = begun(executors)
    inside: list[object] = []

    def others(_: HopContext) -> None:  # the first shard's transaction is open, its rows are not written yet
        inside.extend(run_hop(executors, message) for message in (two, one_, three, dispatch.messages()[0]))
        inside.append(graph_state(engine, "g"))

    at_row(script, "n0011", others)
    last = run_hop(executors, one_)
    assert inside[0] == inside[2] == Sharded()
    assert isinstance(inside[1], Ignored), "the message of a shard that is in hand came twice"
    assert isinstance(inside[3], Later), "nobody may close while a shard's executor lives"
    state = inside[4]
    assert [(s.number, s.done, s.is_done, s.worker is not None) for s in state.shards] == [  # type: ignore[attr-defined]
        (1, 10, False, True),
        (2, 30, True, False),
        (3, 30, True, False),
    ]
    running = state.running  # type: ignore[attr-defined]
    assert (running.done, running.total) == (70, 90)
    assert isinstance(last, Sharded)
    assert last.closing is not None
    assert one(engine, "SELECT version FROM graphs").version == 1, (
        "the version moves with the closing attempt"
    )
    assert follow(executors, last.closing).version == 2
    assert sorted(chain.from_iterable(script.batches)) == ALL
    assert isinstance(run_hop(executors, two), Ignored), "a late message"


def test_the_version_does_not_move_before_every_shard_is_done(
    engine: Engine, executors: Executors, script: Script
) -> None:
    circle(engine)
    _, (first, *_) = begun(executors)
    run_hop(executors, first)
    migration = migration_of(engine, "g")
    facts = {"graph": migration.graph_id, "id": str(migration.id)}
    with engine.connect() as connection:
        for statement in (
            "SELECT pg_advisory_xact_lock(lock_key(:graph)), set_config('graph_migrator.executor', :id, true)",
            "INSERT INTO hop_attempts (migration_id, graph_id, from_version, to_version, hop_name, fingerprint, "
            "attempt, dispatch) VALUES (:id, :graph, 1, 2, 'h', 'f', 1, 1)",
        ):
            connection.execute(text(statement), facts)
        finish_hop = (
            "SELECT finish_hop(max(id), :id, :graph, 1, 2, 'succeeded', 0, 0, true, false) FROM hop_attempts"
        )
        with pytest.raises(DBAPIError, match="shards that are not done"):
            connection.execute(text(finish_hop), facts)


def test_no_more_shards_are_in_flight_than_the_limits_allow(
    engine: Engine, executors: Executors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPH_MIGRATOR_MAX_SHARDS_PER_GRAPH", "2")
    settings.cache_clear()
    circle(engine)
    _, sent = begun(executors)
    assert [message.shard for message in sent] == [1, 2]
    following = run_hop(executors, sent[0])
    assert isinstance(following, Sharded)
    assert [message.shard for message in following.messages] == [3]
    # Of the whole cluster: no more than live workers have processes, but one of each graph in any case.
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO workers (name, queue, types, pool, processes) VALUES ('w', 'q', '{}', 'prefork', 1)"
            )
        )
    circle(engine, "other")
    with executors.borrow() as executor:
        dispatch = begin_migration(executor, "other", 2)
    assert isinstance(dispatch, Dispatch)
    cut = run_hop(executors, dispatch.messages()[0])
    assert isinstance(cut, Sharded)
    assert [message.shard for message in cut.messages] == [1]
    finish(executors, sent[1], following.messages[0])


def test_the_shards_of_all_graphs_count_against_one_limit(
    engine: Engine, executors: Executors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPH_MIGRATOR_MAX_SHARDS", "3")
    monkeypatch.setenv("GRAPH_MIGRATOR_MAX_SHARDS_PER_GRAPH", "2")
    settings.cache_clear()
    sent = []
    for slug in ("g", "other", "third"):
        circle(engine, slug)
        with executors.borrow() as executor:
            dispatch = begin_migration(executor, slug, 2)
        assert isinstance(dispatch, Dispatch)
        cut = run_hop(executors, dispatch.messages()[0])
        assert isinstance(cut, Sharded)
        sent.append([message.shard for message in cut.messages])
    assert sent == [[1, 2], [1], [1]], "each has one in any case"


def test_a_hop_in_shards_survives_a_crash_at_every_boundary(make_graph: MakeGraph) -> None:
    nodes = [Node(f"n{i}", "Node") for i in range(6)]
    edges = [Edge(f"e{i}", f"n{i}", f"n{(i + 1) % 6}", "KNOWS") for i in range(6)]
    assert_survives_crash(sharded, make_graph(sharded, nodes=nodes, edges=edges))


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────────


def test_a_shard_that_fails_stops_the_others_and_a_retry_does_only_what_is_left(
    engine: Engine, executors: Executors, script: Script
) -> None:
    circle(engine)
    _, (first, second, third) = begun(executors)

    def fail_the_second(_: HopContext) -> None:
        at_row(script, "n0045", lambda _: fails_now())
        assert isinstance(run_hop(executors, second), Failed)

    at_row(script, "n0000", fail_the_second)
    # The batch in hand is committed, the next one is not begun.
    assert isinstance(run_hop(executors, first), Ignored)
    assert isinstance(run_hop(executors, third), Ignored)
    assert tries(engine) == [(1, "stopped"), (2, "failed")]
    failed = migration_of(engine, "g")
    assert (failed.status, failed.error_type) == ("failed", "ValueError")
    with executors.borrow() as executor:
        _, dispatch = operations.retry(executor, "g")
    assert dispatch is not None
    assert follow(executors, dispatch).version == 2
    assert trails(engine, "g") == {"visit_shard"}
    assert tries(engine) == [(1, "stopped"), (2, "failed"), *DONE]
    assert verify_chains(engine).count == 0


def test_a_transient_error_repeats_the_batch_of_one_shard(
    engine: Engine, executors: Executors, script: Script
) -> None:
    circle(engine)

    def flake(_: HopContext) -> None:
        raise Flaky

    at_row(script, "n0045", flake)
    assert run_graph_migration(executors, "g", 2).version == 2
    assert trails(engine, "g") == {"visit_shard"}
    assert tries(engine) == [(1, "succeeded"), (2, "failed"), (2, "succeeded"), *DONE[2:]]


def test_a_shard_whose_executor_dies_is_sent_again_while_another_one_runs(
    engine: Engine, executors: Executors, script: Script
) -> None:
    circle(engine)
    _, (first, second, third) = begun(executors)
    found = []

    def die(_: HopContext) -> None:
        raise Killed

    def lose_the_second(_: HopContext) -> None:
        at_row(script, "n0045", die)
        with pytest.raises(Killed):
            run_hop(executors, second)
        with executors.borrow() as executor:
            found.append(sweep(executor))

    at_row(script, "n0005", lose_the_second)
    run_hop(executors, first)
    assert (found[0].shards_to_send, found[0].to_send) == ([(second, 0.0)], [])
    assert tries(engine) == [(1, "succeeded"), (2, "lost")]
    finish(executors, second, third)
    assert trails(engine, "g") == {"visit_shard"}
    assert sorted(chain.from_iterable(script.batches)) == sorted([*ALL, *ALL[40:50]]), (
        "it cost the batch in hand"
    )


def test_a_shard_that_is_lost_too_often_fails_the_migration(
    engine: Engine, executors: Executors, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPH_MIGRATOR_MAX_INTERRUPTIONS", "2")
    settings.cache_clear()
    circle(engine)
    _, (_, second, _) = begun(executors)

    def die(_: HopContext) -> None:
        raise Killed

    script.on["visit_shard"] = die
    for _ in range(2):
        with pytest.raises(Killed):
            run_hop(executors, second)
        with executors.borrow() as executor:
            sweep(executor)
    failed = migration_of(engine, "g")
    assert (failed.status, failed.error_type) == ("failed", "graph_migrator.HopInterruptedRepeatedly")
    assert tries(engine) == [(2, "lost"), (2, "lost")]


def test_when_the_whole_fleet_dies_the_hops_message_sends_what_is_left(
    engine: Engine, executors: Executors, script: Script
) -> None:
    circle(engine)
    dispatch, (first, *_) = begun(executors)

    def die(_: HopContext) -> None:
        raise Killed

    at_row(script, "n0015", die)
    with pytest.raises(Killed):
        run_hop(executors, first)
    with engine.begin() as connection:
        connection.execute(text("UPDATE migrations SET deadline = now() - interval '1 s'"))
    with executors.borrow() as executor:
        found = sweep(executor)
    assert [each.number for each in found.to_send] == [1], "the dispatch stays: other messages are good"
    assert follow(executors, dispatch).version == 2
    assert trails(engine, "g") == {"visit_shard"}
    assert tries(engine) == [(1, "lost"), *DONE]


@pytest.mark.parametrize("row", ["n0000", "n0089"])
def test_a_pause_stops_every_shard_at_its_boundary(
    engine: Engine, executors: Executors, script: Script, row: str
) -> None:
    circle(engine)

    def ask(_: HopContext) -> None:
        with executors.borrow() as executor:
            operations.pause(executor, "g")

    at_row(script, row, ask)
    assert run_graph_migration(executors, "g").status is MigrationStatus.PAUSED
    assert graph_row(engine, "g").version == 1
    with executors.borrow() as executor:
        _, dispatch = operations.resume(executor, "g")
    assert dispatch is not None
    assert follow(executors, dispatch).version == 3
    assert sorted(chain.from_iterable(script.batches)) == ALL


def test_a_cancel_before_the_first_batch_leaves_the_graph_as_it_was(
    engine: Engine, executors: Executors
) -> None:
    circle(engine)
    begun(executors)
    with executors.borrow() as executor:
        operations.cancel(executor, "g")
    assert migration_of(engine, "g").status == "cancelled"
    assert rows(engine, "SELECT * FROM shards") == []


def test_a_graph_released_by_force_keeps_its_shards_and_a_retry_finishes_them(
    engine: Engine, executors: Executors, script: Script
) -> None:
    circle(engine)

    def ask(_: HopContext) -> None:
        with executors.borrow() as executor:
            operations.cancel(executor, "g")

    at_row(script, "n0045", ask)
    with pytest.raises(PartiallyMigrated) as error:
        run_graph_migration(executors, "g", 2)
    assert error.value.args == ("g", "visit_shard", 50)
    with executors.borrow() as executor, pytest.raises(GraphPartiallyMigrated):
        operations.release(executor, "g")
    with executors.borrow() as executor:
        operations.release(executor, "g", force=True)
    assert rows(engine, "SELECT * FROM shards") == []
    with executors.borrow() as executor:
        _, dispatch = operations.retry(executor, "g")
    assert dispatch is not None
    assert follow(executors, dispatch).version == 2
    assert sorted(chain.from_iterable(script.batches)) == ALL


def test_a_check_is_asked_once_at_the_end_and_a_retry_asks_it_again(
    engine: Engine, executors: Executors, script: Script
) -> None:
    circle(engine)
    asked = []

    def check(ctx: HopContext) -> str | None:
        asked.append(trails(engine, "g"))
        return "not yet" if len(asked) == 1 else None

    script.on["check"] = check
    with pytest.raises(CheckFailed, match="not yet"):
        run_graph_migration(executors, "g", 2)
    assert graph_row(engine, "g").version == 1
    with engine.begin() as connection, pytest.raises(InvalidRequest, match="shards"):
        execute_migration(connection, "g", 2)
    with executors.borrow() as executor:
        _, dispatch = operations.retry(executor, "g")
    assert dispatch is not None
    assert follow(executors, dispatch).version == 2
    assert asked == [{"visit_shard"}] * 2
    assert len(script.batches) == 9


def test_a_row_of_another_shard_is_refused_and_fails_the_hop(
    engine: Engine, executors: Executors, script: Script
) -> None:
    circle(engine)
    at_row(
        script,
        "n0045",
        lambda ctx: ctx.execute("UPDATE nodes SET label = 'X' WHERE graph_id = :graph_id AND id = 'n0060'"),
    )
    with pytest.raises(Exception, match="not all of its range: after n0029, up to n0059"):
        run_graph_migration(executors, "g", 2)
    assert one(engine, "SELECT count(*) AS n FROM nodes WHERE label = 'X'").n == 0


def test_a_session_of_a_shard_that_was_lost_reads_what_became_of_its_last_commit(
    engine: Engine, executors: Executors, script: Script
) -> None:
    circle(engine)
    _, (first, second, third) = begun(executors)

    def end_the_session(ctx: HopContext) -> None:
        pid = ctx.execute("SELECT pg_backend_pid()").scalar()
        with engine.begin() as beside:
            beside.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    at_row(script, "n0025", end_the_session)
    assert isinstance(run_hop(executors, first), Later)
    assert isinstance(run_hop(executors, first), Sharded | Applied)
    finish(executors, second, third)
    assert tries(engine) == [(1, "failed"), *DONE]
    assert trails(engine, "g") == {"visit_shard"}
