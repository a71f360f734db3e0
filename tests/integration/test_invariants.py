"""The invariants of docs/explanation.md, by their numbers. The comments name the fence each one guards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID

import psycopg2
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from graph_migrator import GraphType, HopContext
from graph_migrator.core.decisions import HopMessage, Ignored, Later
from graph_migrator.core.errors import HopCodeChanged
from graph_migrator.core.execution import failpoints, operations
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.in_process import follow
from graph_migrator.core.execution.model import Applied, Dispatch, Failed
from graph_migrator.core.execution.recovery import sweep
from graph_migrator.core.execution.run_hop import run_hop
from graph_migrator.core.graph_types import registry
from graph_migrator.core.inspection.diagnosis import Fleet, explain
from graph_migrator.core.inspection.graph_state import graph_state
from graph_migrator.core.settings import settings
from graph_migrator.core.store import protocol
from graph_migrator.core.store.errors import FENCE, sqlstate
from graph_migrator.core.store.session import Executor, Executors
from tests.integration.scripted import Killed, Script
from tests.rows import add_graph, advisory_locks, attempts, dump, graph_row, migration_of, properties, rows


@pytest.fixture(autouse=True)
def _no_hook() -> Iterator[None]:
    yield
    failpoints.hook = None


def begin(executors: Executors, graph: str, target: int) -> Dispatch:
    with executors.borrow() as executor:
        begun = begin_migration(executor, graph, target)
    assert isinstance(begun, Dispatch)
    return begun


def trail(engine: Engine, slug: str) -> list[str]:
    """What the first node's list of hops says."""
    return list(next(iter(properties(engine, slug).values())).get("trail", []))


def open_by_hand(
    executor: Executor, message: HopMessage, from_version: int = 1, to_version: int = 2
) -> tuple[int, UUID]:
    """Open a hop; its attempt and its graph."""
    facts = executor.call(
        protocol.LockAndLoadHop(
            migration=message.migration_id, to=message.to_version, dispatch=message.dispatch
        )
    )
    opened = executor.call(
        protocol.OpenHop(
            migration=message.migration_id,
            graph=facts.graph_id,
            status=facts.status,
            dispatch=message.dispatch,
            lost=None,
            from_=from_version,
            to=to_version,
            hop="one",
            fingerprint="f",
            worker="w",
            pid=1,
            task=None,
            done=0,
            deadline_seconds=30.0,
        ),
    )
    return opened.attempt_id, facts.graph_id


def refusal_of(executor: Executor, call: protocol.Call[Any]) -> str | None:
    """The SQLSTATE with which a function of the protocol refuses; None where it does not."""
    try:
        executor.call(call)
    except psycopg2.Error as refusal:
        return refusal.pgcode
    return None


def settle_by_hand(engine: Engine) -> None:
    """Pause a migration in the middle of its hop, which cannot happen while its executor has the lock."""
    with engine.begin() as connection:
        for status in ("pausing", "paused"):
            connection.execute(text("UPDATE migrations SET status = :status"), {"status": status})


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize("point", ["hop_after_data", "hop_before_commit"])
def test_invariant_1_data_version_and_audit_row_are_one_commit(
    engine: Engine, executors: Executors, point: str
) -> None:
    # Fence: one transaction around data and finish_hop (core/execution/apply_hop.py).
    add_graph(engine, "g", "plain")
    dispatch = begin(executors, "g", 3)
    seen = []

    def look_then_die(at: str) -> None:
        if at == point:
            seen.append((graph_row(engine, "g").version, trail(engine, "g"), attempts(engine, "g")))
            raise Killed

    failpoints.hook = look_then_die
    with pytest.raises(Killed):
        run_hop(executors, dispatch.messages()[0])
    nothing = (1, [], [("one", "running")])
    assert seen == [nothing]
    assert (graph_row(engine, "g").version, trail(engine, "g"), attempts(engine, "g")) == nothing
    failpoints.hook = None
    # A second try brings all three at once.
    assert isinstance(run_hop(executors, dispatch.messages()[0]), Applied)
    assert (graph_row(engine, "g").version, trail(engine, "g")) == (2, ["one"])
    assert attempts(engine, "g") == [("one", "lost"), ("one", "succeeded")]


@pytest.mark.usefixtures("script")
def test_invariant_1_the_version_is_fenced_by_the_one_it_comes_from(
    engine: Engine, executors: Executors
) -> None:
    # Fence: `AND version = p_from` in finish_hop.
    add_graph(engine, "g", "plain")
    message = begin(executors, "g", 3).messages()[0]
    with executors.borrow() as executor:
        attempt, graph = open_by_hand(executor, message, 2, 3)
        end = protocol.FinishHop(
            attempt=attempt,
            migration=message.migration_id,
            graph=graph,
            from_=2,
            to=3,
            status="succeeded",
            rows=0,
            done=None,
            last=False,
            callers=False,
            deadline_seconds=30.0,
            checkpoint=True,
        )
        assert refusal_of(executor, end) == FENCE
        executor.close()
    assert graph_row(engine, "g").version == 1


@pytest.mark.usefixtures("script")
def test_invariant_1_the_version_is_fenced_by_the_claim(engine: Engine, executors: Executors) -> None:
    # Fence: `AND migration_id = p_migration` in finish_hop. The trigger on graphs, which stands behind it, is off.
    add_graph(engine, "g", "plain")
    message = begin(executors, "g", 3).messages()[0]
    with executors.borrow() as executor:
        attempt, graph = open_by_hand(executor, message)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE graphs DISABLE TRIGGER graph_migrator_guard"))
            connection.execute(text("UPDATE graphs SET migration_id = NULL"))
        end = protocol.FinishHop(
            attempt=attempt,
            migration=message.migration_id,
            graph=graph,
            from_=1,
            to=2,
            status="succeeded",
            rows=0,
            done=None,
            last=False,
            callers=False,
            deadline_seconds=30.0,
            checkpoint=True,
        )
        assert refusal_of(executor, end) == FENCE
        executor.close()
    assert graph_row(engine, "g").version == 1


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize("target", [2, 3])
def test_invariant_1_a_migration_succeeds_at_its_target_only_and_while_it_is_live(
    engine: Engine, executors: Executors, target: int
) -> None:
    # Fence: `AND to_version = p_to AND status IN ...` in finish_hop.
    add_graph(engine, "g", "plain")
    message = begin(executors, "g", target).messages()[0]
    with executors.borrow() as executor:
        attempt, graph = open_by_hand(executor, message)
        if target == 2:
            settle_by_hand(engine)
        end = protocol.FinishHop(
            attempt=attempt,
            migration=message.migration_id,
            graph=graph,
            from_=1,
            to=2,
            status="succeeded",
            rows=0,
            done=None,
            last=True,
            callers=False,
            deadline_seconds=30.0,
            checkpoint=True,
        )
        assert refusal_of(executor, end) == FENCE
        executor.close()
    assert (graph_row(engine, "g").version, graph_row(engine, "g").migration_id) == (1, message.migration_id)
    assert attempts(engine, "g") == [("one", "running")]


@pytest.mark.usefixtures("script")
def test_invariant_2_only_the_session_with_lock_and_name_writes(engine: Engine, executors: Executors) -> None:
    # Fence: `executes` and the try-lock in admit_writer().
    add_graph(engine, "g", "plain")
    dispatch = begin(executors, "g", 2)
    change = text("UPDATE nodes SET label = 'stolen'")
    owner = {"m": str(dispatch.migration_id)}

    def write_as(name: bool, lock: bool) -> str | None:
        with engine.connect() as connection:
            if name:
                connection.execute(text("SELECT set_config('graph_migrator.executor', :m, false)"), owner)
            if lock:
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(graph_migrator.lock_key(id)) FROM graphs")
                )
            with suppress(DBAPIError) as _, connection.begin_nested():
                connection.execute(change)
                return None
            try:
                connection.execute(change)
            except DBAPIError as error:
                return sqlstate(error)
        return None

    other = engine.connect()
    other.execute(text("SELECT pg_advisory_lock(graph_migrator.lock_key(id)) FROM graphs"))
    assert write_as(name=True, lock=False) == "GM001"  # the name alone
    other.execute(text("SELECT pg_advisory_unlock_all()"))
    other.close()
    assert write_as(name=False, lock=True) == "55006"  # the lock alone
    assert write_as(name=True, lock=True) is None


@pytest.mark.usefixtures("script")
def test_invariant_2_a_lost_session_takes_lock_and_data_with_it(engine: Engine, executors: Executors) -> None:
    # Fence: session lock on the connection that writes; require_executor in finish_hop.
    add_graph(engine, "g", "plain")
    dispatch = begin(executors, "g", 2)

    def lose_the_session(at: str) -> None:
        if at == "hop_after_data":
            failpoints.hook = None
            with engine.begin() as connection:
                connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' "
                        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                    )
                )

    failpoints.hook = lose_the_session
    outcome = run_hop(executors, dispatch.messages()[0])
    assert isinstance(outcome, Later)
    assert trail(engine, "g") == []
    assert attempts(engine, "g") == [("one", "failed")]
    follow(executors, dispatch)
    assert trail(engine, "g") == ["one"]


@pytest.mark.usefixtures("script")
def test_invariant_3_the_claim_guards_the_graph_from_begin_to_the_last_commit(
    engine: Engine, executors: Executors
) -> None:
    # Fence: the claim is read before any lock in admit_writer().
    add_graph(engine, "g", "plain")
    refused = []

    def try_to_write() -> None:
        assert advisory_locks(engine) == [], "nobody holds the lock here"
        with engine.connect() as connection:
            try:
                connection.execute(text("UPDATE nodes SET label = 'slipped in'"))
            except DBAPIError as error:
                refused.append(sqlstate(error))

    dispatch = begin(executors, "g", 4)
    try_to_write()
    for message in dispatch.messages()[:-1]:
        run_hop(executors, message)
        try_to_write()
    assert refused == ["55006"] * 3
    run_hop(executors, dispatch.messages()[-1])
    assert advisory_locks(engine) == []
    with engine.begin() as connection:
        connection.execute(text("UPDATE nodes SET label = 'let in'"))


@pytest.mark.usefixtures("script")
def test_invariant_4_postgres_alone_is_enough_to_go_on(engine: Engine, executors: Executors) -> None:
    # Fence: begin commits the plan and a deadline; recovery reads both.
    add_graph(engine, "g", "plain")
    begin(executors, "g", 4)  # every message is lost
    with engine.begin() as connection:
        connection.execute(text("UPDATE migrations SET deadline = now() - interval '1 second'"))
    with executors.borrow() as executor:
        redelivered = sweep(executor).to_send
    assert [d.number for d in redelivered] == [1]
    assert follow(executors, redelivered[0]).version == 4
    assert trail(engine, "g") == ["one", "two", "three"]


@pytest.mark.usefixtures("script")
def test_invariant_5_a_message_is_good_for_its_dispatch(engine: Engine, executors: Executors) -> None:
    # Fence: the comparison of dispatches in decide_hop.
    add_graph(engine, "g", "plain")
    old = begin(executors, "g", 3)
    with executors.borrow() as executor:
        operations.pause(executor, "g")
        _, new = operations.resume(executor, "g")
    assert new is not None
    assert new.number == old.number + 1
    assert isinstance(run_hop(executors, old.messages()[0]), Ignored)
    assert trail(engine, "g") == []
    assert follow(executors, new).version == 3
    assert trail(engine, "g") == ["one", "two"]


@pytest.mark.usefixtures("script")
def test_invariant_5_a_message_of_another_dispatch_does_not_even_take_the_lock(
    engine: Engine, executors: Executors
) -> None:
    # Fence: `AND dispatch = p_dispatch` in look.
    add_graph(engine, "g", "plain")
    message = begin(executors, "g", 3).messages()[0]
    with executors.borrow() as executor:
        assert not executor.call(
            protocol.LockAndLoadHop(migration=message.migration_id, to=message.to_version, dispatch=2)
        ).locked
        assert advisory_locks(engine) == []


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize(("status", "dispatch"), [("queued", 2), ("running", 1)])
def test_invariant_5_a_hop_is_opened_in_the_state_that_was_looked_at_only(
    engine: Engine, executors: Executors, status: str, dispatch: int
) -> None:
    # Fence: `AND m.status = p_status AND m.dispatch = p_dispatch` in open_hop.
    add_graph(engine, "g", "plain")
    message = begin(executors, "g", 2).messages()[0]
    before = dump(engine)
    with executors.borrow() as executor:
        opened = executor.call(
            protocol.OpenHop(
                migration=message.migration_id,
                graph=graph_row(engine, "g").id,
                status=status,
                dispatch=dispatch,
                lost=None,
                from_=1,
                to=2,
                hop="one",
                fingerprint="f",
                worker="w",
                pid=1,
                task=None,
                done=0,
                deadline_seconds=30.0,
            ),
        )
    assert opened is None
    assert dump(engine) == before


@pytest.mark.usefixtures("script")
def test_invariant_5_a_write_is_good_for_its_attempt(engine: Engine, executors: Executors) -> None:
    # Fence: `AND status = 'running'` in finish_hop.
    add_graph(engine, "g", "plain")
    dispatch = begin(executors, "g", 2)

    def give_the_attempt_up(at: str) -> None:
        if at == "hop_after_data":
            failpoints.hook = None
            with engine.begin() as connection:
                connection.execute(text("UPDATE hop_attempts SET status = 'lost', finished_at = now()"))

    failpoints.hook = give_the_attempt_up
    outcome = run_hop(executors, dispatch.messages()[0])
    assert isinstance(outcome, Ignored)
    assert (graph_row(engine, "g").version, trail(engine, "g")) == (1, [])
    assert migration_of(engine, "g").status == "running"


@pytest.mark.usefixtures("script")
def test_invariant_5_an_attempt_fails_with_its_migration_or_not_at_all(
    engine: Engine, executors: Executors
) -> None:
    # Fence: `AND status IN ...` in fail_attempt.
    add_graph(engine, "g", "plain")
    message = begin(executors, "g", 2).messages()[0]
    with executors.borrow() as executor:
        attempt, graph = open_by_hand(executor, message)
        settle_by_hand(engine)
        end = protocol.FailAttempt(
            attempt=attempt,
            migration=message.migration_id,
            graph=graph,
            transient=False,
            final=True,
            type="E",
            message="",
            args=None,
            traceback="",
            deadline_seconds=30.0,
        )
        assert refusal_of(executor, end) == FENCE
        executor.close()
    assert attempts(engine, "g") == [("one", "running")]
    assert migration_of(engine, "g").status == "paused"


@pytest.mark.parametrize(
    "settling",
    ["UPDATE hop_attempts SET status = 'lost', finished_at = now()", "UPDATE graphs SET updated_at = now()"],
    ids=["its row", "the claim"],
)
def test_invariant_5_nobody_settles_an_attempt_while_its_batch_writes(
    engine: Engine, executors: Executors, script: Script, settling: str
) -> None:
    # Fence: `FOR UPDATE`, twice, in open_batch.
    add_graph(engine, "g", "batched", nodes=25)
    refused = []

    def settle(_: HopContext) -> None:
        with engine.connect() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '20ms'"))
            try:
                connection.execute(text(settling))
            except DBAPIError as error:
                refused.append(sqlstate(error))

    script.on["visit"] = settle
    follow(executors, begin(executors, "g", 2))
    assert refused == ["55P03"] * 3


def test_invariant_5_a_batch_is_good_for_its_claim(
    engine: Engine, executors: Executors, script: Script
) -> None:
    # Fence: `AND migration_id = p_migration` in open_batch. The trigger on graphs, behind it, is off.
    add_graph(engine, "g", "batched", nodes=25)
    dispatch = begin(executors, "g", 2)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE graphs DISABLE TRIGGER graph_migrator_guard"))

    def lose_the_claim(at: str) -> None:
        if at == "batch_committed":
            failpoints.hook = None
            with engine.begin() as connection:
                connection.execute(text("UPDATE graphs SET migration_id = NULL"))

    failpoints.hook = lose_the_claim
    assert isinstance(run_hop(executors, dispatch.messages()[0]), Ignored)
    assert len(script.batches) == 1
    assert graph_row(engine, "g").version == 1


def test_invariant_6_every_attempt_leaves_a_row_that_never_changes(
    engine: Engine, executors: Executors, script: Script
) -> None:
    # Fence: open_hop commits before the data; the triggers on hop_attempts.
    add_graph(engine, "g", "plain")
    dispatch = begin(executors, "g", 2)

    def die(at: str) -> None:
        if at == "hop_in_data":
            failpoints.hook = None
            raise Killed

    failpoints.hook = die
    with pytest.raises(Killed):
        run_hop(executors, dispatch.messages()[0])
    script.on["one"] = lambda _: 1 / 0
    with executors.borrow() as executor:
        (again,) = sweep(executor).to_send
    assert isinstance(run_hop(executors, again.messages()[0]), Failed)
    script.on.clear()
    with executors.borrow() as executor:
        _, retried = operations.retry(executor, "g")
    assert retried is not None
    follow(executors, retried)
    assert attempts(engine, "g") == [("one", "lost"), ("one", "failed"), ("one", "succeeded")]
    for change in (
        "UPDATE hop_attempts SET worker = 'nobody'",
        "DELETE FROM hop_attempts",
        "TRUNCATE losses, hop_attempts",
    ):
        with engine.connect() as connection, pytest.raises(DBAPIError, match="are never"):
            connection.execute(text(change))
    assert len(rows(engine, "SELECT * FROM hop_attempts WHERE finished_at IS NOT NULL")) == 3


def test_invariant_7_nothing_runs_that_was_not_planned(
    engine: Engine, executors: Executors, script: Script
) -> None:
    # Fence: line 11 of decide_hop.
    add_graph(engine, "g", "plain")
    dispatch = begin(executors, "g", 2)
    other = GraphType("plain")

    @other.hop(1, 2)
    def one(ctx: HopContext) -> None:
        script.invoked.append("other code")

    registry.register(other)
    message = dispatch.messages()[0]
    for _ in range(9):
        assert isinstance(run_hop(executors, message), Later)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE migrations SET code_mismatch_since = clock_timestamp() - make_interval(secs => :s)"),
            {"s": settings().deploy_seconds},
        )
    outcome = run_hop(executors, message)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, HopCodeChanged)
    assert script.invoked == []
    assert attempts(engine, "g") == []


def test_invariant_7_code_is_read_once_for_what_is_opened_and_what_is_decided(
    engine: Engine, executors: Executors, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fence: `_deliver` reads the registry once. In a process whose types are registered anew, the look would else open
    # an attempt of one release, and `decide_hop` be asked about another.
    add_graph(engine, "g", "plain")
    dispatch = begin(executors, "g", 2)
    known = registry.graph_types()

    def read() -> dict[str, GraphType]:
        monkeypatch.setattr(registry, "_registered", {})  # whoever reads again finds no type
        return known

    monkeypatch.setattr("graph_migrator.core.execution.run_hop.graph_types", read)
    assert isinstance(run_hop(executors, dispatch.messages()[0]), Applied)
    assert script.invoked == ["one"]


def test_invariant_8_the_state_is_always_named(engine: Engine, executors: Executors, script: Script) -> None:
    # Fence: graph_state and the explanations know every state.
    add_graph(engine, "g", "plain")
    named: list[tuple[str | None, str | None, str]] = []

    def name_it(graph: str = "g") -> None:
        state = graph_state(engine, graph)
        shown = explain(state, [], Fleet)
        assert shown
        assert all(reason.what for reason in shown)
        named.append((state.graph.read_only, state.graph.status, shown[0].kind))

    name_it()
    dispatch = begin(executors, "g", 3)
    name_it()
    run_hop(executors, dispatch.messages()[0])
    name_it()
    with executors.borrow() as executor:
        operations.pause(executor, "g")
        name_it()
        _, again = operations.resume(executor, "g")
    script.on["two"] = lambda _: 1 / 0
    assert again is not None
    run_hop(executors, again.messages()[0])
    name_it()
    with executors.borrow() as executor:
        operations.release(executor, "g")
        operations.set_read_only(executor, "g", on=True)
    name_it()
    add_graph(engine, "half", "batched", nodes=25)
    script.on["visit"] = lambda _: len(script.batches) == 2 and 1 / 0
    assert isinstance(run_hop(executors, begin(executors, "half", 2).messages()[0]), Failed)
    with executors.borrow() as executor:
        operations.release(executor, "half", force=True)
    name_it("half")
    assert named == [
        (None, None, "behind"),
        ("migrating", "queued", "no-worker"),
        ("migrating", "running", "no-worker"),
        ("migrating", "paused", "paused"),
        ("error", "failed", "failed"),
        ("owner", None, "owner-locked"),
        (None, None, "partially-migrated"),
    ]
