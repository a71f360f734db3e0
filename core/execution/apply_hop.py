"""Running the code of one hop: in one transaction, or batch by batch."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import Connection

from graph_migrator.core.errors import CheckFailed, HopTimedOut
from graph_migrator.core.events import publish
from graph_migrator.core.execution import failpoints
from graph_migrator.core.execution.locate import locating
from graph_migrator.core.graph_types.context import HopContext
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.core.store.batches import BatchWalk
from graph_migrator.core.store.errors import DRIVER_ERRORS, ENDED, sqlstate
from graph_migrator.core.store.session import Call, Executor
from graph_migrator.core.store.validation import validate_graph

if TYPE_CHECKING:
    from graph_migrator.core.execution.run_hop import Attempt
    from graph_migrator.core.graph_types.definition import DirectedHop


class Stopped(Exception):
    """A pause or cancel was carried out between two batches; its transaction is committed."""


class EnoughSeen(Exception):
    """A dry run has tried as many batches as it wanted to: `done` of `total` rows."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(done, total)
        self.done, self.total = done, total


@dataclass(frozen=True)
class Done:
    """What one attempt has committed."""

    rows: int
    skipped: bool = False
    report: dict[str, Any] | None = None
    """Of the migration, where it ended with this hop; as `MigrationReport` reads it."""


def apply_hop(executor: Executor, attempt: Attempt, *, most_batches: int | None = None) -> Done:
    """Run a hop and commit it with its version; at the last hop, with the whole migration.

    Raises:
        EnoughSeen: After `most_batches` batches, where rows are left.
        Stopped: An operator's pause or cancel was carried out instead.
        HopTimedOut, CheckFailed, InvalidGraphData: The hop was rolled back.
        Exception: What the hop raised; it was rolled back.
    """
    with TimeLimit(executor, attempt) as limit, locating(executor, attempt):
        if attempt.hop.is_batched:
            return _apply_batched(executor, attempt, limit, most_batches)
        return _apply_whole(executor, attempt, limit)


def commit_hop(
    executor: Executor,
    attempt: Attempt,
    *,
    skipped: bool,
    rows: int,
    done: int | None = None,
    then: Call | None = None,
) -> SimpleNamespace:
    """End the hop's transaction: fences, version, attempt row, commit; then call something else."""
    failpoints.hit("hop_before_commit")
    return executor.call_and_commit(
        "finish_hop", attempt.id, attempt.message.migration_id, attempt.graph.id, attempt.message.from_version,
        attempt.message.to_version, "skipped" if skipped else "succeeded", rows, done, attempt.is_last,
        executor.in_callers_transaction, settings().deadline_seconds,
        attempt.hop.is_batched or attempt.facts.cursor is not None, then=then,
    )  # fmt: skip


def commit_migration(
    executor: Executor, attempt: Attempt, *, skipped: bool, rows: int, done: int | None = None
) -> dict[str, Any] | None:
    """End the last hop's transaction: all of `commit_hop`, and claim and migration with it.

    There is no moment at which all hops are done and the graph is still owned.

    Returns:
        The migration's report, brought by the call that gives the lock back.
    """
    assert attempt.is_last  # noqa: S101 - the database checks it again: version = target
    leave: Call = ("release_lock", attempt.graph.id, True, attempt.message.migration_id)
    left = commit_hop(executor, attempt, skipped=skipped, rows=rows, done=done, then=leave)
    return getattr(left, "report", None)


def _commit(
    executor: Executor, attempt: Attempt, *, skipped: bool, rows: int, done: int | None = None
) -> Done:
    report = None
    with _own_transaction(executor, attempt.hop):
        if attempt.is_last:
            report = commit_migration(executor, attempt, skipped=skipped, rows=rows, done=done)
        else:
            commit_hop(executor, attempt, skipped=skipped, rows=rows, done=done)
    return Done(rows, skipped, report)


def _apply_whole(executor: Executor, attempt: Attempt, limit: TimeLimit) -> Done:
    hop = attempt.hop
    with (
        executor.transaction() as connection,
        _context(connection, attempt, _progress_of(executor, attempt)) as ctx,
    ):
        failpoints.hit("hop_before_data")
        with limit.around_code():
            skipped = hop.when is not None and not hop.when(ctx)
            if not skipped:
                _run_whole(hop, ctx)
                validate_graph(ctx, hop)
                _check(hop, ctx)
        failpoints.hit("hop_after_data")
        return _commit(executor, attempt, skipped=skipped, rows=ctx.rows_changed)


def _run_whole(hop: DirectedHop, ctx: HopContext) -> None:
    if hop.sql is not None:
        ctx.execute(hop.sql)
        return
    assert hop.run is not None  # noqa: S101 - a hop has SQL or code
    failpoints.hit("hop_in_data")
    hop.run(ctx)
    ctx.flush()


def _apply_batched(executor: Executor, attempt: Attempt, limit: TimeLimit, most_batches: int | None) -> Done:
    hop, message = attempt.hop, attempt.message
    walk = BatchWalk(hop, attempt.graph, after=attempt.facts.cursor, done=attempt.facts.done or 0)
    total = walk.count(executor)
    executor.call("save_progress", attempt.id, walk.done, total)
    rows = 0
    for batches in count(1):
        began = time.monotonic()
        with executor.transaction() as connection:
            status = executor.call("open_batch", attempt.id, message.migration_id, attempt.graph.id).status
            if status in {MigrationStatus.PAUSING, MigrationStatus.CANCELLING}:
                stopping = executor.call("settle", message.migration_id, "stopped").status
            else:
                stopping = None
            if stopping is None:
                with _context(connection, attempt, None) as ctx:
                    failpoints.hit("batch_before_data")
                    with limit.around_code():
                        skipped = walk.is_at_start and hop.when is not None and not hop.when(ctx)
                        if not skipped:
                            walk.advance(ctx)
                        if walk.is_at_end:
                            _check(hop, ctx)
                    if skipped:
                        return _commit(executor, attempt, skipped=True, rows=0)
                    if walk.is_at_end:
                        last = _commit(
                            executor, attempt, skipped=False, rows=ctx.rows_changed, done=walk.done
                        )
                        return replace(last, rows=rows + last.rows)
                    with _own_transaction(executor, hop):
                        executor.call(
                            "save_batch", attempt.id, message.migration_id, message.to_version, walk.cursor,
                            walk.done, ctx.rows_changed, settings().deadline_seconds,
                        )  # fmt: skip
                    failpoints.hit("batch_before_commit")
        if stopping is not None:
            raise Stopped
        failpoints.hit("batch_committed")
        if batches == most_batches:
            raise EnoughSeen(walk.done, total)
        walk.adapt(time.monotonic() - began, settings().batch_target_seconds)
        rows += ctx.rows_changed
        publish.progressed(executor, attempt, walk.done, total, ctx.rows_changed)
    raise AssertionError("a walk ends with a commit")


def _check(hop: DirectedHop, ctx: HopContext) -> None:
    if hop.check is None:
        return
    verdict = hop.check(ctx)
    if verdict is False or isinstance(verdict, str):
        reason = verdict if isinstance(verdict, str) else "it returned False"
        raise CheckFailed(ctx.graph.slug, hop.name, reason)


@contextmanager
def _own_transaction(executor: Executor, hop: DirectedHop) -> Iterator[None]:
    """Around what ends a hop's transaction: it is the one that was opened for the hop, or nothing is done."""
    ended = RuntimeError(f"hop {hop.name!r} ended its own transaction; it must neither commit nor roll back")
    if executor.transaction_was_ended:
        raise ended
    try:
        yield
    except DRIVER_ERRORS as error:
        if sqlstate(error) == ENDED:  # and another one was begun, behind the driver's back
            raise ended from None
        raise


@contextmanager
def _context(
    connection: Connection, attempt: Attempt, report_progress: Callable[[int, int | None], None] | None
) -> Iterator[HopContext]:
    ctx = HopContext(
        connection,
        attempt.graph,
        hop=attempt.hop.name,
        from_version=attempt.message.from_version,
        to_version=attempt.message.to_version,
        attempt=attempt.number,
        report_progress=report_progress,
    )
    try:
        yield ctx
    finally:
        ctx.close()


def _progress_of(executor: Executor, attempt: Attempt) -> Callable[[int, int | None], None] | None:
    """Progress of a hop in one transaction goes over a connection of its own: its own rows are not visible."""
    if executor.in_callers_transaction:
        return None
    engine = executor.connection.engine
    last = 0.0

    def report(done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < 0.5 and done != total:
            return
        last = now
        with engine.connect() as beside, beside.begin():
            beside.exec_driver_sql(
                "SELECT graph_migrator.save_progress(%s, %s, %s)", (attempt.id, done, total)
            )

    return report


class TimeLimit:
    """A hop's ``timeout=``, for all its batches together.

    Postgres ends a statement that takes that long; an alarm ends Python code, where it runs in the main
    thread, as it does in Celery's own pool; and every batch looks at the clock. The alarm is never armed
    while something commits: what is committed is not a failure.
    """

    def __init__(self, executor: Executor, attempt: Attempt) -> None:
        self._executor = executor
        self._attempt = attempt
        self._seconds = attempt.hop.timeout
        self._end = time.monotonic() + (self._seconds or 0)

    def __enter__(self) -> Self:
        if self._seconds is not None:
            self._executor.call(
                "set_timeout", int(self._seconds * 1_000), self._executor.in_callers_transaction
            )
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if self._seconds is None:
            return
        if not self._executor.is_closed:
            self._executor.call("set_timeout", 0, self._executor.in_callers_transaction)
        if isinstance(error, Exception) and sqlstate(error) == "57014":  # query_canceled
            raise self._exceeded() from error

    @contextmanager
    def around_code(self) -> Iterator[None]:
        """Around the hop's own code."""
        if self._seconds is None:
            yield
            return
        left = self._end - time.monotonic()
        if left <= 0:
            raise self._exceeded()
        if threading.current_thread() is not threading.main_thread():
            yield
        else:
            before = signal.signal(signal.SIGALRM, self._ring)
            signal.setitimer(signal.ITIMER_REAL, left)
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
        if time.monotonic() > self._end:
            raise self._exceeded()

    def _ring(self, _number: int, _frame: object) -> None:
        raise self._exceeded()

    def _exceeded(self) -> HopTimedOut:
        return HopTimedOut(self._attempt.graph.slug, self._attempt.hop.name, self._seconds or 0)
