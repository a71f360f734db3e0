"""Workers are asked to end while a hop runs, and workers with other hop code stand beside each other."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator

import pytest
from celery.exceptions import TimeoutError
from celery.result import AsyncResult

from graph_migrator.core.errors import HopCodeChanged
from graph_migrator.core.inspection.diagnosis import Fleet, explain
from graph_migrator.core.inspection.graph_state import graph_state
from graph_migrator.core.inspection.quantities import count
from graph_migrator.core.inspection.waiting_calls import WaitingCall
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.tasks.migrate import migrate_graph
from tests.acceptance.cluster import Worker
from tests.acceptance.crash import ledger
from tests.acceptance.crash.nursery import Nursery
from tests.acceptance.crash.stage import PATIENT, Stage
from tests.rows import add_graph, attempts, graph_row, migration_of, rows
from tests.waiting import until

FIRST = ledger.HOPS[0]
OLDER_CODE = {"GRAPH_MIGRATOR_TYPES": "tests.acceptance.crash.older_code:ALL"}
NO_CODE = {"GRAPH_MIGRATOR_TYPES": "tests.acceptance.crash.no_such_module:ALL"}
OTHER_CODE = {"GRAPH_MIGRATOR_TYPES": "tests.acceptance.crash.other_code:ALL"}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("deploys")) as stage:
        yield stage
        stage.assert_nothing_left()


@pytest.fixture(scope="module")
def remapping(stage: Stage) -> Iterator[Nursery]:
    """Starts workers for which SIGTERM means what SIGQUIT means to others."""
    with stage.nursery(REMAP_SIGTERM="SIGQUIT") as nursery:
        yield nursery


def hold_in_the_old_worker(
    stage: Stage, *, soft_shutdown: float = 30, nursery: Nursery | None = None, pool: str = "prefork"
) -> tuple[Worker, str, AsyncResult]:
    """A hop held half-way in a worker; then its successor starts."""
    stage.keep(0)
    configuration = {"worker_soft_shutdown_timeout": soft_shutdown}
    old = stage.start_another(configuration=configuration, nursery=nursery, pool=pool)
    old.wait_until_ready()
    slug = f"g-{uuid.uuid4().hex[:12]}"
    stage.arm("hop_in_data:2")
    result = stage.migrate(slug)
    stage.held()
    stage.start_another().wait_until_ready()
    return old, slug, result


def assert_ended(worker: Worker) -> None:
    until(lambda: not worker.is_alive, f"worker {worker.name} ended", seconds=PATIENT)


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_a_worker_that_gets_sigterm_finishes_its_hop(stage: Stage, pool: str) -> None:
    old, slug, result = hold_in_the_old_worker(stage, pool=pool)

    old.signal(signal.SIGTERM)
    until(lambda: "Warm shutdown" in old.text(), "the worker shutting down", seconds=PATIENT)
    assert attempts(stage.engine, slug) == [(FIRST, "running")]
    stage.let_go()

    assert result.get(timeout=PATIENT).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug)
    assert_ended(old)


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGTERM], ids=["SIGQUIT", "remapped SIGTERM"])
def test_a_hop_that_ends_within_the_soft_shutdown_is_not_run_again(
    stage: Stage, remapping: Nursery, how: signal.Signals
) -> None:
    nursery = remapping if how is signal.SIGTERM else None
    old, slug, result = hold_in_the_old_worker(stage, soft_shutdown=2, nursery=nursery)

    old.signal(how)
    until(lambda: "Initiating Soft Shutdown" in old.text(), "the worker shutting down", seconds=PATIENT)
    stage.let_go()

    assert result.get(timeout=PATIENT).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug)
    assert_ended(old)


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGTERM], ids=["SIGQUIT", "remapped SIGTERM"])
def test_a_hop_that_outlasts_the_soft_shutdown_is_run_by_another_worker(
    stage: Stage, remapping: Nursery, how: signal.Signals
) -> None:
    nursery = remapping if how is signal.SIGTERM else None
    old, slug, result = hold_in_the_old_worker(stage, soft_shutdown=0.5, nursery=nursery)

    old.signal(how)

    assert result.get(timeout=PATIENT).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug, {FIRST: {"lost"}})
    assert_ended(old)
    stage.let_go()


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGTERM], ids=["SIGQUIT", "remapped SIGTERM"])
def test_a_solo_worker_that_must_end_leaves_its_hop_to_another_one(
    stage: Stage, remapping: Nursery, how: signal.Signals
) -> None:
    """Its signal handler runs within the hop's code, which must not fail with what the worker raises to end."""
    nursery = remapping if how is signal.SIGTERM else None
    old, slug, result = hold_in_the_old_worker(stage, nursery=nursery, pool="solo")

    old.signal(how)

    assert result.get(timeout=PATIENT).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug, {FIRST: {"lost"}})
    assert_ended(old)
    stage.let_go()


def test_a_worker_of_threads_that_must_end_finishes_its_hop(stage: Stage) -> None:
    """Nothing ends a thread. Whoever cannot wait kills the worker, and the hop is lost and runs again."""
    old, slug, result = hold_in_the_old_worker(stage, soft_shutdown=0.5, pool="threads")

    old.signal(signal.SIGQUIT)
    until(lambda: "Initiating Soft Shutdown" in old.text(), "the worker shutting down", seconds=PATIENT)
    with pytest.raises(TimeoutError):
        result.get(timeout=2)
    assert attempts(stage.engine, slug) == [(FIRST, "running")]
    stage.let_go()

    assert result.get(timeout=PATIENT).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug)
    assert_ended(old)
    assert "Traceback" not in old.text()


def test_a_worker_that_is_killed_after_its_grace_period_loses_nothing(stage: Stage) -> None:
    old, slug, result = hold_in_the_old_worker(stage)

    old.signal(signal.SIGTERM)
    until(lambda: "Warm shutdown" in old.text(), "the worker shutting down", seconds=PATIENT)
    old.kill()
    stage.let_go()

    assert result.get(timeout=PATIENT).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug, {FIRST: {"lost"}})


def plan_with_the_old_code(stage: Stage) -> tuple[str, AsyncResult]:
    """A migration planned by a worker with the old code, which then ends."""
    stage.keep(0)
    stage.keep(1)
    slug = f"g-{uuid.uuid4().hex[:12]}"
    stage.arm("begin_dispatched")
    result = stage.migrate(slug)
    stage.kill_group(stage.held())
    return slug, result


def test_a_worker_with_other_code_leaves_the_hop_to_one_that_has_the_planned_code(stage: Stage) -> None:
    slug, result = plan_with_the_old_code(stage)
    planned = migration_of(stage.engine, slug).plan[0]["fingerprint"]

    stage.start_another(environment=OTHER_CODE)
    until(lambda: migration_of(stage.engine, slug).code_mismatches, "the hop requeued", seconds=PATIENT)
    assert attempts(stage.engine, slug) == []
    stage.start_another()

    assert result.get(timeout=PATIENT).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug)
    assert migration_of(stage.engine, slug).plan[0]["fingerprint"] == planned
    stage.keep(0)


def test_a_hop_whose_planned_code_nobody_has_fails_and_a_retry_takes_the_new_code(stage: Stage) -> None:
    slug, result = plan_with_the_old_code(stage)
    planned = migration_of(stage.engine, slug).plan[0]["fingerprint"]

    stage.start_another(environment=OTHER_CODE | {"GRAPH_MIGRATOR_DEPLOY_SECONDS": "1"})

    with pytest.raises(HopCodeChanged, match=FIRST):
        result.get(timeout=PATIENT)
    assert attempts(stage.engine, slug) == []
    assert graph_row(stage.engine, slug).migration_id is not None  # read-only for `error`

    assert stage.ask(slug).get(timeout=PATIENT).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug)
    assert migration_of(stage.engine, slug).plan[0]["fingerprint"] != planned
    stage.keep(0)


def waits_for_code(stage: Stage, slug: str) -> tuple[WaitingCall, ...]:
    """The calls of a graph that a worker has requeued."""

    def requeued() -> tuple[WaitingCall, ...]:
        return tuple(c for c in graph_state(stage.engine, slug).waiting_calls if c.because)

    return until(requeued, "the requeue recorded", seconds=PATIENT)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (OLDER_CODE, "this worker lacks the code"),
        (NO_CODE, "graph types cannot be loaded; the message is requeued"),
    ],
    ids=["an older release", "types that cannot be loaded"],
)
def test_a_call_that_a_worker_cannot_plan_waits_for_one_that_can(
    stage: Stage, environment: dict[str, str], says: str
) -> None:
    stage.keep(0)
    worker = stage.start_another(environment=environment)
    worker.wait_until_ready()
    slug = f"g-{uuid.uuid4().hex[:12]}"
    add_graph(stage.engine, slug, "ledger", nodes=ledger.NODES)
    result = migrate_graph.delay(slug, 4)
    until(lambda: says in worker.text(), "the call requeued", seconds=PATIENT)
    assert not result.ready()
    (call,) = waits_for_code(stage, slug)
    assert (call.task_id, call.target, call.tries >= 1) == (result.id, 4, True)
    assert call.worker.partition("@")[0] == worker.name
    assert (call.seconds_left is not None) is (environment is OLDER_CODE), "a limit"
    shown = graph_state(stage.engine, slug)
    assert f"requeued {count(call.tries, 'time')}" in call.fact
    assert call.because in explain(shown, [], Fleet)[0].what
    stage.start_another()

    assert result.get(timeout=PATIENT).status is MigrationStatus.SUCCEEDED
    assert graph_state(stage.engine, slug).waiting_calls == ()
    until(lambda: not rows(stage.engine, "SELECT 1 FROM waiting_calls"), "it is forgotten", seconds=PATIENT)
    stage.assert_exactly_once(slug)
    stage.keep(0)
