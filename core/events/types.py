"""What happens to migrations and rollouts, as named events for whoever wants to know.

    unsubscribe = events.subscribe(lambda event: print(event.name, event.fields()))

An event is emitted after the commit that made it true, in the process that made that commit. It is a
notification, not the record: a process that dies between its commit and the event emits nothing, and what it
did is in Postgres all the same. Nothing is emitted inside a caller's own transaction
(`execute_migration`, dry runs), because nobody knows yet whether it will be committed.

A subscriber runs where the event was emitted. Its exceptions are logged and go no further; its time is the
migration's time, so one that does more than a line of logging should queue the event and return.
docs/events.md lists every event; it is generated from this module.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, ClassVar, Final
from uuid import UUID

from graph_migrator.core.reports import MigrationReport

_log = logging.getLogger("graph_migrator.events")


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """What every event carries."""

    name: ClassVar[str] = ""

    at: Annotated[datetime, "When it was emitted, UTC."] = field(default_factory=lambda: datetime.now(UTC))

    def fields(self) -> dict[str, Any]:
        """The payload by name, in the order of the reference, without what is None."""
        found = ((name, getattr(self, name)) for name in self._names())
        return {name: value for name, value in found if value is not None}

    @classmethod
    @cache
    def _names(cls) -> tuple[str, ...]:
        return tuple(each.name for each in fields(cls))


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationEvent(Event):
    """What every event of a migration carries besides."""

    migration_id: Annotated[UUID, "The migration."]
    graph_id: Annotated[UUID, "Its graph."]
    graph: Annotated[str, "The graph's slug."]
    graph_type: Annotated[str, "The graph's type."]


@dataclass(frozen=True, kw_only=True, slots=True)
class HopEvent(MigrationEvent):
    """What every event of one hop carries besides."""

    hop: Annotated[str, "The hop's name."]
    from_version: Annotated[int, "The version that the hop starts from."]
    to_version: Annotated[int, "The version that the hop leads to."]
    attempt_id: Annotated[int, "The row in `hop_attempts`."]
    shard: Annotated[int | None, "Of a hop in shards: the one that it is about, with its own rows."] = None


# ── migrations ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationBegun(MigrationEvent):
    """The graph is claimed and its plan is written; the chain is about to be sent."""

    name = "migration_begun"

    from_version: Annotated[int, "The graph's version."]
    to_version: Annotated[int, "The target."]
    hops: Annotated[int, "How many hops are planned."]
    task_id: Annotated[str | None, "The `migrate_graph` call."] = None
    requested_by: Annotated[str | None, "Who asked."] = None
    reason: Annotated[str | None, "Why."] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationAsked(MigrationEvent):
    """An operator asked for a pause or a cancel; it takes effect at the next boundary."""

    name = "migration_asked"

    verb: Annotated[str, "`pause` or `cancel`."]
    requested_by: Annotated[str | None, "Who asked."] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationPaused(MigrationEvent):
    """A pause took effect: the graph stands at a boundary, still claimed."""

    name = "migration_paused"

    version: Annotated[int | None, "The graph's version."]


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationResumed(MigrationEvent):
    """A paused migration was resumed, or a failed one retried."""

    name = "migration_resumed"

    verb: Annotated[str, "`resume`, `retry`, or `migrate` where a new call resumed the failed one."]
    dispatch: Annotated[int | None, "The chain's number from now on."]
    requested_by: Annotated[str | None, "Who asked."] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationRecovered(MigrationEvent):
    """Recovery found that nobody works on the migration, and had its chain sent again."""

    name = "migration_recovered"

    because: Annotated[str, "`lost`: an executor died. `overdue`: nothing happened until the deadline."]
    dispatch: Annotated[int, "The chain's number from now on; unchanged where it was only overdue."]


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationFinished(MigrationEvent):
    """The migration ended. One that failed may be retried or released later."""

    name = "migration_finished"

    status: Annotated[str, "`succeeded`, `failed`, `cancelled` or `released`."]
    from_version: Annotated[int, "The version that it began at."]
    to_version: Annotated[int, "The target."]
    version: Annotated[int | None, "The graph's version now; left out where the graph was deleted."]
    hops: Annotated[int, "How many hops were started."]
    attempts: Annotated[int, "How often they were started, all together."]
    rows_changed: Annotated[int, "Rows changed by what was committed."]
    seconds: Annotated[float | None, "From the call to the end."]
    error_type: Annotated[str | None, "What went wrong."] = None
    error_message: Annotated[str | None, "The same for people; never data of the graph."] = None
    error_rows: Annotated[str | None, "The row or batch that it is about, by ids alone."] = None


# ── hops ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True, slots=True)
class HopStarted(HopEvent):
    """The hop has a running row; its code is about to run."""

    name = "hop_started"

    attempt: Annotated[int, "1 for the first start of this hop in this migration."]
    dispatch: Annotated[int, "The chain's number."]
    worker: Annotated[str, "Who executes it."]
    done: Annotated[int, "Rows of a batched hop that earlier attempts have committed."]


@dataclass(frozen=True, kw_only=True, slots=True)
class HopProgressed(HopEvent):
    """A batch was committed with its checkpoint, and another one follows."""

    name = "hop_progressed"

    done: Annotated[int, "Rows processed so far, by all attempts."]
    total: Annotated[int | None, "Rows there are to process."]
    rows_changed: Annotated[int, "Rows changed by this batch."]
    rows_per_second: Annotated[float | None, "Rows processed a second, by this attempt and of late."] = None
    seconds_left: Annotated[float | None, "An estimate for the rest of the hop."] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class HopSucceeded(HopEvent):
    """The hop's data, its version and its row were committed together."""

    name = "hop_succeeded"

    attempt: Annotated[int, "Which start of this hop did it."]
    skipped: Annotated[bool, "Its precondition was false; only the version moved."]
    rows_changed: Annotated[int | None, "Rows changed by this attempt; left out where the answer was lost."]
    seconds: Annotated[float, "How long this attempt took."]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardDone(HopEvent):
    """A shard's last batch was committed. Another attempt ends the hop when all are done."""

    name = "shard_done"

    attempt: Annotated[int, "Which start of this shard did it."]
    rows_changed: Annotated[int | None, "Rows changed by this attempt; left out where the answer was lost."]
    seconds: Annotated[float, "How long this attempt took."]


@dataclass(frozen=True, kw_only=True, slots=True)
class HopFailed(HopEvent):
    """The hop raised; what it had not committed was rolled back, and its row says why."""

    name = "hop_failed"

    attempt: Annotated[int, "Which start of this hop it was."]
    error_type: Annotated[str, "The exception's type."]
    error_message: Annotated[str, "Its message; never data of the graph."]
    error_rows: Annotated[str | None, "The row or batch that it is about, by ids alone."]
    retry_in: Annotated[
        float | None, "Seconds until the next try; left out where the migration failed with it."
    ]
    seconds: Annotated[float, "How long this attempt took."]


@dataclass(frozen=True, kw_only=True, slots=True)
class HopLost(MigrationEvent):
    """An attempt's executor is gone: its process died, or its session did."""

    name = "hop_lost"

    attempt_id: Annotated[int, "The row in `hop_attempts`."]
    found_by: Annotated[str, "`recovery`, `executor` (the next one to run the hop) or `operator`."]


@dataclass(frozen=True, kw_only=True, slots=True)
class HopQuiet(HopEvent):
    """A hop has run no statement for `GRAPH_MIGRATOR_QUIET_SECONDS`: it computes, or it is in an endless loop."""

    name = "hop_quiet"

    seconds: Annotated[float, "Seconds without a statement."]


# ── rollouts ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutEvent(Event):
    """What every event of a rollout carries besides."""

    rollout_id: Annotated[UUID, "The rollout."]
    graph_type: Annotated[str, "The type of its graphs."]
    to_version: Annotated[int, "The target."]


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutStarted(RolloutEvent):
    """A rollout was started: its graphs, stages and code are frozen."""

    name = "rollout_started"

    graphs: Annotated[int, "How many graphs it moves."]
    stages: Annotated[int, "In how many stages."]
    requested_by: Annotated[str | None, "Who asked; `policy` where the type's policy did."] = None
    reason: Annotated[str | None, "Why."] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutStageOpened(RolloutEvent):
    """The graphs of a stage may be sent from now on."""

    name = "rollout_stage_opened"

    stage: Annotated[int, "Its number, from 1."]


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutStageEnded(RolloutEvent):
    """Every graph of a stage has settled; its bake begins."""

    name = "rollout_stage_ended"

    stage: Annotated[int, "Its number, from 1."]


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutHeld(RolloutEvent):
    """The controller sends nothing more until the reason is gone or an operator resumes it."""

    name = "rollout_held"

    reason: Annotated[str, "Such as `breaker` or `gate`; see the reference of rollouts."]
    why: Annotated[str, "The same in words."]


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutResumed(RolloutEvent):
    """The reason of a hold is gone; the controller goes on by itself."""

    name = "rollout_resumed"


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutChanged(RolloutEvent):
    """An operator's verb changed a rollout: `pause`, `resume`, `promote`, `cancel`, `retry`, `skip` or `set`."""

    name = "rollout_changed"

    verb: Annotated[str, "The verb."]
    status: Annotated[str, "The rollout's status after it."]
    says: Annotated[str, "What it did."]
    requested_by: Annotated[str | None, "Who asked."] = None
    reason: Annotated[str | None, "Why."] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutEnded(RolloutEvent):
    """A rollout is over."""

    name = "rollout_ended"

    status: Annotated[str, "`succeeded`, `finished_with_failures` or `cancelled`."]


ALL: Final[tuple[type[Event], ...]] = (
    MigrationBegun,
    HopStarted,
    HopProgressed,
    ShardDone,
    HopSucceeded,
    HopFailed,
    HopLost,
    HopQuiet,
    MigrationRecovered,
    MigrationAsked,
    MigrationPaused,
    MigrationResumed,
    MigrationFinished,
    RolloutStarted,
    RolloutStageOpened,
    RolloutStageEnded,
    RolloutHeld,
    RolloutResumed,
    RolloutChanged,
    RolloutEnded,
)
"""Every event, in the order in which a migration, and a rollout, may meet them."""


def ended(report: MigrationReport) -> MigrationPaused | MigrationFinished:
    """The event for a migration that stands still, from its report.

    Raises:
        ValueError: It goes on.
    """
    assert report.migration_id is not None  # noqa: S101 - only a call with nothing to do has none
    if report.status == "paused":
        return MigrationPaused(
            migration_id=report.migration_id,
            graph_id=report.graph_id,
            graph=report.graph,
            graph_type=report.graph_type,
            version=report.version,
        )
    if not report.status.is_settled:
        raise ValueError(f"migration {report.migration_id} is {report.status}")
    return MigrationFinished(
        migration_id=report.migration_id,
        graph_id=report.graph_id,
        graph=report.graph,
        graph_type=report.graph_type,
        status=str(report.status),
        from_version=report.from_version,
        to_version=report.to_version,
        version=report.version,
        hops=len(report.hops),
        attempts=sum(hop.attempts for hop in report.hops),
        rows_changed=sum(hop.rows_changed for hop in report.hops),
        seconds=report.seconds,
        error_type=report.error_type,
        error_message=report.error_message,
        error_rows=report.error_rows,
    )


# ── emitting ────────────────────────────────────────────────────────────────────────────────────────

Subscriber = Callable[[Event], None]

# Replaced, never changed: emitting needs no lock, and a fork in between copies a whole tuple.
_subscribers: tuple[Subscriber, ...] = ()


def subscribe(callback: Subscriber) -> Callable[[], None]:
    """Call `callback` with every event of this process, and of the processes forked from it later.

    Returns:
        A function that ends it.
    """
    global _subscribers
    _subscribers = (*_subscribers, callback)

    def unsubscribe() -> None:
        global _subscribers
        _subscribers = tuple(each for each in _subscribers if each is not callback)

    return unsubscribe


def anybody_listens() -> bool:
    """Whether anybody subscribed; ask before reading something only for an event."""
    return bool(_subscribers)


def emit(event: Event) -> None:
    """Emit an event to all subscribers. What they raise is logged; it never reaches the migration."""
    for callback in _subscribers:
        try:
            callback(event)
        except Exception:  # noqa: BLE001 - a subscriber may raise anything
            _log.exception("%s was not delivered to %r", event.name, callback)
