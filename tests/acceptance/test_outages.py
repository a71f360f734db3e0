"""Postgres, the broker or the result backend goes away in the middle: the migration ends by itself afterwards."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg2
import pytest
from celery.exceptions import TimeoutError
from celery.result import AsyncResult
from psycopg2.extras import wait_select
from redis.exceptions import RedisError

from graph_migrator import MigrationReport
from graph_migrator.core.embedded import Redis, Server
from graph_migrator.core.statuses import MigrationStatus
from tests.acceptance.crash import ledger
from tests.acceptance.crash.stage import PATIENT, Stage
from tests.rows import graph_row, rows
from tests.waiting import until

FIRST, _, LAST = ledger.HOPS
STUMBLED = {"failed", "lost"}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Postgres, a broker and a result backend, each a server of its own."""
    with Redis() as results, Stage(tmp_path_factory.mktemp("outages"), results=results) as stage:
        yield stage
        stage.assert_nothing_left()


@pytest.fixture(scope="module")
def outage_seconds(request: pytest.FixtureRequest) -> float:
    """How long a server stays away: 30 s in the whole matrix, else long enough for every retry to fail twice."""
    return 30 if request.config.getoption("--whole-matrix", default=False) else 3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    whole = metafunc.config.getoption("--whole-matrix", default=False)
    for name, places in {"postgres_place": list(POSTGRES_PLACES), "broker_place": BROKER_PLACES}.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, places if whole else places[1::2])


def hold(stage: Stage, place: str, workers: int = 1) -> tuple[str, AsyncResult]:
    """Start a migration and wait until it is held at a place."""
    stage.keep(workers)
    slug = f"g-{uuid.uuid4().hex[:12]}"
    stage.arm(place)
    result = stage.migrate(slug)
    stage.held()
    return slug, result


def outcome(result: AsyncResult) -> MigrationReport:
    """What the caller gets; it asks again when the result backend was unavailable."""

    def shown() -> MigrationReport | None:
        try:
            return result.get(timeout=5)
        except (TimeoutError, RedisError, OSError):
            return None

    return until(shown, "the caller answered", seconds=PATIENT)


def away(server: Server, seconds: float, meanwhile: Callable[[], object]) -> None:
    """Stop a server, let `meanwhile` happen, and start it again after so many seconds."""
    server.stop()
    back = time.monotonic() + seconds
    meanwhile()
    until(lambda: time.monotonic() >= back, "the end of the outage", seconds=seconds + PATIENT)
    server.start()


# ── Postgres ────────────────────────────────────────────────────────────────────────────────────────

POSTGRES_PLACES = {
    "begin_locked": {},
    "begin_before_commit": {},
    "begin_committed": {},
    "hop_in_data:2": {FIRST: STUMBLED},
    "batch_before_commit": {ledger.HOPS[1]: STUMBLED},
    "batch_committed": {ledger.HOPS[1]: STUMBLED},
    "hop_before_commit": {FIRST: STUMBLED},
    "hop_before_commit:3": {LAST: STUMBLED},
    "hop_committed": {},
    "hop_committed:3": {},
}


def test_postgres_restarts_while_a_migration_is_at_work(stage: Stage, postgres_place: str) -> None:
    slug, result = hold(stage, postgres_place)
    assert stage.postgres is not None

    stage.postgres.restart()
    stage.let_go()

    assert outcome(result).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug, POSTGRES_PLACES[postgres_place])


@pytest.mark.parametrize("place", ["begin_before_commit", "hop_in_data:2", "hop_published"])
def test_postgres_is_away_for_a_while(stage: Stage, place: str, outage_seconds: float) -> None:
    slug, result = hold(stage, place)
    assert stage.postgres is not None

    away(stage.postgres, outage_seconds, stage.let_go)

    assert outcome(result).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug, POSTGRES_PLACES.get(place))


@pytest.mark.parametrize("place", ["hop_before_commit", "hop_before_commit:3"])
def test_a_commit_whose_answer_is_lost_is_believed(stage: Stage, place: str) -> None:
    slug, result = hold(stage, place)
    assert stage.postgres is not None
    with no_commit_is_answered(stage):
        stage.let_go()
        until(
            lambda: rows(
                stage.engine,
                "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%COMMIT%'",
            ),
            "the commit waiting for its answer",
            seconds=PATIENT,
        )
        assert graph_row(stage.engine, slug).migration_id is not None  # nobody can see it yet
        stage.postgres.stop(signal.SIGQUIT)
    stage.postgres.start()

    assert outcome(result).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug)


@contextmanager
def no_commit_is_answered(stage: Stage) -> Iterator[None]:
    """Commits wait for a standby that never comes: they are written, and nobody gets an answer.

    Not even a test's own are answered, so the server is put right again whatever happens inside.
    """
    assert stage.postgres is not None
    standby = stage.postgres.folder / "data" / "postgresql.auto.conf"
    before = standby.read_text()
    try:
        with stage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            connection.exec_driver_sql("SELECT pg_reload_conf()")
        # The server's processes hear of it one by one; a commit that is quicker would be answered.
        until(lambda: _commit_is_unanswered(stage), "a commit waiting in vain", seconds=PATIENT)
        yield
    finally:
        standby.write_text(before)
        if stage.postgres.pid is not None:
            rows(stage.engine, "SELECT pg_reload_conf()")


def _commit_is_unanswered(stage: Stage) -> bool:
    """Commit something that is nobody's, and see whether it waits."""
    probe = psycopg2.connect(stage.database_url, async_=True)
    try:
        wait_select(probe)
        probe.cursor().execute("SELECT pg_logical_emit_message(true, 'probe', '')")
        pid = probe.info.backend_pid
        (state,) = until(
            lambda: rows(
                stage.engine,
                "SELECT wait_event = 'SyncRep' FROM pg_stat_activity "
                "WHERE pid = :pid AND (wait_event = 'SyncRep' OR state = 'idle')",
                pid=pid,
            ),
            "the probe's end",
            seconds=PATIENT,
        )
        return bool(state[0])
    finally:
        probe.close()


# ── the broker ──────────────────────────────────────────────────────────────────────────────────────

BROKER_PLACES = [
    "begin_committed",
    "begin_dispatched",
    "hop_in_data:2",
    "hop_committed",
    "hop_published",
    "hop_left:3",
]


def test_the_broker_is_wiped(stage: Stage, broker_place: str) -> None:
    slug, result = hold(stage, broker_place)

    stage.redis.flush()
    stage.let_go()

    assert outcome(result).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug)


def test_the_broker_is_killed_and_comes_back_empty(stage: Stage, broker_place: str) -> None:
    slug, result = hold(stage, broker_place)

    stage.redis.kill()
    stage.redis.start()
    stage.let_go()

    assert outcome(result).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug)


@pytest.mark.parametrize("place", ["begin_committed", "hop_in_data:2", "hop_committed:2"])
def test_the_broker_is_away_for_a_while(stage: Stage, place: str, outage_seconds: float) -> None:
    slug, result = hold(stage, place)

    away(stage.redis, outage_seconds, stage.let_go)

    assert outcome(result).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug)


# ── the result backend ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", ["begin_committed", "hop_in_data:2", "hop_left", "hop_left:3"])
def test_the_result_backend_is_away_for_a_while(stage: Stage, place: str, outage_seconds: float) -> None:
    slug, result = hold(stage, place)
    assert stage.results is not None

    away(stage.results, outage_seconds, stage.let_go)

    assert outcome(result).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug)


def test_the_result_backend_forgets_everything(stage: Stage) -> None:
    slug, result = hold(stage, "hop_result_stored:3")
    assert stage.results is not None

    stage.results.kill()
    stage.results.start()
    stage.let_go()

    assert outcome(result).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug)
