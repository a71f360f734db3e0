"""Waiting for a condition, with a deadline; never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def until(condition: Callable[[], _T], what: str, *, seconds: float = 30, pause: float = 0.02) -> _T:
    """Ask again and again until the answer is true, and return it.

    Raises:
        AssertionError: It was not in time; names `what` and the last answer.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s; last seen: {answer!r}")
        time.sleep(pause)
