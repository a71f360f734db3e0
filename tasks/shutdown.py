"""How this worker shuts down: whether it has been asked to, as its pool processes see it, and a hop that it must leave.

Celery notifies the main process alone; a pool process is left to end its task. One shared byte lets a pack end early.
"""

from __future__ import annotations

from mmap import mmap
from typing import Any, Final, NoReturn

from celery.concurrency import solo
from celery.concurrency.base import BasePool
from celery.exceptions import WorkerTerminate
from celery.platforms import EX_FAILURE
from celery.signals import worker_init, worker_ready, worker_shutting_down

_ASKED: Final = mmap(-1, 1)
"""Anonymous and shared: whatever is forked from this process sees the same byte."""


def is_asked() -> bool:
    """Whether the worker is to end."""
    return _ASKED[0] == 1


@worker_init.connect
def _begin(**_: object) -> None:
    _ASKED[0] = 0


@worker_shutting_down.connect
def _ask(**_: object) -> None:
    _ASKED[0] = 1


@worker_ready.connect
def _can_leave_a_hop(sender: Any, **_: object) -> None:
    """Prepare a cold shutdown for a pool that has no process to end.

    Celery raises `NotImplementedError` there. In a solo worker its signal handler runs within the hop's own code, which
    would fail with that; and while it waits for a soft shutdown, the hop stands still.
    """
    pool = sender.pool
    if getattr(pool.terminate_job, "__func__", None) is not BasePool.terminate_job:
        return
    if isinstance(pool, solo.TaskPool):
        sender.controller.wait_for_soft_shutdown = lambda: None
        pool.terminate_job = _leave
    else:  # the worker ends when its threads have ended their hops
        pool.terminate_job = lambda pid, signal=None: None


def _leave(pid: int, signal: int | None = None) -> NoReturn:
    """No hop catches this: it is rolled back, its message goes to another worker, and this one ends."""
    raise WorkerTerminate(EX_FAILURE)
