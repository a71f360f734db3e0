"""Finding the row at which a batched hop failed.

A batch holds thousands of rows, and an error rarely says which of them it is about. After the rollback the hop runs
again on halves of the batch, each time in a transaction that is rolled back, until one row is left.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection

from graph_migrator.core.errors import HopTimedOut, InvalidGraphData
from graph_migrator.core.execution.model import Attempt
from graph_migrator.core.graph_types.context import HopContext
from graph_migrator.core.recorded_errors import note_rows
from graph_migrator.core.store.batches import FailedBatch, failed_batch
from graph_migrator.core.store.errors import Failure, classify, sqlstate
from graph_migrator.core.store.keyset import Key
from graph_migrator.core.store.protocol import (
    Call,
    OpenBatch,
    OpenRebuildBatch,
    OpenRebuildShardBatch,
    OpenShardBatch,
)
from graph_migrator.core.store.session import Executor

SEARCH_SECONDS: Final = 10.0
"""Seconds that a search may take; then the error names the rows that are left."""


class _Passed(Exception):
    """The rows raised nothing; the transaction is rolled back all the same. `last` is the key of the last row."""

    def __init__(self, rows: int, last: Key | None) -> None:
        super().__init__(rows, last)
        self.rows, self.last = rows, last


@contextmanager
def locating(executor: Executor, attempt: Attempt) -> Iterator[None]:
    """Wraps a hop: notes on an error which row it is about, or which batch."""
    try:
        yield
    except Exception as error:
        batch = failed_batch(error)
        if batch is not None:
            note_rows(
                error,
                _find(executor, attempt, batch) if _is_of_a_row(executor, attempt, error) else str(batch),
            )
        raise


def _is_of_a_row(executor: Executor, attempt: Attempt, error: Exception) -> bool:
    """Whether another run can show the same error. A caller's transaction cannot be rolled back for that."""
    return (
        classify(error) is Failure.PERMANENT
        and not isinstance(error, (HopTimedOut, InvalidGraphData, *attempt.hop.retry_on))
        and sqlstate(error) != "57014"  # query_canceled
        and not executor.in_callers_transaction
        and not executor.is_closed
    )


def _find(executor: Executor, attempt: Attempt, batch: FailedBatch) -> str:
    walk, after, size = batch.walk, batch.after, batch.size
    end = time.monotonic() + SEARCH_SECONDS
    while size > 1 and time.monotonic() < end:
        half = size // 2
        passed = _try(executor, attempt, batch, after, half)
        if passed is None:
            size = half
        elif passed.rows < half:  # no row of the batch fails when it is run without the others
            return str(batch)
        else:
            after, size = passed.last, size - half
        if executor.is_closed:
            return str(batch)
    if size > 1:
        return walk.describe(after, size)
    return _name(executor, attempt, batch, after)


def opening_of_batch(attempt: Attempt) -> Call[str]:
    """The call that opens a batch's transaction with its fences, and returns the migration's status."""
    kinds: tuple[type[OpenBatch], type[OpenBatch]] = (
        (OpenRebuildBatch, OpenRebuildShardBatch) if attempt.stages else (OpenBatch, OpenShardBatch)
    )
    return kinds[attempt.shard is not None](
        attempt=attempt.id, migration=attempt.message.migration_id, graph=attempt.graph.id
    )


def _context(attempt: Attempt, connection: Connection) -> HopContext:
    return HopContext(
        connection,
        attempt.graph,
        hop=attempt.hop.name,
        from_version=attempt.message.from_version,
        to_version=attempt.message.to_version,
        attempt=attempt.number,
    )


def _name(executor: Executor, attempt: Attempt, batch: FailedBatch, after: Key | None) -> str:
    if _try(executor, attempt, batch, after, 1) is not None:  # it fails only together with other rows
        return str(batch)
    with executor.transaction() as connection:
        key = batch.walk.key_after(_context(attempt, connection), after)
    return batch.walk.describe_row(key) if key is not None else str(batch)


def _try(
    executor: Executor, attempt: Attempt, batch: FailedBatch, after: Key | None, size: int
) -> _Passed | None:
    """Run the hop on some rows, and roll back. None: they raised."""
    try:
        with executor.transaction() as connection:
            executor.call(opening_of_batch(attempt))
            ctx = _context(attempt, connection)
            try:
                taken = batch.walk.take(ctx, after, size)
            finally:
                ctx.close()
            raise _Passed(taken.rows, taken.last)
    except _Passed as passed:
        return passed
    except Exception:  # noqa: BLE001 - whatever it raises, it is about these rows
        return None
