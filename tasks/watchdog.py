"""A thread of each pool process that looks after the hop which the process runs.

It warns of a hop that runs no statement. And it ends the process where the hop is not its own any more: after
``release --terminate``, or when its session was ended, an endless loop would keep the pool's slot for ever.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from typing import Final

from billiard.process import current_process
from celery.signals import worker_process_init

from graph_migrator.core.events import publish
from graph_migrator.core.execution import watch
from graph_migrator.core.execution.watch import Watched
from graph_migrator.core.settings import settings
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.tasks.runtime import engine

_log = logging.getLogger("graph_migrator.runtime")

EXIT_CODE: Final = 75
"""EX_TEMPFAIL: Celery requeues the message, and whoever takes it finds that there is nothing left to do."""


class Watchdog:
    """What was seen of the hop that this process is at."""

    def __init__(self) -> None:
        self._strange: Watched | None = None
        self._warned: Watched | None = None

    def look(self) -> Watched | None:
        """Look once.

        Returns:
            A hop that was not this process's own twice in a row: its code has had the time to find that out itself.
        """
        found = watch.current(longer_than=settings().watch_seconds)
        if found is None:
            return None
        seen = watch.look(engine(), found)
        if not seen.is_own:
            again, self._strange = self._strange is found, found
            return found if again else None
        self._strange = None
        if seen.quiet > settings().quiet_seconds and self._warned is not found:
            self._warned = found
            publish.quiet(found.attempt, seen.quiet)
        return None


def _watch() -> None:
    watchdog = Watchdog()
    while True:
        time.sleep(settings().watch_seconds)
        try:
            orphan = watchdog.look()
        except Exception as error:  # noqa: BLE001 - Postgres will be back
            _log.warning("the hop of this process was not looked at: %s", safe_message(error))
            continue
        if orphan is not None and watch.current(longer_than=0) is orphan:
            _end_this_process(orphan)


def _end_this_process(orphan: Watched) -> None:
    frame = sys._current_frames().get(orphan.thread)
    where = "".join(traceback.format_stack(frame)[-6:]) if frame is not None else ""
    _log.error(
        "hop %r of %s (attempt %d) is not this process's any more, and its code runs on; process %d ends here:\n%s",
        orphan.attempt.hop.name,
        orphan.attempt.graph.slug,
        orphan.attempt.id,
        os.getpid(),
        where,
    )
    try:
        watch.explain(engine(), orphan, "its code ran on, so its process was ended")
    finally:
        os._exit(EXIT_CODE)


@worker_process_init.connect
def _start(**_: object) -> None:
    # Without a pool of processes this is the worker itself, which does not end for one hop.
    if current_process().name != "MainProcess":
        threading.Thread(target=_watch, name="watchdog", daemon=True).start()
