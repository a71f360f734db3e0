"""Running the code of one hop: in one transaction, or batch by batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from graph_migrator.core.errors import CheckFailed, OldValuesGone
from graph_migrator.core.events import publish
from graph_migrator.core.execution import failpoints
from graph_migrator.core.execution.brake import Brake
from graph_migrator.core.execution.locate import locating, opening_of_batch
from graph_migrator.core.execution.model import Attempt, Done, EnoughSeen, Following, Stopped
from graph_migrator.core.execution.time_limit import TimeLimit
from graph_migrator.core.graph_types.context import HopContext
from graph_migrator.core.graph_types.definition import DirectedHop, Direction
from graph_migrator.core.graph_types.hop_session import OWN_TRANSACTION
from graph_migrator.core.reports import MigrationReport
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.core.store.batches import BatchWalk
from graph_migrator.core.store.errors import DRIVER_ERRORS, ENDED, sqlstate
from graph_migrator.core.store.protocol import (
    Call,
    DigestBefore,
    FinishAndOpen,
    FinishHop,
    GraphDigest,
    OpenRebuild,
    RecordDigests,
    ReleaseLock,
    ResumeExecutor,
    SaveBatch,
    SaveProgress,
    SaveRebuildBatch,
    SaveShardBatch,
    StopMigration,
    StopShard,
    SwapRebuild,
    UndoRebuild,
)
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.core.store.session import Executor
from graph_migrator.core.store.validation import validate_graph, validate_labels

_log = logging.getLogger("graph_migrator.hops")


def apply_hop(executor: Executor, attempt: Attempt, *, most_batches: int | None = None) -> Done:
    """Run a hop and commit it with its version; at the last hop, with the whole migration.

    Raises:
        EnoughSeen: After `most_batches` batches, where rows are left.
        Stopped: An operator's pause or cancel was carried out instead; of a shard, the shard was left to the next one.
        HopTimedOut, CheckFailed, InvalidGraphData: The hop was rolled back.
        Exception: What the hop raised; it was rolled back.
    """
    with TimeLimit(executor, attempt) as limit, locating(executor, attempt):
        if attempt.state.undo is not None:
            return _undo(executor, attempt)
        if attempt.hop.run is None and attempt.hop.sql is None:
            hop, message = attempt.hop, attempt.message
            raise OldValuesGone(attempt.graph.slug, hop.name, message.to_version, message.from_version)
        if attempt.is_closing:
            return _close(executor, attempt, limit)
        if attempt.hop.is_batched:
            return _apply_batched(executor, attempt, limit, most_batches)
        return _apply_whole(executor, attempt, limit)


def commit_hop(
    executor: Executor, attempt: Attempt, *, skipped: bool, rows: int, done: int | None = None
) -> None:
    """End the hop's transaction: fences, version, attempt row, commit. The commit releases the lock."""
    failpoints.hit("hop_before_commit")
    executor.commit_with(_finish(executor, attempt, skipped=skipped, rows=rows, done=done))


def commit_migration(
    executor: Executor, attempt: Attempt, *, skipped: bool, rows: int, done: int | None = None
) -> MigrationReport | None:
    """End the last hop's transaction: all of `commit_hop`, and claim and migration with it.

    There is no moment at which all hops are done and the graph is still owned.

    Returns:
        The migration's report, brought by the call that releases the lock; None in a transaction of the caller's, or
        where the attempt does not ask for it.
    """
    assert attempt.is_last  # noqa: S101 - the database checks it again: version = target
    failpoints.hit("hop_before_commit")
    report = executor.call_and_commit(
        _finish(executor, attempt, skipped=skipped, rows=rows, done=done),
        then=ReleaseLock(
            graph=attempt.graph.id,
            stamp=True,
            migration=attempt.message.migration_id if attempt.asks_report else None,
        ),
    )
    return None if report is None else MigrationReport.model_validate(report)


def _finish(executor: Executor, attempt: Attempt, *, skipped: bool, rows: int, done: int | None) -> FinishHop:
    return FinishHop(
        attempt=attempt.id,
        migration=attempt.message.migration_id,
        graph=attempt.graph.id,
        from_=attempt.message.from_version,
        to=attempt.message.to_version,
        status="skipped" if skipped else "succeeded",
        rows=rows,
        done=done,
        last=attempt.is_last,
        callers=executor.in_callers_transaction,
        deadline_seconds=settings().deadline_seconds,
        checkpoint=attempt.hop.is_batched or attempt.state.cursor is not None,
    )


def commit_and_open(
    executor: Executor, attempt: Attempt, following: Following, *, skipped: bool, rows: int
) -> int | None:
    """`commit_hop`, and the opening of the next hop with it; the session keeps the graph's lock.

    Returns:
        The attempt of the next hop; None where an operator asks for something. Then the lock is released, too.
    """
    failpoints.hit("hop_before_commit")
    message, step, worker = attempt.message, following.step, following.worker
    opened = executor.commit_and_open(
        FinishAndOpen(
            attempt=attempt.id,
            migration=message.migration_id,
            graph=attempt.graph.id,
            from_=message.from_version,
            to=message.to_version,
            status="skipped" if skipped else "succeeded",
            rows=rows,
            deadline_seconds=settings().deadline_seconds,
            next_to=step.to_version,
            hop=step.name,
            fingerprint=step.fingerprint,
            worker=worker.name,
            pid=worker.pid,
            task=worker.task_id,
        ),
        then=ResumeExecutor(migration=message.migration_id, graph=attempt.graph.id),
    )
    if opened is None:
        executor.roll_back()
    return opened


def _commit(
    executor: Executor, attempt: Attempt, *, skipped: bool, rows: int, done: int | None = None
) -> tuple[MigrationReport | None, int | None]:
    with _own_transaction(executor, attempt.hop):
        if attempt.is_last:
            return commit_migration(executor, attempt, skipped=skipped, rows=rows, done=done), None
        if attempt.following is not None:
            return None, commit_and_open(executor, attempt, attempt.following, skipped=skipped, rows=rows)
        commit_hop(executor, attempt, skipped=skipped, rows=rows, done=done)
    return None, None


def _apply_whole(executor: Executor, attempt: Attempt, limit: TimeLimit) -> Done:
    with (
        executor.transaction() as connection,
        _context(connection, attempt, _progress_of(executor, attempt)) as ctx,
    ):
        skipped = _change_whole(executor, attempt, limit, ctx)
        report, opened = _commit(executor, attempt, skipped=skipped, rows=ctx.rows_changed)
    return Done(ctx.rows_changed, skipped, report, opened)


def change_whole(executor: Executor, attempt: Attempt, connection: Connection) -> Done:
    """Do all that a hop in one transaction does, but for its end, in a transaction that other graphs' hops share.

    Raises:
        Exception: What the hop raised, or what it was refused. The transaction is to be rolled back.
    """
    with (
        TimeLimit(executor, attempt, code_only=True) as limit,
        _context(connection, attempt, _progress_of(executor, attempt)) as ctx,
    ):
        skipped = _change_whole(executor, attempt, limit, ctx)
        if executor.transaction_was_ended:
            raise _ended(attempt.hop)
    return Done(ctx.rows_changed, skipped)


def _change_whole(executor: Executor, attempt: Attempt, limit: TimeLimit, ctx: HopContext) -> bool:
    """Returns whether the hop was skipped."""
    hop = attempt.hop
    failpoints.hit("hop_before_data")
    before = executor.call(GraphDigest(graph=attempt.graph.id)) if hop.digest else None
    with limit.around_code(), _no_ending(executor, hop):
        skipped = hop.when is not None and not hop.when(ctx)
        if not skipped:
            _run_whole(hop, ctx)
            validate_graph(ctx, hop)
            _check(hop, ctx)
        ctx.flush()
    failpoints.hit("hop_after_data")
    if hop.digest:  # not earlier: others write the progress of a running hop to the same row
        after = executor.call(GraphDigest(graph=attempt.graph.id))
        executor.call(RecordDigests(attempt=attempt.id, before=before, after=after))
    return skipped


def _close(executor: Executor, attempt: Attempt, limit: TimeLimit) -> Done:
    """End a hop whose shards are all done: what needs the whole graph, and the version."""
    hop, first = attempt.hop, attempt.state.shard or {}
    with executor.transaction() as connection, _context(connection, attempt, None) as ctx:
        if attempt.stages:
            ctx.rows_changed = _swap(executor, attempt, first["rebuild_id"])
        with limit.around_code(), _no_ending(executor, hop):
            assert hop.over is not None  # noqa: S101 - it was cut by its selector
            validate_labels(ctx, hop, except_for=hop.over)
            _check(hop, ctx)
            ctx.flush()
        if hop.digest:
            after = executor.call(GraphDigest(graph=attempt.graph.id))
            executor.call(RecordDigests(attempt=attempt.id, before=first["digest_before"], after=after))
        report, _ = _commit(executor, attempt, skipped=False, rows=ctx.rows_changed, done=attempt.state.done)
    return Done(ctx.rows_changed, False, report)


def _undo(executor: Executor, attempt: Attempt) -> Done:
    """Take a rebuild hop back: its old values, without the code of the way back."""
    digest = attempt.hop.digest
    with executor.transaction():
        failpoints.hit("undo_before_data")
        before = executor.call(GraphDigest(graph=attempt.graph.id)) if digest else None
        rows = executor.call(
            UndoRebuild(
                attempt=attempt.id,
                migration=attempt.message.migration_id,
                graph=attempt.graph.id,
                rebuild=attempt.state.undo or 0,
            )
        )
        assert rows is not None  # noqa: S101 - it was found under the lock that is still held
        if digest:
            after = executor.call(GraphDigest(graph=attempt.graph.id))
            executor.call(RecordDigests(attempt=attempt.id, before=before, after=after))
        report, _ = _commit(executor, attempt, skipped=False, rows=rows, done=rows)
    return Done(rows, False, report)


def _run_whole(hop: DirectedHop, ctx: HopContext) -> None:
    if hop.sql is not None:
        ctx.execute(hop.sql)
        return
    assert hop.run is not None  # noqa: S101 - a hop has SQL or code
    failpoints.hit("hop_in_data")
    hop.run(ctx)
    ctx.flush()


def _apply_batched(executor: Executor, attempt: Attempt, limit: TimeLimit, most_batches: int | None) -> Done:
    batches, brake = _Batches(executor, attempt, limit), Brake()
    batches.count()
    while True:
        began = time.monotonic()
        done = batches.apply_next()
        if done is not None:
            return done
        failpoints.hit("batch_committed")
        if batches.committed == most_batches:
            raise EnoughSeen(batches.walk.done, batches.total)
        seconds = time.monotonic() - began
        batches.walk.adapt(seconds, settings().batch_target_seconds)
        if not executor.in_callers_transaction:
            brake.pause(executor, seconds)


class _Batches:
    """The batches of one attempt: each a transaction with its data and its checkpoint."""

    def __init__(self, executor: Executor, attempt: Attempt, limit: TimeLimit) -> None:
        self._executor, self._attempt, self._limit = executor, attempt, limit
        staging = attempt.stages and attempt.shard is None
        self._rebuild = executor.call(_rebuilding(attempt)) if staging else None
        self.walk = BatchWalk(
            attempt.hop,
            attempt.graph,
            after=attempt.state.cursor if self._rebuild is None else self._rebuild.cursor,
            done=(attempt.state.done or 0) if self._rebuild is None else self._rebuild.done,
            shard=attempt.state.shard,
            rebuild=self._rebuild.id
            if self._rebuild is not None
            else (attempt.state.shard or {}).get("rebuild_id"),
        )
        self._is_staged = self._rebuild is not None and self._rebuild.is_staged
        self.total = 0
        self.committed = 0
        self._rows = 0
        self._rate: float | None = None
        self._lacks_digest = attempt.hop.digest and attempt.shard is None

    def count(self) -> None:
        """Count what there is to process, for those who watch."""
        self.total = self.walk.count(self._executor)
        self._executor.call(SaveProgress(attempt=self._attempt.id, done=self.walk.done, total=self.total))

    def apply_next(self) -> Done | None:
        """Commit one batch.

        Returns:
            What the attempt has done, after the last batch; None where rows are left.

        Raises:
            Stopped: An operator's pause or cancel was committed instead.
        """
        with self._executor.transaction() as connection:
            stopping = self._asked_to_stop()
            if not stopping:
                with _context(connection, self._attempt, None) as ctx:
                    if self._attempt.shard is not None:
                        done = self._apply_of_shard(ctx)
                    else:
                        done = self._swap(ctx) if self._is_staged else self._apply(ctx)
        if stopping:
            raise Stopped
        if done is None:
            self.committed += 1
            self._rows += ctx.rows_changed
            publish.progressed(
                self._executor, self._attempt, self.walk.done, self.total, ctx.rows_changed, self._rate
            )
        return done

    def _asked_to_stop(self) -> bool:
        """Open the transaction, and carry out what an operator asked for meanwhile."""
        migration = self._attempt.message.migration_id
        status = self._executor.call(opening_of_batch(self._attempt))
        if self._attempt.shard is not None:
            if status == MigrationStatus.RUNNING:
                return False
            # Asked for, or another shard has failed it: whoever leaves last acts.
            self._executor.call(StopShard(attempt=self._attempt.id))
            return True
        if status not in {MigrationStatus.PAUSING, MigrationStatus.CANCELLING}:
            return False
        return self._executor.call(StopMigration(migration=migration, attempt_becomes="stopped")) is not None

    def _apply(self, ctx: HopContext) -> Done | None:
        hop, walk = self._attempt.hop, self.walk
        failpoints.hit("batch_before_data")
        if self._lacks_digest:
            self._record_digest_before()
        with self._limit.around_code(), _no_ending(self._executor, hop):
            skipped = walk.is_at_start and hop.when is not None and not hop.when(ctx)
            if not skipped:
                walk.advance(ctx)
            ends = walk.is_at_end and self._rebuild is None  # of a rebuild hop, the swap does
            if ends:
                _check(hop, ctx)
            ctx.flush()
        if skipped or ends:
            self._record_digest_after()
        if skipped:
            return Done(0, True, *_commit(self._executor, self._attempt, skipped=True, rows=0))
        rows = ctx.rows_changed
        if ends:
            ended = _commit(self._executor, self._attempt, skipped=False, rows=rows, done=walk.done)
            return Done(self._rows + rows, False, *ended)
        with _own_transaction(self._executor, hop):
            self._rate = self._executor.call(self._saving(rows))
        failpoints.hit("batch_before_commit")
        self._is_staged = walk.is_at_end
        return None

    def _saving(self, rows: int) -> Call[float | None]:
        message, walk = self._attempt.message, self.walk
        if self._rebuild is None:
            return SaveBatch(
                attempt=self._attempt.id,
                migration=message.migration_id,
                to=message.to_version,
                cursor=walk.cursor,
                done=walk.done,
                rows=rows,
                deadline_seconds=settings().deadline_seconds,
            )
        return SaveRebuildBatch(
            attempt=self._attempt.id,
            migration=message.migration_id,
            rebuild=self._rebuild.id,
            cursor=walk.cursor,
            done=walk.done,
            rows=walk.staged,
            ends=walk.is_at_end,
            deadline_seconds=settings().deadline_seconds,
        )

    def _swap(self, ctx: HopContext) -> Done:
        """The last transaction of a rebuild hop: the staged values become the graph's."""
        hop, attempt = self._attempt.hop, self._attempt
        assert self._rebuild is not None  # noqa: S101 - its rows are staged
        rows = _swap(self._executor, attempt, self._rebuild.id)
        with self._limit.around_code(), _no_ending(self._executor, hop):
            _check(hop, ctx)
            ctx.flush()
        self._record_digest_after()
        ended = _commit(self._executor, attempt, skipped=False, rows=rows, done=self.walk.done)
        return Done(rows, False, *ended)

    def _apply_of_shard(self, ctx: HopContext) -> Done | None:
        hop, walk = self._attempt.hop, self.walk
        failpoints.hit("batch_before_data")
        with self._limit.around_code(), _no_ending(self._executor, hop):
            walk.advance(ctx)
            ctx.flush()
        message, rows = self._attempt.message, ctx.rows_changed
        assert message.shard is not None  # noqa: S101 - the caller looked
        save = SaveShardBatch(
            attempt=self._attempt.id,
            migration=message.migration_id,
            graph=self._attempt.graph.id,
            to=message.to_version,
            shard=message.shard,
            cursor=walk.cursor,
            done=walk.done,
            rows=walk.staged if self._attempt.stages else rows,
            ends=walk.is_at_end,
            deadline_seconds=settings().deadline_seconds,
        )
        with _own_transaction(self._executor, hop):
            if walk.is_at_end:
                failpoints.hit("shard_before_commit")
                self._executor.commit_with(save)  # and releases its locks
                return Done(self._rows + rows)
            self._rate = self._executor.call(save)
        failpoints.hit("batch_before_commit")
        return None

    def _record_digest_before(self) -> None:
        """In the transaction of the attempt's first batch: later ones find the graph changed already."""
        attempt = self._attempt
        call = DigestBefore(
            attempt=attempt.id,
            graph=attempt.graph.id,
            to=attempt.message.to_version,
            resumed=not self.walk.is_at_start,
        )
        self._executor.call(RecordDigests(attempt=attempt.id, before=self._executor.call(call)))
        self._lacks_digest = False

    def _record_digest_after(self) -> None:
        if self._attempt.hop.digest:
            after = self._executor.call(GraphDigest(graph=self._attempt.graph.id))
            self._executor.call(RecordDigests(attempt=self._attempt.id, after=after))


def _swap(executor: Executor, attempt: Attempt, rebuild_id: int) -> int:
    """The staged values become the graph's. Returns how many rows that changes."""
    hop = attempt.hop
    failpoints.hit("rebuild_before_swap")
    rows = executor.call(
        SwapRebuild(
            attempt=attempt.id,
            migration=attempt.message.migration_id,
            graph=attempt.graph.id,
            rebuild=rebuild_id,
            undo_seconds=hop.undo_for if hop.direction is Direction.FORWARD else 0,
        )
    )
    failpoints.hit("rebuild_swapped")
    return rows


def _rebuilding(attempt: Attempt) -> OpenRebuild:
    message = attempt.message
    assert attempt.hop.over is not None  # noqa: S101 - a rebuild hop is batched
    return OpenRebuild(
        attempt=attempt.id,
        migration=message.migration_id,
        graph=attempt.graph.id,
        from_=message.from_version,
        to=message.to_version,
        table_name=attempt.hop.over.table,
        fingerprint=attempt.hop.fingerprint,
    )


def _check(hop: DirectedHop, ctx: HopContext) -> None:
    if hop.check is None:
        return
    verdict = hop.check(ctx)
    if verdict is False or isinstance(verdict, str):
        reason = verdict if isinstance(verdict, str) else "it returned False"
        raise CheckFailed(ctx.graph.slug, hop.name, reason)


@contextmanager
def _no_ending(executor: Executor, hop: DirectedHop) -> Iterator[None]:
    """Around the hop's code: what follows from a commit or rollback that was refused is reported as that."""
    try:
        yield
    except Exception as error:
        if executor.ending_was_refused and str(error) != OWN_TRANSACTION:
            raise _ended(hop) from error
        raise


def _ended(hop: DirectedHop) -> RuntimeError:
    return RuntimeError(f"hop {hop.name!r} ended its own transaction; it must neither commit nor roll back")


@contextmanager
def _own_transaction(executor: Executor, hop: DirectedHop) -> Iterator[None]:
    """Wraps what ends a hop's transaction. If it is not the one that was opened for the hop, the hop fails."""
    if executor.transaction_was_ended:
        raise _ended(hop)
    try:
        yield
    except DRIVER_ERRORS as error:
        if sqlstate(error) == ENDED:  # and another one was begun, behind the driver's back
            raise _ended(hop) from None
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
        call = SaveProgress(attempt=attempt.id, done=done, total=total)
        try:
            with engine.connect() as beside, beside.begin():
                beside.exec_driver_sql(call.statement(prepared=False), call.arguments())
        except DRIVER_ERRORS as error:  # "too many clients": no reason to roll the hop back
            _log.warning("the progress of %s was not written: %s", attempt.hop.name, safe_message(error))

    return report
