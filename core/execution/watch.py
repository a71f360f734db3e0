"""Lets a watchdog thread see which hop this process runs, whether the process still owns it, and whether it moves.

Python code that runs no statement does not notice that its session was ended, nor that an operator gave its graph to
somebody else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine, text

from graph_migrator.core.execution.model import Attempt
from graph_migrator.core.store.session import Executor

_LOOK: Final = text("""
SELECT a.status = 'running' AND s.pid IS NOT NULL AS is_own,
       CASE WHEN s.state LIKE 'idle%' THEN extract(epoch FROM clock_timestamp() - s.state_change)::float ELSE 0 END
           AS quiet
FROM graph_migrator.hop_attempts a LEFT JOIN pg_stat_activity s ON s.pid = :backend
WHERE a.id = :attempt
""")
_EXPLAIN: Final = text("SELECT graph_migrator.explain_loss(:attempt, :how)")


@dataclass(frozen=True, eq=False)
class Watched:
    """An attempt that a thread of this process executes, and the session that it has."""

    attempt: Attempt
    backend: int
    thread: int


_current: Watched | None = None


@contextmanager
def watched(executor: Executor, attempt: Attempt) -> Iterator[None]:
    """Around applying a hop."""
    global _current
    _current = Watched(attempt, executor.backend_pid, threading.get_ident())
    try:
        yield
    finally:
        _current = None


def current(*, longer_than: float) -> Watched | None:
    """The hop that this process has run for more than `longer_than` seconds; None where there is none."""
    found = _current
    return found if found is not None and time.monotonic() - found.attempt.began > longer_than else None


@dataclass(frozen=True)
class Look:
    """What was found: whether the attempt can still be committed, and seconds without a statement."""

    is_own: bool
    quiet: float


def look(engine: Engine, found: Watched) -> Look:
    """Ask Postgres, over a connection of its own."""
    with engine.connect() as connection:
        row = connection.execute(_LOOK, {"attempt": found.attempt.id, "backend": found.backend}).one()
    return Look(bool(row.is_own), float(row.quiet or 0.0))


def explain(engine: Engine, found: Watched, how: str) -> None:
    """Record that the attempt's session was ended while its process lived on, unless the row says how it went."""
    with engine.begin() as connection:
        connection.execute(_EXPLAIN, {"attempt": found.attempt.id, "how": how})
