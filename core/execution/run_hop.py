"""What a delivered message does: at most one hop, and the record of how it went.

`run_hop` looks, decides (`core.decisions`), and does what was decided. A hop that raised is recorded by
`fail_migration`; one whose connection was lost is believed to be what its row says.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from graph_migrator.core.decisions import (
    Answer,
    CodeDiffers,
    CrashLimitReached,
    HopMessage,
    Ignored,
    Later,
    Limits,
    PassOn,
    Requeue,
    Run,
    Settle,
    decide_hop,
)
from graph_migrator.core.errors import (
    HopCodeChanged,
    HopCrashedRepeatedly,
    UnknownGraphType,
    json_args,
    name_of,
    rows_of,
)
from graph_migrator.core.events import publish
from graph_migrator.core.execution import failpoints
from graph_migrator.core.execution.apply_hop import Stopped, apply_hop
from graph_migrator.core.execution.begin import load_report
from graph_migrator.core.graph_types.context import GraphFacts
from graph_migrator.core.graph_types.definition import DirectedHop
from graph_migrator.core.graph_types.registry import graph_type
from graph_migrator.core.reports import MigrationReport
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import APPLIED, MigrationStatus
from graph_migrator.core.store import frames
from graph_migrator.core.store.errors import DRIVER_ERRORS, Failure, classify
from graph_migrator.core.store.locks import take_lock
from graph_migrator.core.store.redaction import safe_args, safe_message, safe_traceback
from graph_migrator.core.store.session import Executor, Executors

HOST = socket.gethostname()


@dataclass(frozen=True)
class Worker:
    """Who executes; stands in the audit row."""

    name: str = field(default_factory=lambda: f"inline@{HOST}")
    pid: int = field(default_factory=os.getpid)
    task_id: str | None = None


@dataclass(frozen=True)
class Applied:
    """The hop is applied; `report` is there after the last one."""

    report: MigrationReport | None = None


@dataclass(frozen=True)
class Failed:
    """The migration has ended with this error; it is recorded."""

    error: Exception


HopOutcome = Applied | Ignored | Later | Failed


@dataclass(frozen=True)
class Attempt:
    """An open hop attempt: the row that fences everything its executor writes."""

    id: int
    number: int
    message: HopMessage
    facts: Any
    hop: DirectedHop
    began: float = field(default_factory=time.monotonic)

    @property
    def is_last(self) -> bool:
        """Whether the migration ends with this hop."""
        return bool(self.message.to_version == self.facts.to_version)

    @property
    def graph(self) -> GraphFacts:
        """The graph as the hop sees it."""
        f = self.facts
        return GraphFacts(f.graph_id, f.slug, f.graph_type, f.version, f.config or {})


def run_hop(
    executors: Executors, message: HopMessage, *, worker: Worker | None = None, limits: Limits | None = None
) -> HopOutcome:
    """Do what a delivered message asks for: run its hop, or whatever else the present state calls for.

    Args:
        executors: Lends the session; it comes back without any lock.
        message: What was delivered.
        worker: Who executes, for the audit row.
        limits: How often a hop may go wrong; from the settings by default.

    Returns:
        `Applied` when the hop is applied (by this call or before), with the final report after the last
        one; `Ignored` when this message is not the one; `Later` when it should be delivered again;
        `Failed` when the migration has ended with an error, which is recorded.
    """
    worker = worker or Worker()
    limits = limits or limits_of_settings()
    while True:
        try:
            with executors.borrow() as executor:
                outcome = _deliver(executor, message, worker, limits)
        except _ConnectionLost as lost:
            outcome = _resolve_lost_commit(executors, lost.attempt, limits)
        except Exception as error:
            # Between two attempts nothing is held: whatever was lost on the way, the next look finds it.
            if classify(error) is Failure.PERMANENT:
                raise
            outcome = Later(backoff(2), f"Postgres: {safe_message(error)}")
        if outcome is not None:
            return outcome


def limits_of_settings() -> Limits:
    """How often a hop may go wrong, by the settings."""
    s = settings()
    return Limits(s.max_lost_attempts, s.max_code_mismatches, s.max_transient_tries)


class _ConnectionLost(Exception):
    """The session died while it held an attempt; what became of the attempt is written in Postgres."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt


def _deliver(executor: Executor, message: HopMessage, worker: Worker, limits: Limits) -> HopOutcome | None:
    """One look, one decision, and its doing. None: the state changed in between, look again."""
    facts = executor.call("load_hop_state", message.migration_id, message.to_version, message.dispatch)
    if facts.graph_id is None:
        return Ignored(f"there is no migration {message.migration_id}", must_not_occur=True)
    failpoints.hit("hop_locked")
    hop = _code_for(facts, message)
    decision = decide_hop(facts, message, hop.fingerprint if hop else None, limits)
    if isinstance(decision, Run):
        assert hop is not None  # noqa: S101 - its fingerprint was the planned one
        return _run(executor, message, facts, hop, decision.lost_id, worker, limits)
    with _left(executor, facts):
        match decision:
            case Ignored() | Later():
                return decision
            case Answer():
                return _answer(executor, message.migration_id)
            case PassOn():
                return Applied()
            case Settle():
                settled = executor.call("settle", message.migration_id, "lost").status
                if settled is None:
                    return None
                publish.ended(executor, message.migration_id, lost_id=facts.running_id, found_by="executor")
                return (
                    Ignored("paused")
                    if settled == MigrationStatus.PAUSED
                    else _answer(executor, message.migration_id)
                )
            case CrashLimitReached(lost, running_id):
                error = HopCrashedRepeatedly(facts.slug, _name(facts), lost)
                return _fail_before_start(executor, message, running_id, error)
            case Requeue():
                executor.call("count_mismatch", message.migration_id, settings().deadline_seconds)
                # Never in step with the consumers' polling, or the same worker takes it each time.
                return Later(random.uniform(0.3, 1.7), "this worker has other code for the hop")  # noqa: S311 - jitter
            case CodeDiffers():
                planned = (facts.hop or {}).get("fingerprint", "")
                changed = HopCodeChanged(facts.slug, _name(facts), planned, hop.fingerprint if hop else "")
                return _fail_before_start(executor, message, facts.running_id, changed)


def _name(facts: Any) -> str:
    return str((facts.hop or {}).get("name", "?"))


def _code_for(facts: Any, message: HopMessage) -> DirectedHop | None:
    """This process's code for the hop, if it has any."""
    try:
        return graph_type(facts.graph_type).directed(message.from_version, message.to_version)
    except (UnknownGraphType, LookupError):
        return None


@contextmanager
def _left(executor: Executor, facts: Any) -> Iterator[None]:
    """Give the lock back whatever comes, if `load_hop_state` took it. A settled pause or cancel is stamped there."""
    try:
        yield
    finally:
        if facts.locked:
            executor.release_lock(facts.graph_id)


def _answer(executor: Executor, migration_id: UUID) -> Applied | Failed | Ignored:
    report = load_report(executor, migration_id)
    if not report.status.is_settled:  # a retry came in between; its own chain will answer
        return Ignored("the migration was taken up again")
    error = report.error()
    return Applied(report) if error is None else Failed(error)


def _fail_before_start(
    executor: Executor, message: HopMessage, running_id: int | None, error: Exception
) -> HopOutcome | None:
    given_up = executor.call(
        "fail_migration_row",
        message.migration_id,
        message.dispatch,
        running_id,
        name_of(error),
        str(error),
        json_args(error),
    ).fail_migration_row
    if not given_up:
        return None
    publish.ended(executor, message.migration_id, lost_id=running_id, found_by="executor")
    return _answer(executor, message.migration_id)


def _run(
    executor: Executor,
    message: HopMessage,
    facts: Any,
    hop: DirectedHop,
    lost_id: int | None,
    worker: Worker,
    limits: Limits,
) -> HopOutcome | None:
    # A hop of many transactions opens each by itself.
    open_hop = executor.call if hop.is_batched else executor.call_and_begin
    opened = open_hop(
        "open_hop", message.migration_id, facts.graph_id, facts.status, message.dispatch, lost_id,
        message.from_version, message.to_version, hop.name, hop.fingerprint, worker.name, worker.pid,
        worker.task_id, facts.done or 0, settings().deadline_seconds,
    )  # fmt: skip
    if opened.attempt_id is None:  # an operator was quicker; nothing was written
        executor.roll_back()
        executor.release_lock(facts.graph_id)
        return None
    attempt = Attempt(opened.attempt_id, opened.attempt, message, facts, hop)
    failpoints.hit("hop_opened")
    publish.started(executor, attempt, worker, lost_id)
    try:
        done = apply_hop(executor, attempt)
    except Stopped:
        executor.release_lock(facts.graph_id)
        publish.ended(executor, message.migration_id)
        return None  # the state is settled; what there is to answer is decided by looking again
    except Exception as error:  # noqa: BLE001 - a hop may raise anything; it is all recorded
        try:
            return _failed(executor, attempt, error, limits)
        except DRIVER_ERRORS as second:
            if classify(second) is Failure.LOST_CONNECTION:
                raise _ConnectionLost(attempt) from second
            raise
    failpoints.hit("hop_committed")
    report = MigrationReport.model_validate(done.report) if attempt.is_last else None
    failpoints.hit("hop_left")
    publish.succeeded(executor, attempt, done, report)
    return Applied(report)


def _failed(executor: Executor, attempt: Attempt, error: Exception, limits: Limits) -> HopOutcome:
    """A hop raised: believe Postgres where the connection is gone, try again where that helps, else fail."""
    kind = classify(error)
    if kind is Failure.LOST_FENCE:
        return _abandon(executor, str(error))
    if kind is Failure.LOST_CONNECTION:
        raise _ConnectionLost(attempt) from error
    transient = kind is Failure.TRANSIENT or isinstance(error, attempt.hop.retry_on or ())
    if transient and attempt.facts.tries + 1 < limits.transient_tries:
        pause = backoff(attempt.facts.tries)
        if not _write_failure(executor, attempt, error, transient=True, final=False, pause=pause):
            return _abandon(executor, "somebody else has settled the attempt")
        executor.release_lock(attempt.facts.graph_id)
        publish.failed(executor, attempt, error, pause)
        return Later(pause, f"{name_of(error)}: {safe_message(error)}")
    return fail_migration(executor, attempt, error, transient=transient)


def fail_migration(
    executor: Executor, attempt: Attempt, error: Exception, *, transient: bool = False
) -> HopOutcome:
    """Record that a hop raised, in a transaction of its own; the claim stays, the graph is read-only.

    Returns:
        `Failed` with the error as it was recorded; `Ignored` where somebody else has settled the attempt.
    """
    failpoints.hit("fail_before_commit")
    if not _write_failure(executor, attempt, error, transient=transient, final=True, pause=0):
        return _abandon(executor, "somebody else has settled the attempt")
    failpoints.hit("fail_committed")
    executor.release_lock(attempt.facts.graph_id)
    publish.failed(executor, attempt, error, None)
    answer = _answer(executor, attempt.message.migration_id)
    if isinstance(answer, Failed):  # the worker's log and Flower show the frames of the hop's own code
        answer.error.with_traceback(frames.of_files(error.__traceback__))
    return answer


def _write_failure(
    executor: Executor, attempt: Attempt, error: Exception, *, transient: bool, final: bool, pause: float
) -> bool:
    return bool(
        executor.call(
            "fail_hop", attempt.id, attempt.message.migration_id, attempt.facts.graph_id, transient, final,
            name_of(error), safe_message(error).replace("\x00", ""), safe_args(error),
            safe_traceback(error).replace("\x00", ""), pause + settings().deadline_seconds, rows_of(error),
            frames.last_of_author(error.__traceback__),
        ).fail_hop
    )  # fmt: skip


def _abandon(executor: Executor, why: str) -> Ignored:
    """This executor is no longer the one: its session, and whatever it may still hold, ends here."""
    executor.close()
    return Ignored(why)


def backoff(tries: int) -> float:
    """Seconds to wait after so many transient errors: exponential, with full jitter on its upper half."""
    s = settings()
    longest: float = min(s.retry_base_seconds * 2**tries, s.retry_max_seconds)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter


def _resolve_lost_commit(executors: Executors, attempt: Attempt, limits: Limits) -> HopOutcome | None:
    """The connection was lost at an unknown moment. The attempt's row knows what was committed.

    The lock comes first: it waits out a commit that is still in flight. None: look at the message again.
    """
    try:
        with executors.borrow() as executor:
            if not take_lock(executor, attempt.facts.graph_id, seconds=5):
                return Later(1.0, "the lost session has not ended yet")
            try:
                status = executor.call("attempt_status", attempt.id).attempt_status
                if status == "running":
                    executor.call("become_executor", attempt.message.migration_id)
                    final = attempt.facts.tries + 1 >= limits.transient_tries
                    lost = ConnectionError("the connection to Postgres was lost")
                    pause = backoff(attempt.facts.tries)
                    if _write_failure(executor, attempt, lost, transient=True, final=final, pause=pause):
                        publish.failed(executor, attempt, lost, None if final else pause)
                    return None if final else Later(pause, str(lost))
                if status in APPLIED:
                    end = load_report(executor, attempt.message.migration_id) if attempt.is_last else None
                    publish.succeeded(executor, attempt, None, end)
            finally:
                executor.release_lock(attempt.facts.graph_id, stamp=attempt.is_last)
    except DRIVER_ERRORS as error:
        if classify(error) is Failure.PERMANENT:
            raise
        return Later(backoff(3), "Postgres does not answer")
    return None
