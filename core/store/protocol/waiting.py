"""The calls that record what is on its way to a worker; see versions/0004_recovery.sql."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from graph_migrator.core.store.protocol.call import Call


@dataclass(frozen=True, kw_only=True)
class RecordSent(Call[None], function="record_sent"):
    """Record a call that was sent, unless a worker has carried it out already."""

    call: str
    graph: UUID
    target: int | None
    by: str | None


@dataclass(frozen=True, kw_only=True)
class RecordRequeue(Call[None], function="record_requeue"):
    """Record that a worker has requeued a call, why, and for how many seconds at most; None for no limit."""

    call: str
    graph: str
    target: int | None
    by: str | None
    worker: str
    because: str
    most_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class ForgetCalls(Call[None], function="forget_calls"):
    """Remove the calls that are over, and those that no worker has taken for `seconds`."""

    most_seconds: float
