"""A look that opens the hop as well: it does where `decide_hop` says `Run`, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from graph_migrator.core.decision_inputs import HopState
from graph_migrator.core.decisions import HopMessage, Limits, Run, decide_hop
from graph_migrator.core.execution.model import Worker
from graph_migrator.core.execution.run_hop import open_call
from graph_migrator.core.graph_types.definition import Direction
from graph_migrator.core.planning import Step, steps_of_one_transaction
from graph_migrator.core.statuses import SETTLED, MigrationStatus
from graph_migrator.core.store import protocol
from graph_migrator.core.store.session import Executor, Executors
from tests.integration.scripted import batched, careful, plain

WORKER = Worker("w", 1, "task")
LIMITS = Limits(crashes=2, interruptions=3)


@dataclass(frozen=True)
class Found:
    """What is in Postgres and in the message; as it is by default, the hop is opened."""

    hop: int = 2
    """Which version the hop starts from; the migration goes from v1 to v5."""
    back: bool = False
    """The same way from v5 to v1."""
    status: str = "running"
    claim: str = "own"
    version: int = 0
    """How far the graph is from where the hop starts."""
    dispatch: int = 0
    """The message's, before or behind the migration's."""
    strays: int = 0
    """The message names the hop before or after this one."""
    held: bool = False
    """Another session holds the lock."""
    before: tuple[str, ...] = ()
    """Earlier attempts of the hop."""
    running: str | None = None
    """A running row: of this dispatch, or of an older one."""
    later: bool = False
    """An attempt of the next hop is there."""
    forgiven: bool = False
    """An operator's retry came after all attempts."""
    checkpoint: bool = False
    shards: bool = False
    mismatches: int = 0
    code: str = "planned"
    """What this process has for the hop."""


ODD: dict[str, st.SearchStrategy[Any]] = {
    "status": st.sampled_from(sorted(MigrationStatus)),
    "claim": st.sampled_from(["none", "another"]),
    "version": st.integers(-2, 2),
    "dispatch": st.sampled_from([-1, 1]),
    "strays": st.sampled_from([-1, 1]),
    "held": st.just(True),
    "before": st.lists(
        st.sampled_from(["failed", "transient", "lost", "crashed", "stopped"]), max_size=4
    ).map(tuple),
    "running": st.sampled_from(["this", "crashed", "older"]),
    "later": st.just(True),
    "forgiven": st.just(True),
    "checkpoint": st.just(True),
    "shards": st.just(True),
    "mismatches": st.integers(1, 3),
    "code": st.sampled_from(["other", "renamed", "none", "of another type"]),
}


@st.composite
def _found(draw: st.DrawFn) -> Found:
    odd = draw(st.sets(st.sampled_from(sorted(ODD)), max_size=3))
    hop, back, status = (
        draw(st.integers(2, 4)),
        draw(st.booleans()),
        draw(st.sampled_from(["queued", "running"])),
    )
    values = {"status": status} | {name: draw(ODD[name]) for name in sorted(odd)}
    return Found(hop=hop, back=back, **values)


@hypothesis_settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(_found())
@example(Found())
@example(Found(status="queued"))
@example(Found(before=("failed", "transient"), mismatches=2, checkpoint=True))
@example(Found(before=("lost",)))
@example(Found(before=("crashed",)))
@example(Found(before=("lost", "crashed"), forgiven=True))
@example(Found(running="this"))
@example(Found(status="pausing"))
@example(Found(claim="another"))
@example(Found(version=-1))
@example(Found(shards=True))
@example(Found(code="other"))
@example(Found(code="of another type"))
def test_a_hop_is_opened_with_the_look_exactly_where_it_is_decided_to_run(
    engine: Engine, executors: Executors, found: Found
) -> None:
    with executors.borrow() as executor, _written(engine, executor, found) as (message, steps):
        call = protocol.LockAndOpenHop(
            migration=message.migration_id,
            to=message.to_version,
            dispatch=message.dispatch,
            steps=steps,
            worker=WORKER.name,
            pid=WORKER.pid,
            task=WORKER.task_id,
            deadline_seconds=30,
        )
        looking = protocol.LockAndLoadHop(
            migration=message.migration_id, to=message.to_version, dispatch=message.dispatch
        )
        _execute(executor, "SAVEPOINT before")
        looked = executor.call(call)
        rows = _rows(executor)
        _execute(executor, "ROLLBACK TO SAVEPOINT before; SELECT pg_advisory_unlock_all()")
        state = executor.call(looking)

        assert state is not None
        assert looked.state is not None
        assert replace(looked.state, mismatch_seconds=0) == replace(state, mismatch_seconds=0)
        planned = {
            "planned": state.planned_fingerprint,
            "renamed": state.planned_fingerprint,
            "other": "other",
        }
        decided = decide_hop(state, message, planned.get(found.code), LIMITS)
        assert (looked.opened is not None) == (decided == Run(None) and _is_plain(state, steps))
        if looked.opened is not None:
            assert rows == _opened_by_itself(executor, message, state)
        else:
            assert rows == _rows(executor)


def _is_plain(state: HopState, steps: dict[str, Any]) -> bool:
    """What `decide_hop` may let run, and the look leaves to it: what limits count, shards, and other plans."""
    return (
        state.hop == steps.get(state.graph_type) and state.interruptions + state.crashes + state.shards == 0
    )


def _opened_by_itself(executor: Executor, message: HopMessage, state: HopState) -> list[Any]:
    hop = replace(plain.directed(1, 2), name=state.hop_name, fingerprint=state.planned_fingerprint)
    assert executor.call(open_call(message, state, hop, None, WORKER))
    return _rows(executor)


@contextmanager
def _written(
    engine: Engine, executor: Executor, found: Found
) -> Iterator[tuple[HopMessage, dict[str, dict[str, Any]]]]:
    """Write what is found, in a transaction that is rolled back; bring the message and this process's steps."""
    graph, migration, another = uuid4(), uuid4(), uuid4()
    versions = (5, 4, 3, 2, 1) if found.back else (1, 2, 3, 4, 5)
    direction = Direction.REVERSE if found.back else Direction.FORWARD
    plan = [
        Step(start, end, f"hop_{start}", f"f{start}", direction, batched=False)
        for start, end in pairwise(versions)
    ]
    at = found.hop - 1
    asked = plan[min(max(at + found.strays, 0), len(plan) - 1)]
    later = plan[min(at + 1, len(plan) - 1)]
    dispatch = 2
    settled = {"finished_at": "now()"} if MigrationStatus(found.status) in SETTLED else {}
    with engine.connect() as beside, executor.cursor() as cursor:
        cursor.execute("BEGIN; ALTER TABLE graphs DISABLE TRIGGER USER")
        try:
            if found.held:
                beside.exec_driver_sql("SELECT pg_advisory_lock(graph_migrator.lock_key(%s))", (graph,))
            for each, status in ((another, "succeeded"), (migration, found.status)):
                cursor.execute(
                    "INSERT INTO migrations (id, graph_id, graph_type, from_version, to_version, status, dispatch,"
                    " plan, deadline, code_mismatches, code_mismatch_since, retries_reset_after_id, error_type,"
                    " finished_at) VALUES (%s, %s, 'plain', %s, %s, %s, %s, %s, now(), %s, now(), %s, %s, %s)",
                    (
                        each, graph, versions[0], versions[-1], status, dispatch,
                        json.dumps([step.to_json() for step in plan]), found.mismatches,
                        10**12 if found.forgiven else 0,
                        "E" if status == "failed" else None,
                        "now" if status == "succeeded" or settled else None,
                    ),
                )  # fmt: skip
            claim = {"own": migration, "another": another, "none": None}[found.claim]
            version = max(1, asked.from_version + found.version)
            cursor.execute(
                "INSERT INTO graphs (id, slug, graph_type, version, migration_id) VALUES (%s, 'g', 'plain', %s, %s)",
                (graph, version, claim),
            )
            attempts = [(status, asked, dispatch) for status in found.before]
            if found.later:
                attempts.append(("lost", later, dispatch))
            if found.running:
                of_dispatch = dispatch - (found.running == "older")
                attempts.append(
                    ("running, crashed" if found.running == "crashed" else "running", asked, of_dispatch)
                )
            for number, (status, step, of_dispatch) in enumerate(attempts, start=1):
                _write_attempt(cursor, graph, migration, number, status, step, of_dispatch)
            if found.checkpoint:
                cursor.execute(
                    "INSERT INTO checkpoints (migration_id, to_version, cursor, done) VALUES (%s, %s, '[\"n\"]', 3)",
                    (migration, asked.to_version),
                )
            if found.shards:
                cursor.execute(
                    "INSERT INTO shards (migration_id, to_version, number, table_name, key, total)"
                    " VALUES (%s, %s, 1, 'nodes', '[]', 1)",
                    (migration, asked.to_version),
                )
            yield (
                HopMessage(migration, asked.from_version, asked.to_version, dispatch + found.dispatch),
                _steps_of_process(found.code, asked),
            )
        finally:
            cursor.execute("ROLLBACK; SELECT pg_advisory_unlock_all()")


def _steps_of_process(code: str, step: Step) -> dict[str, dict[str, Any]]:
    steps = {
        "planned": {"plain": step},
        "other": {"plain": replace(step, fingerprint="other")},
        "renamed": {"plain": replace(step, name="renamed")},
        "none": {},
        "of another type": {"another": step},
    }[code]
    return {kind: each.to_json() for kind, each in steps.items()}


def _write_attempt(
    cursor: Any, graph: UUID, migration: UUID, number: int, status: str, step: Step, dispatch: int
) -> None:
    is_running, is_crashed = status.startswith("running"), status.endswith("crashed")
    kept = {"transient": "failed", "crashed": "lost"}.get(status, "running" if is_running else status)
    cursor.execute(
        "INSERT INTO hop_attempts (migration_id, graph_id, from_version, to_version, hop_name, fingerprint, attempt,"
        " dispatch, status, transient, error_type, finished_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " RETURNING id",
        (
            migration, graph, step.from_version, step.to_version, step.name, step.fingerprint, number, dispatch, kept,
            status == "transient", "E" if kept == "failed" else None, None if is_running else "now",
        ),
    )  # fmt: skip
    (attempt,) = cursor.fetchone()
    if is_crashed:
        cursor.execute(
            "INSERT INTO losses (attempt_id, because, how) VALUES (%s, 'process', 'SIGKILL')", (attempt,)
        )


def _execute(executor: Executor, statement: str) -> None:
    with executor.cursor() as cursor:
        cursor.execute(statement)


def _rows(executor: Executor) -> list[Any]:
    """What opening writes, without ids and times."""
    with executor.cursor() as cursor:
        cursor.execute(
            "SELECT to_jsonb(a) - 'id' - 'started_at' - 'progress_at' FROM hop_attempts a ORDER BY a.id"
        )
        attempts = list(cursor.fetchall())
        cursor.execute(
            "SELECT to_jsonb(m) - 'deadline' - 'started_at', m.started_at IS NULL FROM migrations m ORDER BY m.id"
        )
        return [*attempts, *cursor.fetchall()]


def test_steps_of_one_transaction_leave_out_hops_in_batches() -> None:
    assert list(steps_of_one_transaction((plain, batched, careful), 1, 2)) == ["plain", "careful"]
    assert list(steps_of_one_transaction((plain, batched, careful), 2, 3)) == ["plain", "batched", "careful"]
    assert list(steps_of_one_transaction((plain, batched, careful), 2, 1)) == ["plain"]
    assert steps_of_one_transaction((plain,), 1, 3) == {}
