"""What callers learn about a migration."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from graph_migrator.core.errors import MigrationCancelled, MigrationReleased
from graph_migrator.core.recorded_errors import CODE_PREFIX, note_rows, own_error, revive
from graph_migrator.core.statuses import AttemptStatus, MigrationStatus


class HopReport(BaseModel):
    """One hop of a migration, all its attempts taken together."""

    model_config = ConfigDict(frozen=True)

    name: str
    from_version: int
    to_version: int
    status: AttemptStatus = Field(description="Of the latest attempt.")
    attempts: int = Field(description="How often the hop was started, all its shards together.")
    shards: int | None = Field(
        None, description="How many shards of it were started; None where it has none."
    )
    rows_changed: int = Field(description="Rows inserted, updated or deleted by what was committed.")
    seconds: float = Field(description="Time spent in all attempts.")


class MigrationReport(BaseModel):
    """The outcome of a call of `migrate_graph`, and the state of the graph at that moment."""

    model_config = ConfigDict(frozen=True)

    migration_id: UUID | None = Field(description="None where there was nothing to do.")
    graph_id: UUID
    graph: str = Field(description="The graph's slug.")
    graph_type: str
    status: MigrationStatus
    from_version: int
    to_version: int
    version: int | None = Field(description="The graph's version; None where the graph was deleted since.")
    last_applied: str | None = Field(None, description="The last hop that was applied in this migration.")
    hops: tuple[HopReport, ...] = ()
    dispatch: int = Field(
        0, description="How often the chain was numbered; above 1 after a crash or a retry."
    )
    requested_by: str | None = None
    reason: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    error_rows: str | None = Field(
        None, description="The row or batch that the error is about, by ids alone."
    )
    error_args: list[Any] | None = Field(None, exclude=True)
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def changed(self) -> bool:
        """Whether there was anything to do."""
        return self.migration_id is not None

    @property
    def seconds(self) -> float | None:
        """From the call to the end; None while it runs."""
        if self.created_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.created_at).total_seconds()

    def error(self) -> Exception | None:
        """The error that a caller of this settled migration gets; None where it succeeded or still runs."""
        match self.status:
            case MigrationStatus.CANCELLED:
                return MigrationCancelled(self.graph, self.version or self.from_version)
            case MigrationStatus.RELEASED:
                return MigrationReleased(self.graph, self.version or self.from_version)
            case MigrationStatus.FAILED:
                hop = self.hops[-1].name if self.hops else "?"
                return self._noted(self._recorded_error(hop))
        return None

    def _noted(self, error: Exception) -> Exception:
        if self.error_rows is not None:
            note_rows(error, self.error_rows)
        return error

    def _recorded_error(self, hop: str) -> Exception:
        error_type, message = self.error_type or "", self.error_message or ""
        if error_type.startswith(CODE_PREFIX):  # their message follows from their fields
            return own_error(error_type, self.error_args or [])
        return revive(error_type, message, self.error_args, graph=self.graph, hop=hop)
