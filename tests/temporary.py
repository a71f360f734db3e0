"""Temporary files in memory, where there is room: a database server begins with a thousand files.

Making these costs ten times as much on a disk, though nobody waits for it to have them. Whoever sets TMPDIR decides.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_MEMORY = Path("/dev/shm")
_GIGABYTE = 1 << 30


def use_memory() -> None:
    """Let this process and those that it starts keep their temporary files in memory."""
    if not os.environ.get("TMPDIR") and _has_room(_MEMORY):
        os.environ["TMPDIR"] = str(_MEMORY)
        tempfile.tempdir = None  # it is asked for again


def _has_room(folder: Path) -> bool:
    if not os.access(folder, os.W_OK):
        return False
    found = os.statvfs(folder)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    can_execute = not found.f_flag & os.ST_NOEXEC  # some tests install programs
    return can_execute and found.f_bavail * found.f_frsize > 4 * _GIGABYTE and memory > 8 * _GIGABYTE
