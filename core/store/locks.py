"""The graph's advisory lock, seen from outside of the protocol's functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from graph_migrator.core.store.errors import sqlstate
from graph_migrator.core.store.session import Executor


def take_lock(executor: Executor, graph_id: UUID, *, seconds: float) -> bool:
    """Wait for a graph's exclusive lock, at session level.

    Returns:
        Whether it was had in time. `Executor.release_lock` gives it back.
    """
    try:
        executor.call("take_lock", graph_id, int(seconds * 1_000))
    except Exception as error:
        if sqlstate(error) == "55P03":
            return False
        raise
    return True


@contextmanager
def one_try(executor: Executor) -> Iterator[None]:
    """Around a try to lock that may fail: in a caller's transaction it takes back nothing but itself.

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


def lock_holders(executor: Executor, graph: str) -> list[str]:
    """Who holds a graph's lock now, in words: pid, application, since when; or a prepared transaction.

    Args:
        executor: Any session.
        graph: Id or slug.
    """
    return list(executor.call("lock_holders", graph).lock_holders or [])
