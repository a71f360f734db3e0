"""Named places at which a test stops this process: to kill it there, or to take something from it.

`hit` does nothing unless a test has set a hook in this process, or ``GRAPH_MIGRATOR_TEST_HOLD`` named a
folder when the process started. In that folder a file ``armed`` that says ``hop_committed`` (or
``hop_committed:2``, for the second time) holds the first process that gets there: the file becomes
``held.PID``, and the process waits until that is gone. So the test kills exactly at the point, and can
choose what: the process, its whole group, its session in Postgres, the broker. A point fires once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

POINTS: Final = (
    "begin_locked",
    "begin_before_commit",
    "begin_committed",
    "begin_dispatched",
    "hop_locked",
    "hop_opened",
    "hop_before_data",
    "hop_in_data",
    "hop_after_data",
    "hop_before_commit",
    "hop_committed",
    "hop_left",
    "hop_published",
    "hop_result_stored",
    "batch_before_data",
    "batch_before_commit",
    "batch_committed",
    "shards_cut",
    "shards_chosen",
    "shards_sent",
    "shard_locked",
    "shard_opened",
    "shard_before_commit",
    "shard_committed",
    "shard_left",
    "rebuild_before_swap",
    "rebuild_swapped",
    "undo_before_data",
    "fail_before_commit",
    "fail_committed",
    "recovery_decided",
    "recovery_committed",
)
"""Every point, in the order in which a migration passes them."""

hook: Callable[[str], None] | None = None
"""Set by the simulation; called at every point."""

hold_folder: Final = os.environ.get("GRAPH_MIGRATOR_TEST_HOLD")
"""Where tests say which point holds a process; None everywhere but in a test's worker."""


def hit(point: str) -> None:
    """Pass a failpoint."""
    if hook is not None:
        hook(point)
    if hold_folder is not None:
        _hold(Path(hold_folder), point)


def _hold(folder: Path, point: str) -> None:
    armed, mine, held = folder / "armed", folder / f"taken.{os.getpid()}", folder / f"held.{os.getpid()}"
    try:
        wanted, _, nth = armed.read_text().partition(":")
        if wanted != point:
            return
        armed.rename(mine)  # of all processes at this point, one succeeds
    except FileNotFoundError:
        return
    if nth and int(nth) > 1:
        mine.write_text(f"{wanted}:{int(nth) - 1}")
        mine.rename(armed)
        return
    mine.rename(held)
    while held.exists():
        time.sleep(0.005)
