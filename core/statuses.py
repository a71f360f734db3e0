"""The lifecycle of a migration and of a hop attempt, as data.

Every status that is written to Postgres stands here, with a phrase a person can read, and every edge
between two statuses stands in a table with its reason. The database refuses an edge that is not in
`MIGRATION_EDGES` (trigger ``migrations_follow_their_states``); a test holds the two equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class MigrationStatus(StrEnum):
    """Where a migration stands."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    FAILED = "failed"
    SUCCEEDED = "succeeded"
    RELEASED = "released"

    @property
    def phrase(self) -> str:
        """One sentence for people: what this status means for the graph."""
        return _MIGRATION_PHRASES[self]

    @property
    def is_live(self) -> bool:
        """Whether the migration owns its graph and has not ended."""
        return self in LIVE

    @property
    def is_settled(self) -> bool:
        """Whether the migration has an outcome for its callers."""
        return self in SETTLED


_MIGRATION_PHRASES: Final = {
    MigrationStatus.QUEUED: "waits for a worker to start its first hop",
    MigrationStatus.RUNNING: "a worker is moving the graph, or is about to",
    MigrationStatus.PAUSING: "stops at the next hop or batch boundary",
    MigrationStatus.PAUSED: "stands at a boundary until somebody resumes it",
    MigrationStatus.CANCELLING: "ends at the next hop or batch boundary",
    MigrationStatus.CANCELLED: "ended on request; the graph stays at the version it had reached",
    MigrationStatus.FAILED: "a hop failed; the graph is read-only until a retry or a release",
    MigrationStatus.SUCCEEDED: "the graph is at its target",
    MigrationStatus.RELEASED: "released by an operator; the graph is writable again",
}

LIVE: Final = frozenset(
    {
        MigrationStatus.QUEUED,
        MigrationStatus.RUNNING,
        MigrationStatus.PAUSING,
        MigrationStatus.PAUSED,
        MigrationStatus.CANCELLING,
    }
)
"""Owns its graph and will go on, by itself or when resumed."""

SETTLED: Final = frozenset(MigrationStatus) - LIVE
"""Has an outcome. `FAILED` keeps its claim; the other three have released the graph."""


class AttemptStatus(StrEnum):
    """How one start of one hop went."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    SKIPPED = "skipped"
    FAILED = "failed"
    LOST = "lost"
    STOPPED = "stopped"

    @property
    def phrase(self) -> str:
        """One sentence for people."""
        return _ATTEMPT_PHRASES[self]


_ATTEMPT_PHRASES: Final = {
    AttemptStatus.RUNNING: "a worker is on it",
    AttemptStatus.SUCCEEDED: "its data, its version and this row were committed together",
    AttemptStatus.SKIPPED: "its precondition was false; only the version moved",
    AttemptStatus.FAILED: "it raised; its data was rolled back",
    AttemptStatus.LOST: "its executor was lost; what it had not committed was rolled back",
    AttemptStatus.STOPPED: "it was paused or cancelled between batches, or shared a transaction that was rolled back",
}


def loss_phrase(because: str | None, how: str | None) -> str:
    """How the executor of a lost attempt went, for people: `lost_because` and `lost_how` of its row."""
    rolled_back = "what it had not committed was rolled back"
    match because:
        case "process":
            return f"its process died ({how}) while its worker lived on; {rolled_back}"
        case "session":
            return f"its session in Postgres was ended, {how}; {rolled_back}"
        case "operator":
            return f"terminated by {how}; {rolled_back}"
    return f"its whole worker is gone, or lost its connection; {rolled_back}"


APPLIED: Final = frozenset({AttemptStatus.SUCCEEDED, AttemptStatus.SKIPPED})
"""The hop is done; it is never run again in its migration."""


@dataclass(frozen=True)
class Edge:
    """One permitted change of a migration's status."""

    name: str
    sources: frozenset[MigrationStatus]
    target: MigrationStatus
    reason: str


def _edge(name: str, sources: str, target: str, reason: str) -> Edge:
    return Edge(name, frozenset(map(MigrationStatus, sources.split())), MigrationStatus(target), reason)


MIGRATION_EDGES: Final = (
    _edge("start", "queued", "running", "the first hop opens its attempt under the graph's lock"),
    _edge("ask_pause", "queued running", "pausing", "an operator asks; the executor stops at a boundary"),
    _edge("unpause", "pausing", "running", "resumed before anybody had stopped; the same dispatch goes on"),
    _edge("pause", "pausing", "paused", "a boundary was reached, or nobody executes"),
    _edge("resume", "paused", "running", "resumed; a new dispatch, so that a late old message does nothing"),
    _edge("ask_cancel", "queued running pausing paused", "cancelling", "an operator asks"),
    _edge("cancel", "cancelling", "cancelled", "a boundary was reached and the graph is whole"),
    _edge(
        "partially_migrated", "cancelling", "failed", "cancelled inside a batched hop: the claim must stay"
    ),
    _edge(
        "succeed", "running pausing cancelling", "succeeded", "the last hop commits; it wins over a request"
    ),
    _edge(
        "fail", "queued running pausing cancelling", "failed", "a hop raised, was lost too often, or changed"
    ),
    _edge("retry", "failed", "running", "retried; a new dispatch, planned anew, counters at zero"),
    _edge("release", "failed paused", "released", "the graph is whole and becomes writable again"),
    _edge(
        "force_release",
        "queued running pausing cancelling paused failed",
        "released",
        "released by force; graphs.partially_migrated records a hop that was not finished",
    ),
)
"""Every permitted edge. Whatever is not here is refused, by Python and by Postgres."""

EDGES: Final = {edge.name: edge for edge in MIGRATION_EDGES}

ATTEMPT_EDGES: Final = frozenset(
    (AttemptStatus.RUNNING, status) for status in AttemptStatus if status is not AttemptStatus.RUNNING
)
"""An attempt leaves `running` once; afterwards its row never changes."""


def edge_pairs() -> frozenset[tuple[MigrationStatus, MigrationStatus]]:
    """All permitted (old, new) pairs of migration statuses."""
    return frozenset((source, edge.target) for edge in MIGRATION_EDGES for source in edge.sources)


class ReadOnlyReason(StrEnum):
    """Why a graph refuses writers. Derived from the claim, never stored twice."""

    OWNER = "owner"
    MIGRATING = "migrating"
    ERROR = "error"


class Verb(StrEnum):
    """What a request asks for; recorded so that a message delivered twice acts once."""

    MIGRATE = "migrate"
    RETRY = "retry"
    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    RELEASE = "release"
    LOCK = "lock"
    UNLOCK = "unlock"
    REPAIR = "repair"
    BASELINE = "baseline"
    REPLACE = "replace"
