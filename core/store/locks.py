"""The graph's advisory lock, seen from outside of the protocol's functions."""

from __future__ import annotations

from uuid import UUID

from core.store.executor import Executor
from core.store.failures import sqlstate


def take_lock(executor: Executor, graph_id: UUID, *, seconds: float) -> bool:
    """Wait for a graph's exclusive lock, at session level.

    Returns:
        Whether it was had in time. `Executor.leave` gives it back.
    """
    try:
        executor.call("take_lock", graph_id, int(seconds * 1_000))
    except Exception as error:
        if sqlstate(error) == "55P03":
            return False
        raise
    return True


def lock_holders(executor: Executor, graph: str) -> list[str]:
    """Who holds a graph's lock now, in words: pid, application, since when; or a prepared transaction.

    Args:
        executor: Any session.
        graph: Id or slug.
    """
    return list(executor.call("lock_holders", graph).lock_holders or [])
