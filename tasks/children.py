"""How a pool's processes died: what the worker's main process sees, and nobody else can.

A hop whose process dies while its worker lives on is suspected itself; a hop whose whole worker dies is not. So the
main process records what it sees, in a thread of its own. When the whole worker dies, nobody records anything.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakSet

from celery.signals import worker_ready, worker_shutting_down

from graph_migrator.core.store.protocol import ReportDeath
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.tasks.runtime import executors

_log = logging.getLogger("graph_migrator.runtime")
_stop = threading.Event()

LOOK_SECONDS: Final = 0.2
KEEP_SECONDS: Final = 120.0
"""How long a death is remembered while Postgres is out of reach."""
_ORDERLY: Final = frozenset({0, 155})
"""Exit codes of a process that ended by itself between two tasks; billiard's EX_OK and EX_RECYCLE."""


@dataclass(frozen=True)
class Death:
    """A pool's process that ended, and how; `alive`: seconds that it was seen before."""

    pid: int
    how: str
    alive: float
    at: float


class Children:
    """The pool's processes as they were at the last look.

    Args:
        listed: Brings the pool's present processes.
    """

    def __init__(self, listed: Callable[[], Iterable[Any]]) -> None:
        self._listed = listed
        self._since: dict[Any, float] = {}
        """The processes as of the last look, and when each was seen first."""
        self._went_down: deque[Any] = deque()
        self._reported: WeakSet[Any] = WeakSet()
        self._last_look = time.monotonic()

    def went_down(self, process: Any) -> None:
        """A process has left the pool. It may have been forked after the last look, for a message that waited."""
        self._went_down.append(process)

    def deaths(self) -> list[Death]:
        """The processes that died since the last look: by a signal, or with an exit code of their own."""
        now, before = time.monotonic(), self._last_look
        self._last_look = now
        # One that is about to be forked stands in the list without a pid.
        listed = [process for process in self._listed() if process.pid is not None]
        left = {process: since for process, since in self._since.items() if process not in listed}
        while self._went_down:
            left.setdefault(self._went_down.popleft(), before)
        self._since = {process: self._since.get(process, now) for process in listed}
        # The pool may take seconds to notice; until then the process waits there as a zombie.
        zombies = ((process, since, _exit_code(process.pid)) for process, since in self._since.items())
        ended = [(process, since, process.exitcode) for process, since in left.items()]
        ended += [each for each in zombies if each[2] is not None]
        return [
            self._death(process, since, code, now)
            for process, since, code in ended
            if self._is_news(process, code)
        ]

    def _is_news(self, process: Any, exitcode: int | None) -> bool:
        in_order = exitcode in _ORDERLY or getattr(process, "_controlled_termination", False)
        return not in_order and process not in self._reported

    def _death(self, process: Any, since: float, exitcode: int | None, now: float) -> Death:
        self._reported.add(process)
        return Death(process.pid, _in_words(exitcode), now - since, now)


def _exit_code(pid: int) -> int | None:
    """How a child of ours ended, negative for a signal; it is left to be reaped. None while it runs."""
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _in_words(exitcode: int | None) -> str:
    if exitcode is None:
        return "unknown exit code"
    if exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        return f"signal {-exitcode} ({signal.Signals(-exitcode).name})"
    except ValueError:
        return f"signal {-exitcode}"


def _pool_of(consumer: Any) -> Any:
    """The pool of billiard behind a prefork `TaskPool`; other pools have none."""
    return getattr(getattr(consumer, "pool", None), "_pool", None)


def _listed(consumer: Any) -> list[Any]:
    return list(getattr(_pool_of(consumer), "_pool", None) or ())


def _report(worker: str, unreported: list[Death]) -> list[Death]:
    """Record deaths; those that could not be recorded come back."""
    while unreported:
        death = unreported[0]
        try:
            with executors().borrow() as executor:
                call = ReportDeath(worker=worker, pid=death.pid, how=death.how, alive_seconds=death.alive)
                attempt = executor.call(call)
        except Exception as error:  # noqa: BLE001 - Postgres will be back
            _log.warning(
                "how process %d died (%s) was not recorded yet: %s", death.pid, death.how, safe_message(error)
            )
            return [each for each in unreported if time.monotonic() - each.at < KEEP_SECONDS]
        if attempt is not None:
            _log.error("process %d died in hop attempt %d: %s", death.pid, attempt, death.how)
        unreported = unreported[1:]
    return []


def _follow(consumer: Any, children: Children) -> None:
    """Have the pool say which process leaves it. Celery sets its own callback anew with each connection."""
    pool = _pool_of(consumer)
    inner = getattr(pool, "on_process_down", None)
    if inner is None or getattr(inner, "is_ours", False):
        return

    def on_process_down(process: Any) -> None:
        children.went_down(process)
        inner(process)

    on_process_down.is_ours = True  # type: ignore[attr-defined] # a function takes attributes
    pool.on_process_down = on_process_down


def _watch(consumer: Any, children: Children) -> None:
    unreported: list[Death] = []
    while not _stop.wait(LOOK_SECONDS):
        _follow(consumer, children)
        unreported = _report(consumer.hostname, unreported + children.deaths())


@worker_ready.connect
def _start(sender: Any = None, **_: object) -> None:
    _stop.clear()
    if _listed(sender):
        children = Children(lambda: _listed(sender))
        children.deaths()  # the first look: a process may die in the first hop that it takes
        _follow(sender, children)
        threading.Thread(target=_watch, args=[sender, children], name="children", daemon=True).start()


@worker_shutting_down.connect
def _end(**_: object) -> None:
    """From here on the worker ends its processes itself."""
    _stop.set()
