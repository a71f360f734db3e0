"""Calls that no worker has carried out yet: sent by a command, or requeued by a worker that lacks their code."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, text

from graph_migrator.core.inspection.quantities import count, duration

LONG_WAIT: Final = 60.0
"""Seconds after which the broker may have lost the message."""


class WaitingCall(BaseModel):
    """A call of `migrate_graph` that has begun nothing yet."""

    model_config = ConfigDict(frozen=True)

    task_id: str
    graph: str
    target: int | None = Field(description="None for the newest version.")
    requested_by: str | None
    sent_at: datetime
    seconds: float = Field(description="How long it has waited, in seconds.")
    tries: int = Field(description="How often a worker has taken and requeued it.")
    seconds_left: float | None = Field(description="Seconds until it is refused; None for no limit.")
    worker: str | None = Field(description="The worker that requeued it last.")
    because: str | None = Field(description="Why that worker could not carry it out.")

    @property
    def fact(self) -> str:
        """What the call waits for."""
        to = f" to v{self.target}" if self.target is not None else ""
        by = f" by {self.requested_by}" if self.requested_by else ""
        call = f"A call{to}{by} (task {self.task_id})"
        if self.because is None:
            return f"{call} was sent {duration(self.seconds)} ago and waits for a worker with a free slot."
        return (
            f"{call} waits for a worker with the code that it needs; requeued {count(self.tries, 'time')} in "
            f"{duration(self.seconds)}, last by {self.worker}: {self.because}"
        )

    @property
    def way_out(self) -> str | None:
        """What an operator can do about it."""
        if self.because is not None:
            left = self.seconds_left
            refused = f" In {duration(left)} the call is refused; nothing is changed by that." if left else ""
            return f"Finish the deploy.{refused}"
        if self.seconds < LONG_WAIT:
            return None
        return (
            "More workers make it start sooner. If the broker has lost its messages, send it again: "
            f"`graph-migrator migrate {self.graph}`."
        )


def waiting_calls(
    connection: Connection, graph_id: UUID | None = None, *, limit: int = 5
) -> list[WaitingCall]:
    """The oldest calls that wait, of one graph or of all."""
    which = "" if graph_id is None else "AND w.graph_id = :graph"
    parameters = {"graph": graph_id, "limit": limit}
    rows = connection.execute(text(_WAITING.format(which=which)), parameters)
    return [WaitingCall.model_validate(dict(row)) for row in rows.mappings()]


_WAITING = """
SELECT w.task_id, g.slug AS graph, w.target, w.requested_by, w.sent_at, w.tries, w.worker,
       w.because, extract(epoch FROM clock_timestamp() - w.sent_at)::float AS seconds,
       CASE WHEN w.refuse_after IS NOT NULL
            THEN greatest(0, extract(epoch FROM w.refuse_after - clock_timestamp()))::float END AS seconds_left
FROM graph_migrator.waiting_calls w JOIN graph_migrator.graphs g ON g.id = w.graph_id
WHERE NOT EXISTS (SELECT FROM graph_migrator.requests r WHERE r.task_id = w.task_id) {which}
ORDER BY w.sent_at LIMIT :limit
"""
