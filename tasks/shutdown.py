"""Whether this worker has been asked to shut down, as its pool processes see it.

Celery notifies the main process alone; a pool process is left to end its task. One shared byte lets a pack end early.
"""

from __future__ import annotations

from mmap import mmap
from typing import Final

from celery.signals import worker_init, worker_shutting_down

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
