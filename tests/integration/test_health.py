"""Health signals on a real Postgres: read, stored, and what they do to rollouts and batched hops."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from sqlalchemy import Engine, text

from graph_migrator import GraphType, HopContext, Node, Nodes, run_graph_migration
from graph_migrator.core.execution import brake
from graph_migrator.core.graph_types import registry
from graph_migrator.core.inspection.metrics import Measures
from graph_migrator.core.rollouts import operations, readings
from graph_migrator.core.rollouts.health import Level, SignalState
from graph_migrator.core.rollouts.measures import measure_fleet
from graph_migrator.core.rollouts.operations import Operator
from graph_migrator.core.rollouts.statuses import HoldReason, RolloutStatus
from graph_migrator.core.settings import settings
from graph_migrator.core.store.session import Executors
from graph_migrator.tasks.cli import rollout_watch
from graph_migrator.tasks.metrics import families
from tests.integration.console import call
from tests.integration.fleet_inline import QUICK, Fleet, add_tenants, tenants
from tests.rows import add_graph, rows
from tests.waiting import until

ADA = Operator("ada", "because")
PACE = {"graph_migrator_rollout_pace": "graph_type", "graph_migrator_rollout_slowed": "signal"}


@pytest.fixture
def fleet(engine: Engine, executors: Executors) -> Fleet:
    registry.register(tenants())
    return Fleet(executors)


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set a signal's limits, and the operator's query."""
    found = settings()

    def set_them(sql: str = "", **signals: tuple[float | None, float | None]) -> None:
        changed = found.model_copy(update={"health_limits": signals, "health_sql": sql})
        monkeypatch.setattr(readings, "settings", lambda: changed)

    return set_them


def read(fleet: Fleet, queued: int | None = 0) -> dict[str, SignalState]:
    """A reading, however short ago the last one was."""
    with fleet.executors.engine.begin() as connection:
        connection.execute(text("UPDATE health_signals SET measured_at = measured_at - interval '6 s'"))
    states = fleet.do(readings.read_if_due, queued)
    assert states is not None
    return {state.name: state for state in states}


def watched(fleet: Fleet) -> tuple[str, dict[str, float], dict[str, float]]:
    """What `rollout watch` says of the pace, and what the metrics say of it and of what set it."""
    with fleet.executors.borrow() as executor, executor.cursor() as cursor:
        found = measure_fleet(cursor, "migrations")
    samples = {
        name: {sample.labels[label]: sample.value for sample in family.samples}
        for family in families(Measures(), {}, found)
        for name, label in PACE.items()
        if family.name == name
    }
    line = rollout_watch.pace_line(fleet.show()).partition("; time left")[0]
    return line, *(samples[name] for name in PACE)  # type: ignore[return-value]


def good_again(engine: Engine) -> None:
    """Thirty seconds pass."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE health_signals SET better_since = better_since - interval '31 s'"))


def test_all_signals_are_read_and_an_idle_server_is_good(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 2)
    assert fleet.do(readings.read_if_due, 0) is None  # nothing runs that could be slowed down
    fleet.start()
    for _ in range(4):
        found = read(fleet)
    assert {state.level for state in found.values()} == {Level.GOOD}
    assert set(found) == {
        "replica_lag", "replica_behind", "wal_kept", "archive_waiting", "lock_waiters", "wraparound_vacuum",
        "broker_queue", "commit_p95",
    }  # fmt: skip
    assert fleet.do(readings.read_if_due, 0) is None  # a moment ago


def test_a_signal_that_cannot_be_read_is_unknown_and_a_signal_stops_nothing(
    engine: Engine, fleet: Fleet, limits: Any
) -> None:
    add_tenants(engine, 2)
    fleet.start()
    limits(sql="SELECT no_such_column", custom=(1, 2))
    found = read(fleet, queued=None)
    assert found["broker_queue"].level is Level.UNKNOWN
    assert found["custom"].level is Level.UNKNOWN
    assert "no_such_column" in str(found["custom"].detail)
    assert found["wal_kept"].level is Level.GOOD  # an error ends no other reading
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED


def test_a_full_queue_holds_a_rollout_and_it_goes_on_by_itself(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 8)
    fleet.start()
    fleet.turn()
    fleet.queue.clear()
    with engine.begin() as connection:
        connection.execute(text("UPDATE rollout_members SET resend_at = now() - interval '1 s'"))
    read(fleet, queued=20_000)
    fleet.turn()
    state = fleet.show()
    assert state.rollout.hold is HoldReason.HEALTH
    assert "broker_queue is 20000, the limit is 10000" in state.why
    assert "graph-migrator health" in state.what_to_do
    assert state.pace_set_by == "broker_queue is 20000, the limit is 10000"
    with pytest.raises(Exception, match="load is too high"):
        fleet.do(operations.resume, "tenant", ADA)
    read(fleet, queued=0)
    fleet.turn()
    assert fleet.show().rollout.hold is HoldReason.HEALTH  # not yet for thirty seconds
    good_again(engine)
    read(fleet, queued=0)
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED


def test_slow_halves_the_pace_postgres_holds_it_and_recovery_is_additive(
    engine: Engine, fleet: Fleet
) -> None:
    add_tenants(engine, 40)
    fleet.start(QUICK.model_copy(update={"canaries": 0, "waves": (100,), "max_in_flight": 20}))
    read(fleet, queued=2_000)
    assert len(fleet.turn()) == 10
    with pytest.raises(Exception, match="has 10 places"), engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE rollout_members SET status = 'dispatched', request_id = gen_random_uuid(), resend_at = now() "
                "WHERE status = 'pending' AND position = 11"
            )
        )
    state = fleet.show()
    assert (state.pace, state.max_in_flight) == (10, 20)
    assert state.pace_set_by == "broker_queue is 2000, the limit is 1000"
    assert watched(fleet) == (
        "in flight: 10 of 20, at most 10 of them now: broker_queue is 2000, the limit is 1000",
        {"tenant": 10.0},
        {"broker_queue": 1.0},
    )
    (change,) = [
        c for c in rows(engine, "SELECT what, before, after, why FROM rollout_changes") if c[0] == "pace"
    ]
    assert change == ("pace", 20, 10, "broker_queue is 2000, the limit is 1000")
    read(fleet, queued=0)
    good_again(engine)
    read(fleet, queued=0)
    read(fleet, queued=0)
    # Slow for one more reading, then two that are good.
    assert fleet.show().pace == 5 + 2 + 2
    assert watched(fleet)[0].endswith("9 of them now: load was too high, the pace comes back by itself")
    for _ in range(6):
        read(fleet, queued=0)
    assert (fleet.show().pace, fleet.show().pace_set_by) == (20, None)
    assert watched(fleet) == ("in flight: 10 of 20", {"tenant": 20.0}, {})


def test_a_rollout_may_ignore_the_signals(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 6)
    fleet.start()
    read(fleet, queued=20_000)
    fleet.turn()
    assert fleet.show().rollout.hold is HoldReason.HEALTH
    fleet.do(operations.set_knob, "tenant", "health", "false", ADA)
    fleet.turn()
    assert fleet.show().rollout.hold is None
    assert fleet.show().pace == fleet.show().max_in_flight
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED


def test_sessions_that_wait_for_locks_are_counted(engine: Engine, fleet: Fleet, limits: Any) -> None:
    add_tenants(engine, 2)
    fleet.start()
    limits(lock_waiters=(1, None))
    with engine.connect() as holder:
        holder.execute(text("SELECT pg_advisory_xact_lock(4711)"))

        def wait() -> None:
            with engine.connect() as waiter:
                waiter.execute(text("SELECT pg_advisory_xact_lock(4711)"))

        waiting = threading.Thread(target=wait)
        waiting.start()
        until(lambda: read(fleet)["lock_waiters"].level is Level.SLOW, "the waiter is seen", seconds=10)
        holder.rollback()
        waiting.join()


def test_the_operators_own_query_has_limits_and_cannot_write(
    engine: Engine, fleet: Fleet, limits: Any
) -> None:
    add_tenants(engine, 2)
    fleet.start()
    limits(sql="SELECT count(*) FROM graphs WHERE slug LIKE 't%';", custom=(2, None))
    assert read(fleet)["custom"].level is Level.SLOW
    limits(sql="SELECT nextval('graph_migrator.hop_attempts_id_seq')", custom=(2, None))
    assert "read-only" in str(read(fleet)["custom"].detail)
    limits(sql="SELECT 1 FROM pg_sleep(30)", custom=(2, None))
    began = time.monotonic()
    assert "timeout" in str(read(fleet)["custom"].detail)
    assert time.monotonic() - began < 10


def test_health_is_shown_with_values_limits_and_effects(
    engine: Engine, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph_migrator.tasks.cli.health.executors", lambda: fleet.executors)
    assert "Nothing was read yet" in call("health").err
    add_tenants(engine, 2)
    fleet.start()
    read(fleet, queued=2_000)
    shown = call("health").out
    assert "broker_queue" in shown
    assert "slow" in shown
    assert '"level": "slow"' in call("health", "--json").out


# ── batched hops ────────────────────────────────────────────────────────────────────────────────────


def batched(shards: int | None = None) -> GraphType:
    made = GraphType("rows")

    @made.hop(1, 2, over=Nodes(), batch_size=5, shards=shards)
    def touch(ctx: HopContext, nodes: list[Node]) -> None:
        for node in nodes:
            node.properties["seen"] = True

    return made


@pytest.mark.parametrize("shards", [None, 2])
@pytest.mark.parametrize(("level", "factor"), [("good", 0), ("slow", 1), ("stop", 5), ("unknown", 0)])
def test_a_batched_hop_pauses_between_batches_as_the_worst_signal_says(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, level: str, factor: float, shards: int | None
) -> None:
    registry.register(batched(shards))
    add_graph(engine, "g", "rows", 1, nodes=40)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO health_signals (name, level, since, measured_at) VALUES ('a', 'good', now(), now()), "
                "('b', :level, now(), now())"
            ),
            {"level": level},
        )
    waited: list[float] = []
    monkeypatch.setattr(brake.time, "sleep", waited.append)
    assert run_graph_migration(engine, "g", 2).version == 2
    assert bool(waited) is bool(factor)


def test_a_reading_of_long_ago_slows_no_hop(engine: Engine, executors: Executors) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO health_signals (name, level, since, measured_at) "
                "VALUES ('a', 'stop', now(), now() - interval '2 minutes')"
            )
        )
    with executors.borrow() as executor:
        assert brake.Brake().pause(executor, 1.0) == 0


def test_a_brake_looks_every_five_seconds_and_bounds_its_pause(
    engine: Engine, executors: Executors, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(brake.time, "sleep", waited.append)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO health_signals (name, level, since, measured_at) VALUES ('a', 'stop', now(), now())"
            )
        )
    with executors.borrow() as executor:
        one = brake.Brake()
        assert [one.pause(executor, 0.5), one.pause(executor, 60)] == [2.5, 10]
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM health_signals"))
        assert one.pause(executor, 0.5) == 2.5  # it has looked a moment ago
    assert waited == [2.5, 10, 2.5]
