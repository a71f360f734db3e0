"""What has changed since a moment, without a gap: for streams of changes.

Numbers and times of rows come in another order than their commits, so neither can say where a reader stands. A
snapshot can: a position is the text of one (``xmin:xmax:xip,…``), and what comes next is every change that this
snapshot does not see and the reader's own does. A long transaction elsewhere delays nobody.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, text

MAX_CHANGES: Final = 5_000
"""Changes that one look brings at most. Who is further behind begins with the state as it is now."""
KEEP_SECONDS: Final = 3_600.0
"""How long changes are kept, and how long they are recorded after the last follower was there."""

_FORM: Final = re.compile(r"(\d{1,19}):(\d{1,19}):((?:\d{1,19}(?:,\d{1,19})*)?)")


class Change(BaseModel):
    """A change of a migration, of an attempt or of a rollout."""

    model_config = ConfigDict(frozen=True)

    id: int
    kind: str
    graph_id: UUID | None
    migration_id: UUID | None
    rollout_id: UUID | None
    change: dict[str, Any]
    at: datetime


@dataclass(frozen=True)
class Position:
    """Where a reader stands: it has every change that this snapshot sees."""

    xmin: int
    xmax: int
    open: tuple[int, ...]

    @classmethod
    def parse(cls, value: str) -> Self | None:
        """A position from its text; None where it is none."""
        found = _FORM.fullmatch(value) if len(value) <= 20_000 else None
        if found is None:
            return None
        open_ = tuple(map(int, found[3].split(","))) if found[3] else ()
        return cls(int(found[1]), int(found[2]), open_)

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.open))}"


def follow(connection: Connection, *, seconds: float = KEEP_SECONDS) -> bool:
    """Say that somebody follows. Changes are recorded for `seconds` more, and old ones removed.

    Returns:
        Whether changes were recorded until now.
    """
    return bool(
        connection.execute(
            text("SELECT graph_migrator.follow_changes(:seconds, :keep)"),
            {"seconds": seconds, "keep": KEEP_SECONDS},
        ).scalar_one()
    )


def position(connection: Connection) -> Position:
    """Where the open transaction stands; it is to be REPEATABLE READ."""
    found = Position.parse(connection.execute(text("SELECT pg_current_snapshot()::text")).scalar_one())
    assert found is not None  # noqa: S101 - Postgres's own form
    return found


def is_known(connection: Connection, since: Position) -> bool:
    """Whether every change after a position is still there, and the position is of this database."""
    row = connection.execute(
        text(
            "SELECT f.removed_up_to, pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xmax "
            "FROM graph_migrator.change_followers f"
        )
    ).one()
    return bool(row.removed_up_to < since.xmin <= since.xmax <= row.xmax)


def changes_since(connection: Connection, since: Position) -> list[Change] | None:
    """Every change that the open transaction sees and the position does not.

    Returns:
        The changes in the order in which they were made; None where there are more than `MAX_CHANGES`.
    """
    rows = connection.execute(
        text(
            "SELECT e.id, e.kind, e.graph_id, e.migration_id, e.rollout_id, e.change, e.at FROM ("
            "(SELECT * FROM graph_migrator.change_events WHERE xid >= :xmax ORDER BY xid LIMIT :most) UNION ALL "
            "(SELECT * FROM graph_migrator.change_events WHERE xid = ANY (:open) LIMIT :most)) e ORDER BY e.id"
        ),
        {"xmax": since.xmax, "open": list(since.open), "most": MAX_CHANGES + 1},
    ).mappings()
    found = [Change.model_validate(dict(row)) for row in rows]
    return found if len(found) <= MAX_CHANGES else None
