"""The graph's exclusive lock, as its executor holds it.

Its key is `lock_key` in Postgres (`versions/0002_protocol.sql`). The functions that lock are there, too; `take_lock`,
which waits, is in `0004_recovery.sql`, and a shard's are in `0009_shards.sql`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

from graph_migrator.core.store.errors import DRIVER_ERRORS, sqlstate
from graph_migrator.core.store.protocol import Call, ReleaseLock, ReleaseShardLock, TakeLock, TakeShardLock
from graph_migrator.core.store.session import Executor


class GraphLock:
    """A graph's lock that this session has taken: released at the end of the ``with`` block, whatever happened.

    In a transaction of the caller's the lock falls with that transaction, and nothing is released here.
    """

    def __init__(
        self, executor: Executor, graph_id: UUID | None, *, held: bool = True, stamp: bool = False
    ) -> None:
        """Args describe what a function of the protocol has done already.

        Args:
            executor: The session.
            graph_id: The graph; None where nothing was found to lock.
            held: Whether the lock was taken.
            stamp: Date the change that was committed under it.
        """
        self._executor = executor
        self._graph_id = graph_id
        self._held = held and not executor.in_callers_transaction
        self._stamp = stamp

    def mark_released(self) -> None:
        """A commit has released it, in the same message."""
        self._held = False

    def _release(self) -> Call[Any]:
        assert self._graph_id is not None  # noqa: S101 - it was looked at before
        return ReleaseLock(graph=self._graph_id, stamp=self._stamp)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if not self._held or self._graph_id is None or self._executor.is_closed:
            return
        release = self._release()
        if error is None:
            self._executor.call_and_reset(release)
            return
        # What is raised already says more than a release that fails for the same reason.
        with suppress(*DRIVER_ERRORS):
            self._executor.call_and_reset(release)
            return
        self._executor.close()


class ShardLock(GraphLock):
    """The locks of a shard's executor: its graph's, shared, and the shard's own."""

    def _release(self) -> Call[Any]:
        return ReleaseShardLock()


@contextmanager
def shard_taken(
    executor: Executor, graph_id: UUID, migration_id: UUID, to_version: int, shard: int, *, seconds: float
) -> Iterator[GraphLock | None]:
    """Wait for the locks of a shard's executor; yields None where that takes too long."""
    call = TakeShardLock(
        graph=graph_id, migration=migration_id, to=to_version, shard=shard, wait_ms=int(seconds * 1_000)
    )
    held = _take(executor, call)
    with ShardLock(executor, graph_id, held=True) as lock:  # it may have one of the two
        yield lock if held else None


def _take(executor: Executor, call: Call[None]) -> bool:
    try:
        executor.call(call)
    except DRIVER_ERRORS as error:
        if sqlstate(error) != "55P03":
            raise
        return False
    return True


@contextmanager
def hold_graph_lock(
    executor: Executor, graph_id: UUID, *, seconds: float, stamp: bool = False
) -> Iterator[GraphLock | None]:
    """Wait for a graph's exclusive lock, at session level; yields None where that takes too long.

    Args:
        executor: A session of our own.
        graph_id: The graph.
        seconds: How long to wait.
        stamp: Date the change that was committed under the lock, when it is released.
    """
    held, wait = False, Wait(seconds)
    while not held:
        held = _take(executor, TakeLock(graph=graph_id, wait_ms=wait.piece_ms()))
        if held or wait.is_over():
            break
        wait.let_writers_pass()
    with GraphLock(executor, graph_id, held=held, stamp=stamp) as lock:
        yield lock if held else None


LONGEST_PIECE: Final = 2.0
"""Seconds that an exclusive lock waits in a row: meanwhile no new writer gets in."""


class Wait:
    """A wait for an exclusive lock, cut into pieces, since a queued exclusive lock keeps new writers out.

    Nothing else of a wait depends on real time, so that the simulation can put another one in its place.
    """

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def piece_ms(self) -> int:
        """How long the next try may last, in milliseconds."""
        return max(1, int(min(LONGEST_PIECE, self._deadline - time.monotonic()) * 1_000))

    def is_over(self) -> bool:
        """Whether there is no next try."""
        return time.monotonic() >= self._deadline

    def let_writers_pass(self) -> None:
        """Sleep 10 to 50 ms between two tries, so that writers who wait for the lock get it."""
        time.sleep(random.uniform(0.01, 0.05))  # noqa: S311 - jitter


@contextmanager
def one_try(executor: Executor) -> Iterator[None]:
    """Wraps a try to lock that may fail: in a caller's transaction it rolls back nothing but itself.

    The caller's `lock_timeout` is left as it was.
    """
    if not executor.in_callers_transaction:
        yield
        return
    with executor.connection.begin_nested(), executor.cursor() as cursor:
        cursor.execute("SELECT current_setting('lock_timeout')")
        (theirs,) = cursor.fetchone()
        yield
        cursor.execute("SELECT set_config('lock_timeout', %s, true)", (theirs,))
