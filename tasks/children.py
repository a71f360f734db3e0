"""How a pool's processes died: what the worker's main process sees, and nobody else can.

A hop whose process dies while its worker lives on is suspected itself; one whose whole worker goes is not. So the main
process records what it sees, in a thread of its own. Of a whole worker that goes, nobody records anything.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

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
        self._seen: dict[int, tuple[Any, float]] = {}

    def deaths(self) -> list[Death]:
        """The processes that died since the last look: by a signal, or with an exit code of their own."""
        now = time.monotonic()
        present = {process.pid: process for process in self._listed()}
        gone = {pid: seen for pid, seen in self._seen.items() if present.get(pid) is not seen[0]}
        self._seen = {
            pid: self._seen[pid] if pid in self._seen and pid not in gone else (process, now)
            for pid, process in present.items()
        }
        return [
            Death(pid, _in_words(process.exitcode), now - since, now)
            for pid, (process, since) in gone.items()
            if process.exitcode not in _ORDERLY and not getattr(process, "_controlled_termination", False)
        ]


def _in_words(exitcode: int | None) -> str:
    if exitcode is None:
        return "unknown exit code"
    if exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        return f"signal {-exitcode} ({signal.Signals(-exitcode).name})"
    except ValueError:
        return f"signal {-exitcode}"


def _listed(consumer: Any) -> list[Any]:
    """The processes of a prefork `TaskPool`; other pools have none."""
    pool = getattr(getattr(consumer, "pool", None), "_pool", None)
    return list(getattr(pool, "_pool", None) or ())


def _report(worker: str, unreported: list[Death]) -> list[Death]:
    """Record deaths; those that could not be recorded come back."""
    while unreported:
        death = unreported[0]
        try:
            with executors().borrow() as executor:
                call = ReportDeath(worker=worker, pid=death.pid, how=death.how, alive=death.alive)
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


def _watch(consumer: Any) -> None:
    children = Children(lambda: _listed(consumer))
    unreported: list[Death] = []
    while not _stop.wait(LOOK_SECONDS):
        unreported = _report(consumer.hostname, unreported + children.deaths())


@worker_ready.connect
def _start(sender: Any = None, **_: object) -> None:
    _stop.clear()
    if _listed(sender):
        threading.Thread(target=_watch, args=[sender], name="children", daemon=True).start()


@worker_shutting_down.connect
def _end(**_: object) -> None:
    """From here on the worker ends its processes itself."""
    _stop.set()
