"""The lifecycle of a rollout and of its members, as data: each edge stands in a table with its reason.

Postgres refuses every change of a status that is not in these tables (revision 0005); a test holds the two equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, TypeVar


class RolloutStatus(StrEnum):
    """Where a rollout stands."""

    RUNNING = "running"
    HELD = "held"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"
    FINISHED_WITH_FAILURES = "finished_with_failures"

    @property
    def phrase(self) -> str:
        """One sentence for people."""
        return _ROLLOUT_PHRASES[self]


_ROLLOUT_PHRASES: Final = {
    RolloutStatus.RUNNING: "the controller dispatches graphs, or waits for a bake",
    RolloutStatus.HELD: "nothing is dispatched until the reason is gone or an operator resumes it",
    RolloutStatus.CANCELLING: "nothing more is dispatched; graphs in flight end their migration",
    RolloutStatus.CANCELLED: "ended on request; graphs that were not dispatched are as they were",
    RolloutStatus.SUCCEEDED: "every graph is at the target, or was skipped with a reason",
    RolloutStatus.FINISHED_WITH_FAILURES: "ended; some graphs failed and can be retried",
}

LIVE: Final = frozenset({RolloutStatus.RUNNING, RolloutStatus.HELD, RolloutStatus.CANCELLING})
"""The controller processes it. A graph type has at most one of these."""


class MemberStatus(StrEnum):
    """How one graph of a rollout went."""

    PENDING = "pending"
    DISPATCHED = "dispatched"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"

    @property
    def phrase(self) -> str:
        """One sentence for people."""
        return _MEMBER_PHRASES[self]


_MEMBER_PHRASES: Final = {
    MemberStatus.PENDING: "waits for its stage and for a free place",
    MemberStatus.DISPATCHED: "its migration was sent and has not ended",
    MemberStatus.SUCCEEDED: "the graph is at the target",
    MemberStatus.FAILED: "its migration failed; see its error group",
    MemberStatus.SKIPPED: "the rollout leaves it as it is; its note says why",
}

UNSETTLED: Final = frozenset({MemberStatus.PENDING, MemberStatus.DISPATCHED})
"""A graph is unsettled in at most one rollout."""


class PackStatus(StrEnum):
    """Where a pack stands: some small graphs that one task moves."""

    SENT = "sent"
    RUNNING = "running"
    LEFT = "left"
    CLOSED = "closed"

    @property
    def phrase(self) -> str:
        """One sentence for people."""
        return _PACK_PHRASES[self]


_PACK_PHRASES: Final = {
    PackStatus.SENT: "waits for a worker",
    PackStatus.RUNNING: "a worker moves its graphs",
    PackStatus.LEFT: "its worker has ended it; the controller takes its outcome in",
    PackStatus.CLOSED: "over; what it did not begin went back",
}

OPEN_PACKS: Final = frozenset({PackStatus.SENT, PackStatus.RUNNING})
"""It takes one of its rollout's places."""

_S = TypeVar("_S", bound=StrEnum)


@dataclass(frozen=True)
class Edge(Generic[_S]):
    """One permitted change of a status."""

    name: str
    sources: frozenset[_S]
    target: _S
    reason: str


def _edges(kind: type[_S], *rows: tuple[str, str, str, str]) -> tuple[Edge[_S], ...]:
    return tuple(
        Edge(name, frozenset(map(kind, sources.split())), kind(target), reason)
        for name, sources, target, reason in rows
    )


ROLLOUT_EDGES: Final = _edges(
    RolloutStatus,
    ("hold", "running", "held", "the controller or an operator stops it, with a reason and its evidence"),
    ("resume", "held", "running", "an operator, or the reason is gone; failures are counted anew"),
    ("cancel", "running held", "cancelling", "an operator ends it; pending members are skipped"),
    ("end_cancelled", "cancelling", "cancelled", "nothing is in flight any more"),
    ("succeed", "running", "succeeded", "the last stage ended and no member failed"),
    ("finish", "running", "finished_with_failures", "the last stage ended; failures were within the limits"),
    ("reopen", "finished_with_failures", "running", "an operator retries failed members"),
)

MEMBER_EDGES: Final = _edges(
    MemberStatus,
    ("dispatch", "pending", "dispatched", "the controller sends its migration"),
    (
        "skip",
        "pending dispatched failed",
        "skipped",
        "deleted, refused, cancelled, released, or by an operator",
    ),
    ("arrive", "pending dispatched failed", "succeeded", "at the target: by this migration, or before it"),
    ("fail", "dispatched", "failed", "its migration failed, or was refused for a reason that may pass"),
    ("return", "dispatched", "pending", "its pack ended before it was begun; the next one takes it"),
    ("retry", "failed", "pending", "an operator retries it; the next try has a request id of its own"),
)


PACK_EDGES: Final = _edges(
    PackStatus,
    ("take", "sent", "running", "a worker that has the planned code holds the pack's lock"),
    (
        "leave",
        "sent running",
        "left",
        "its last graph is done, or the rollout is held, or the worker shuts down",
    ),
    (
        "close",
        "sent running left",
        "closed",
        "the controller: left, its executor is dead, or the rollout is cancelled",
    ),
)


def pairs(edges: tuple[Edge[_S], ...]) -> frozenset[tuple[_S, _S]]:
    """All permitted (old, new) pairs."""
    return frozenset((source, edge.target) for edge in edges for source in edge.sources)


class StageKind(StrEnum):
    """What a stage is for."""

    CANARY = "canary"
    WAVE = "wave"


class HoldReason(StrEnum):
    """Why a rollout stands still."""

    OPERATOR = "operator"
    GATE = "gate"
    BREAKER = "breaker"
    STALL = "stall"
    WINDOW = "window"
    CODE_CHANGED = "code_changed"
    HEALTH = "health"
    FLEET = "fleet"

    @property
    def phrase(self) -> str:
        """Why it stands still, for people."""
        return _HOLDS[self][0]

    @property
    def remedy(self) -> str:
        """What to do next; ``{rollout}`` stands for the rollout's id."""
        return _HOLDS[self][1]


_HOLDS: Final = {
    HoldReason.OPERATOR: ("an operator paused it", "`graph-migrator rollout resume {rollout}`"),
    HoldReason.GATE: (
        "the stage has ended and baked, and its gate is manual",
        "check the migrated graphs, then `graph-migrator rollout promote {rollout}`",
    ),
    HoldReason.BREAKER: (
        "too many graphs failed",
        "`graph-migrator rollout errors {rollout}`; mend the cause, then "
        "`graph-migrator rollout retry {rollout}` and `graph-migrator rollout resume {rollout}`",
    ),
    HoldReason.STALL: (
        "no graph in flight has committed anything for too long",
        "`graph-migrator status GRAPH` says what each waits for; then `graph-migrator rollout resume {rollout}`",
    ),
    HoldReason.WINDOW: (
        "the time window is shut; it goes on by itself when the window opens",
        "wait, or `graph-migrator rollout set {rollout} window none`",
    ),
    HoldReason.CODE_CHANGED: (
        "a worker has other code for its hops than was planned",
        "finish or revert the deploy, then `graph-migrator rollout resume {rollout}`; to go on with the new code: "
        "`graph-migrator rollout resume {rollout} --accept-new-code`",
    ),
    HoldReason.HEALTH: (
        "load is too high; it goes on by itself when the signal has been good for 30 s",
        "`graph-migrator health`; to go on all the same: `graph-migrator rollout set {rollout} health false`",
    ),
    HoldReason.FLEET: (
        "all rollouts are held; it goes on by itself when that ends",
        "`graph-migrator rollout unhold`",
    ),
}

ENDS_BY_ITSELF: Final = frozenset({HoldReason.WINDOW, HoldReason.HEALTH, HoldReason.FLEET})
"""The controller resumes these. Not `code_changed`: while a deploy mixes two codes, each worker that takes the
controller's turn would see another one, and the rollout would stop and start with every turn."""
