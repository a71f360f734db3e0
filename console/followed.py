"""What the stream says: the state at the beginning, and each change, for operators and for end users."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, text

from graph_migrator.core.events.tail import Change
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection import overview
from graph_migrator.core.inspection.graph_state import graph_state
from graph_migrator.core.inspection.running import RUNNING_HOP
from graph_migrator.core.rollouts import inspection as rollouts
from graph_migrator.core.rollouts.statuses import LIVE as LIVE_ROLLOUTS
from graph_migrator.core.rollouts.statuses import RolloutStatus
from graph_migrator.core.rollouts.troubles import troubles as rollout_troubles
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.core.store.session import Executor


class View(StrEnum):
    """For whom a stream is."""

    OPERATOR = "operator"
    USER = "user"


@dataclass(frozen=True)
class Topic:
    """What a client follows: everything, one graph or one rollout."""

    graph: UUID | None = None
    rollout: UUID | None = None
    view: View = View.OPERATOR

    def has(self, change: Change) -> bool:
        """Whether a change is about it."""
        if self.graph is not None:
            return change.graph_id == self.graph
        return self.rollout is None or change.rollout_id == self.rollout


class Progress(BaseModel):
    """What an end user sees: no message, no name and no number of the graph's data."""

    model_config = ConfigDict(frozen=True)

    state: str = Field(description="idle, waiting, working, paused, done or failed.")
    fraction: float = Field(
        description="From 0 to 1: hops that are applied, and the part of the one that runs."
    )
    sentence: str


_SENTENCES: Final = {
    "idle": "Nothing is being updated.",
    "waiting": "The update waits for its turn.",
    "working": "Your data is being updated. You can read it; changes are possible again when this is done.",
    "paused": "The update is paused.",
    "done": "The update is done.",
    "failed": "The update could not be finished. Nothing is lost, and the operators know.",
}
_STATES: Final = {
    MigrationStatus.QUEUED: "waiting",
    MigrationStatus.RUNNING: "working",
    MigrationStatus.PAUSING: "working",
    MigrationStatus.CANCELLING: "working",
    MigrationStatus.PAUSED: "paused",
    MigrationStatus.FAILED: "failed",
}

_PROGRESS = text(f"""
SELECT m.status, m.from_version, m.to_version, g.version, a.done, a.total, g.migration_id IS NOT NULL AS owned
FROM graph_migrator.graphs g
LEFT JOIN LATERAL (SELECT * FROM graph_migrator.migrations m WHERE m.graph_id = g.id
                   ORDER BY (m.id = g.migration_id) DESC NULLS LAST, m.created_at DESC LIMIT 1) m ON true
{RUNNING_HOP}
WHERE g.id = :graph
""")  # noqa: S608 - own text


def progress(connection: Connection, graph: UUID) -> Progress:
    """How far a graph's migration is, for an end user. Of a deleted graph: idle."""
    row = connection.execute(_PROGRESS, {"graph": graph}).one_or_none()
    if row is None or row.status is None:
        return Progress(state="idle", fraction=0, sentence=_SENTENCES["idle"])
    state = _STATES.get(MigrationStatus(row.status), "done" if row.version == row.to_version else "idle")
    hops = abs(row.to_version - row.from_version) or 1
    applied = abs(row.version - row.from_version)
    part = min(row.done / row.total, 1) if row.total else 0
    fraction = 1.0 if state == "done" else min((applied + part) / hops, 1)
    return Progress(state=state, fraction=round(fraction, 4), sentence=_SENTENCES[state])


def snapshot(connection: Connection, topic: Topic) -> dict[str, Any]:
    """The state as the open transaction sees it.

    Raises:
        UnknownGraph, UnknownRollout: What is to be followed is not there.
    """
    if topic.graph is not None:
        state = graph_state(connection, str(topic.graph), count_rows=False)  # also says that it is there
        if topic.view is View.USER:
            return progress(connection, topic.graph).model_dump(mode="json")
        return state.model_dump(mode="json")
    if topic.rollout is not None:
        found = rollouts.show(Executor.within(connection), str(topic.rollout))
        return found.model_dump(mode="json")
    wrong = [
        *overview.troubles(connection, graph_types()),
        *rollout_troubles(Executor.within(connection)),
    ]
    return {
        "troubles": [each.model_dump(mode="json") for each in overview.oldest_first(wrong)],
        "moving": [each.model_dump(mode="json") for each in overview.moving(connection)],
    }


def has_ended(connection: Connection, topic: Topic) -> bool:
    """Whether nothing more will come of it by itself. What has failed may be retried, and is followed on."""
    if topic.graph is not None:
        row = connection.execute(_PROGRESS, {"graph": topic.graph}).one_or_none()
        return row is None or not row.owned
    if topic.rollout is not None:
        status = connection.execute(
            text("SELECT status FROM graph_migrator.rollouts WHERE id = :id"), {"id": topic.rollout}
        ).scalar_one_or_none()
        return status is None or RolloutStatus(status) not in LIVE_ROLLOUTS
    return False


def events(connection: Connection, topic: Topic, changes: list[Change]) -> list[tuple[str, dict[str, Any]]]:
    """The changes as (event, data); for an end user one progress in their place."""
    mine = [change for change in changes if topic.has(change)]
    if topic.view is View.USER:
        assert topic.graph is not None  # noqa: S101 - an end user follows a graph
        return [("progress", progress(connection, topic.graph).model_dump(mode="json"))] if mine else []
    return [(change.kind, change.model_dump(mode="json")) for change in mine]
