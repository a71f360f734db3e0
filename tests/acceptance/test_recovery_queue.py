"""Recovery and the queue: who only waits is not redelivered for again and again, who works is left alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from graph_migrator.core.embedded import Redis
from graph_migrator.core.execution.recorded import load_dispatch
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.tasks.migrate import send
from graph_migrator.tasks.queue_room import AT_LEAST, LOOK_SECONDS
from graph_migrator.tasks.runtime import executors
from tests.acceptance.cluster import QUEUE
from tests.acceptance.crash import ledger
from tests.acceptance.crash.stage import PATIENT, Stage
from tests.rows import attempts, one, properties, rows
from tests.waiting import until

FIRST = ledger.HOPS[0]
QUEUED, OVERDUE = 2_000, 50
HASTY = {"GRAPH_MIGRATOR_DEADLINE_SECONDS": "0.2", "GRAPH_MIGRATOR_DEADLINE_MAX_SECONDS": "0.4"}


@pytest.fixture
def patient_stage(tmp_path: Path, database_url: str, redis_server: Redis) -> Iterator[Stage]:
    """Deadlines as they are delivered."""
    env = {"GRAPH_MIGRATOR_DEADLINE_SECONDS": "30"}
    with Stage(tmp_path / "stage", env=env, database_url=database_url, redis=redis_server) as stage:
        yield counting_sweeps(stage)


@pytest.fixture
def hasty_stage(tmp_path: Path, database_url: str, redis_server: Redis) -> Iterator[Stage]:
    """Deadlines that are over long before a hop is."""
    with Stage(tmp_path / "stage", env=HASTY, database_url=database_url, redis=redis_server) as stage:
        yield counting_sweeps(stage)


def counting_sweeps(stage: Stage) -> Stage:
    with stage.engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {stage.engine.url.database} SET track_functions = 'pl'")
    return stage


def sweeps_so_far(stage: Stage) -> int:
    """Every sweep ends with one call of `stamp_graphs`; it is counted when the sweep's session ends."""
    found = rows(stage.engine, "SELECT calls FROM pg_stat_user_functions WHERE funcname = 'stamp_graphs'")
    return int(found[0][0]) if found else 0


def after_each_sweep(stage: Stage, count: int) -> list[int]:
    """The queue's length after each of so many more sweeps."""
    lengths = []
    for _ in range(count):
        before = sweeps_so_far(stage)
        until(
            lambda before=before: sweeps_so_far(stage) > before, "one more sweep", seconds=PATIENT, pause=0.1
        )
        lengths.append(stage.queue_length())
    return lengths


# ── who waits ───────────────────────────────────────────────────────────────────────────────────────


def test_two_thousand_that_wait_behind_a_busy_worker_get_no_second_message_within_their_backoff(
    patient_stage: Stage,
) -> None:
    stage = patient_stage
    stage.keep(1)
    stage.arm("hop_in_data:2")
    stage.migrate("busy")
    stage.held()
    queue_migrations(stage, QUEUED)
    sent = stage.queue_length()

    assert after_each_sweep(stage, 5) == [sent] * 5

    # Past their deadlines: the queue has a message for each already, so only a few at a time are sent again.
    with stage.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE migrations SET deadline = clock_timestamp() WHERE status = 'queued'"
        )
    began = time.monotonic()
    after_each_sweep(stage, 5)
    redelivered = stage.queue_length() - sent
    assert 0 < redelivered <= AT_LEAST * (2 + (time.monotonic() - began) / LOOK_SECONDS)

    # The broker has lost all: each is sent again once, under the same dispatch; its deadline is twice as far then.
    with stage.client() as client:
        client.delete(QUEUE)
    overdue = "SELECT count(*) FROM migrations WHERE status = 'queued' AND redeliveries = 0"
    until(lambda: rows(stage.engine, overdue) == [(0,)], "one redelivery for each", seconds=PATIENT)
    found = one(
        stage.engine,
        "SELECT max(redeliveries) AS most, max(dispatch) AS dispatch, "
        "min(deadline) > clock_timestamp() + interval '20 s' AS backed_off FROM migrations WHERE status = 'queued'",
    )
    assert found == (1, 1, True)

    stage.let_go()
    until(lambda: attempts(stage.engine, "busy")[0] == (FIRST, "succeeded"), "the busy hop", seconds=PATIENT)


def queue_migrations(stage: Stage, count: int) -> None:
    """So many migrations, begun and their first messages sent as `migrate_graph` does it, none started.

    Their deadlines leave a slow machine time for this test; what comes after the first redelivery is the setting's.
    """
    with stage.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO graphs (id, slug, graph_type, version) "
                "SELECT gen_random_uuid(), 'waiting-' || i, 'ledger', 1 FROM generate_series(1, :count) i"
            ),
            {"count": count},
        )
        connection.exec_driver_sql(
            "SELECT graph_migrator.begin_migration(gen_random_uuid(), g.id, 'ledger', 1, 4, "
            "(SELECT plan FROM migrations), NULL, gen_random_uuid()::text, NULL, NULL, NULL, 600) "
            "FROM graphs g WHERE g.slug LIKE 'waiting-%%'"
        )
    with executors().borrow() as executor:
        for (migration_id,) in rows(stage.engine, "SELECT id FROM migrations WHERE status = 'queued'"):
            send(load_dispatch(executor, migration_id))


# ── who works ───────────────────────────────────────────────────────────────────────────────────────


def test_a_healthy_hop_that_outlasts_every_deadline_is_started_once(hasty_stage: Stage) -> None:
    stage = hasty_stage
    stage.keep(2)
    stage.arm("hop_in_data:2")
    result = stage.migrate("long")
    stage.held()

    until(
        lambda: rows(
            stage.engine, "SELECT id FROM migrations WHERE deadline < clock_timestamp() - interval '1 s'"
        ),
        "the deadline long gone",
        seconds=PATIENT,
    )
    assert after_each_sweep(stage, 3) == [0, 0, 0]
    assert deliveries(stage) == 1
    stage.let_go()

    assert result.get(timeout=PATIENT).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once("long")


def test_a_healthy_hop_that_outlasts_the_visibility_timeout_too_is_started_once_to_effect(
    hasty_stage: Stage,
) -> None:
    stage = hasty_stage
    redeliver = {
        "visibility_timeout": 0.5,
        "unacked_restore_interval": 0.2,
        "unacked_restore_throttle": 1,
    }
    for _ in range(2):
        stage.start_another(configuration={"broker_transport_options": redeliver}).wait_until_ready()
    stage.arm("hop_in_data:2")
    result = stage.migrate("long")
    stage.held()

    # The second worker is given the message, sees the first one at work, and acknowledges it.
    until(lambda: deliveries(stage) == 2, "the message delivered again", seconds=PATIENT)
    until(lambda: not stage.unsettled_messages(), "the duplicate gone", seconds=PATIENT)
    assert attempts(stage.engine, "long") == [(FIRST, "running")]
    stage.let_go()

    assert result.get(timeout=PATIENT).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once("long")


def deliveries(stage: Stage) -> int:
    """How often a worker was given a `run_hop` message: it began the hop, or had no use for it."""
    lines = [line for worker in stage.workers for line in worker.text().splitlines()]
    return sum("event=hop_started" in line or ": ignored: " in line for line in lines)


def test_nobody_writes_while_a_dead_workers_statement_still_runs(hasty_stage: Stage) -> None:
    stage = hasty_stage
    stage.keep(2)
    result = stage.migrate("sleepy", "sleeper", seconds=120)
    (pid,) = until(
        lambda: rows(stage.engine, "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"),
        "the hop asleep in Postgres",
        seconds=PATIENT,
    )[0]
    (executing,) = rows(stage.engine, "SELECT pid FROM hop_attempts WHERE status = 'running'")[0]
    stage.kill_group(executing)

    def seen_together() -> bool:
        both = one(
            stage.engine,
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = :pid) AS old, "
            "EXISTS (SELECT FROM hop_attempts WHERE attempt = 2) AS new",
            pid=pid,
        )
        assert not (both.old and both.new), "a second executor beside the first one's session"
        return bool(both.new)

    until(seen_together, "the hop started again, two minutes before its first statement ends", pause=0.002)
    assert result.get(timeout=PATIENT).status is MigrationStatus.SUCCEEDED
    assert attempts(stage.engine, "sleepy") == [("sleep_over_it", "lost"), ("sleep_over_it", "succeeded")]
    assert {tuple(p["entries"]) for p in properties(stage.engine, "sleepy").values()} == {("sleep_over_it",)}
