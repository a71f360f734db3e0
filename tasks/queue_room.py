"""How many messages recovery may send again, by what the queue holds already."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from graph_migrator.core.store.redaction import safe_message
from graph_migrator.tasks.fleet import queue_length

_log = logging.getLogger("graph_migrator.recovery")

FULL = 2_000
"""This many waiting messages keep every worker busy until the next look: one more would only wait behind them."""
AT_LEAST = 10
"""May be sent at each look into a full queue as well, the most overdue first: a queue that never empties must not
keep a lost message from being found."""
LOOK_SECONDS = 1.0


def room(queued: int | None) -> int:
    """How many overdue migrations may be redelivered until the next look.

    A million waiting migrations are a million messages in the queue, or, where the broker was wiped, none. In the first
    case sending them again only makes the queue longer; in the second the queue is filled up to `FULL` at each look.

    Args:
        queued: How many messages wait in the queue; None where the broker does not say.
    """
    return max(AT_LEAST, FULL - (0 if queued is None else queued))


class QueueRoom:
    """Asks the broker at most once in `LOOK_SECONDS`, and counts what was sent since."""

    def __init__(self, length: Callable[[], int | None] = queue_length) -> None:
        self._length = length
        self.queued: int | None = None
        """How many messages waited at the last look; None where the broker did not say."""
        self._looked = float("-inf")
        self._left = 0

    def left(self) -> int:
        """How many may be sent now."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._left = room(self._ask())
            self._looked = time.monotonic()
        return self._left

    def sent(self, count: int) -> None:
        """Count messages that were sent."""
        self._left = max(0, self._left - count)

    def _ask(self) -> int | None:
        try:
            self.queued = self._length()
            return self.queued
        except Exception as error:  # noqa: BLE001 - whatever the broker's driver raises: it did not say
            self.queued = None
            _log.debug("the queue's length is not known: %s: %s", type(error).__name__, safe_message(error))
            return FULL  # the broker is away: what is sent now waits for it, so little is
