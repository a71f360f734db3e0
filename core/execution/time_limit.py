"""A hop's ``timeout=``."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

from graph_migrator.core.errors import HopTimedOut
from graph_migrator.core.execution.model import Attempt
from graph_migrator.core.settings import settings
from graph_migrator.core.store.errors import DRIVER_ERRORS, sqlstate
from graph_migrator.core.store.protocol import SetTimeout
from graph_migrator.core.store.session import Executor

_QUERY_CANCELED = "57014"


class TimeLimit:
    """A hop's ``timeout=``, or the default of the settings, for all its batches together.

    Postgres ends a statement that takes that long; an alarm ends Python code, where it runs in the main
    thread, as it does in Celery's own pool; and every batch looks at the clock. The alarm is never armed
    while something commits: what is committed is not a failure.
    """

    def __init__(self, executor: Executor, attempt: Attempt, *, code_only: bool = False) -> None:
        """With `code_only`, something else bounds the statements."""
        self._executor = executor
        self._attempt = attempt
        self._code_only = code_only
        own = attempt.hop.timeout
        self._seconds = settings().hop_timeout_seconds if own is None else own
        self._end = time.monotonic() + (self._seconds or 0)

    def __enter__(self) -> Self:
        if self._seconds is not None and not self._code_only:
            self._bound_statements(int(self._seconds * 1_000))
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if self._seconds is None or self._code_only:
            return
        if error is None:
            self._bound_statements(0)
        elif not self._executor.in_callers_transaction and not self._executor.is_closed:
            # In a transaction of the caller's, the rollback to its savepoint does that. What is raised already says
            # more than a call that fails for the same reason.
            with suppress(*DRIVER_ERRORS):
                self._bound_statements(0)
        if isinstance(error, Exception) and sqlstate(error) == _QUERY_CANCELED:
            raise self._exceeded() from error

    @contextmanager
    def around_code(self) -> Iterator[None]:
        """Wraps the hop's own code."""
        if self._seconds is None:
            yield
            return
        left = self._end - time.monotonic()
        if left <= 0:
            raise self._exceeded()
        if threading.current_thread() is not threading.main_thread():
            yield
        else:
            before = signal.signal(signal.SIGALRM, self._expire)
            signal.setitimer(signal.ITIMER_REAL, left)
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
        if time.monotonic() > self._end:
            raise self._exceeded()

    def _bound_statements(self, ms: int) -> None:
        self._executor.call(SetTimeout(ms=ms, callers=self._executor.in_callers_transaction))

    def _expire(self, _number: int, _frame: object) -> None:
        raise self._exceeded()

    def _exceeded(self) -> HopTimedOut:
        return HopTimedOut(self._attempt.graph.slug, self._attempt.hop.name, self._seconds or 0)
