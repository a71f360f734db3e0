"""Reading rollouts: how far one is, why it does not move and what to do, and what failed for which cause."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from graph_migrator.core.errors import InvalidRequest
from graph_migrator.core.plural import count, plural
from graph_migrator.core.rollouts.estimate import Estimate, estimate, left_by_size, size_class
from graph_migrator.core.rollouts.health import SIGNALS, Level, worst
from graph_migrator.core.rollouts.operations import find_rollout
from graph_migrator.core.rollouts.rows import load_signals, query
from graph_migrator.core.rollouts.statuses import HoldReason, MemberStatus, RolloutStatus, StageKind
from graph_migrator.core.rollouts.strategy import Strategy, per_second
from graph_migrator.core.rollouts.workers import LIVE_SECONDS, WorkerState, live_workers
from graph_migrator.core.settings import settings
from graph_migrator.core.store.session import Executor


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class Counts(_Model):
    """Members by status."""

    pending: int = 0
    dispatched: int = 0
    succeeded: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.pending + self.dispatched + self.succeeded + self.failed + self.skipped


class StageState(_Model):
    """One stage."""

    number: int
    kind: StageKind
    counts: Counts
    began_at: datetime | None
    ended_at: datetime | None
    promoted_at: datetime | None


class TimeLeft(_Model):
    """How long the rest takes, without bakes, gates and holds."""

    low_seconds: float = Field(
        description="One in ten rollouts whose graphs are like the settled ones is faster."
    )
    high_seconds: float = Field(description="One in ten is slower.")
    graphs: int = Field(description="On how many settled graphs it rests.")


class RolloutSummary(_Model):
    """One rollout in a list."""

    id: UUID
    graph_type: str
    to_version: int
    status: RolloutStatus
    stage: int
    stages: int
    counts: Counts
    hold: HoldReason | None
    requested_by: str | None
    reason: str | None
    started_at: datetime
    finished_at: datetime | None


class RolloutState(_Model):
    """Everything about one rollout's present."""

    rollout: RolloutSummary
    why: str = Field(description="Why it does not move, or what it does.")
    what_to_do: str = Field(description="What to do next.")
    hold: dict[str, Any] | None = Field(description="The hold with its evidence, and since when.")
    stages: tuple[StageState, ...]
    in_flight: int = Field(
        description="Units sent and not ended, without paused ones: packs, and graphs with a chain of their own."
    )
    max_in_flight: int
    pace: int = Field(description="Units in flight at most under the load of this moment.")
    pace_set_by: str | None = Field(description="The health signal that slows it, with value and limit.")
    paused_graphs: tuple[str, ...] = Field(
        description="Whose migration an operator paused; they keep a stage open."
    )
    time_left: TimeLeft | None = Field(description="None before five graphs have settled.")
    strategy: Strategy
    fleet_held: bool
    came_from: dict[int, int] = Field(
        description="How many graphs it is about, by the version that they had at the start."
    )


class GroupOfErrors(_Model):
    """Failures with one cause."""

    error_group: str
    title: str
    graphs: int
    examples: tuple[str, ...]
    what_to_do: str


class MemberState(_Model):
    """One graph of a rollout."""

    graph: str
    graph_id: UUID
    stage: int
    status: MemberStatus
    tries: int
    from_version: int
    note: str | None
    error_group: str | None
    place: str = Field(description="Where the next page begins, if this is the last graph of one.")


class HealthSignal(_Model):
    """What is measured of the load on Postgres and the broker, and what it does to rollouts."""

    signal: str
    level: Level
    value: float | None = Field(description="None where it could not be measured.")
    unit: str
    slow: float | None = Field(description="From this value on it slows rollouts; None for never.")
    stop: float | None = Field(description="From this value on it holds rollouts; None for never.")
    since: datetime = Field(description="Since when it has this level.")
    detail: str | None = Field(description="Of what the value is, or why there is none.")
    meaning: str
    reason: str = Field(description="Why these limits.")
    effect: str = Field(description="What its level does.")
    remedy: str | None = Field(description="What to look at; None where it is good.")


class Change(_Model):
    """What was changed in a rollout."""

    id: int

    at: datetime
    what: str
    before: Any
    after: Any
    who: str | None
    why: str | None


_SUMMARY = """
SELECT r.id, r.graph_type, r.to_version, r.status, r.stage, r.hold, r.requested_by, r.reason, r.started_at,
       r.finished_at, r.strategy, r.max_in_flight, r.pace, r.sizes, r.dispatch_after, r.planned, c.*
FROM rollouts r CROSS JOIN LATERAL (
    SELECT count(*) AS stages, sum(s.pending)::bigint AS pending, sum(s.dispatched)::bigint AS dispatched,
           sum(s.succeeded)::bigint AS succeeded, sum(s.failed)::bigint AS failed, sum(s.skipped)::bigint AS skipped
    FROM rollout_stages s WHERE s.rollout_id = r.id
) c
"""


def health(executor: Executor) -> tuple[HealthSignal, ...]:
    """The health signals as the workers read them last; none before the first reading."""
    with executor.cursor() as cursor:
        states = load_signals(cursor)
    signals = {signal.name: signal for signal in SIGNALS}
    return tuple(
        HealthSignal(
            signal=state.name,
            level=state.level,
            value=state.value,
            unit=signals[state.name].unit,
            slow=state.slow,
            stop=state.stop,
            since=state.since,
            detail=state.detail,
            meaning=signals[state.name].meaning,
            reason=signals[state.name].reason,
            effect=state.level.effect,
            remedy=signals[state.name].remedy if state.level in {Level.SLOW, Level.STOP} else None,
        )
        for state in states
    )


def list_rollouts(
    executor: Executor, *, live: bool = False, after: UUID | None = None, limit: int = 50
) -> list[RolloutSummary]:
    """Rollouts, the latest first.

    Args:
        executor: Any session.
        live: Only those that have not ended; a graph type has one at most.
        after: The last rollout of the page before.
        limit: How many at most.
    """
    conditions = ["r.status IN ('running', 'held', 'cancelling')"] if live else []
    if after is not None:
        conditions.append(
            "(r.started_at, r.id) < (SELECT a.started_at, a.id FROM rollouts a WHERE a.id = %(after)s)"
        )
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    with executor.cursor() as cursor:
        rows = query(
            cursor,
            f"{_SUMMARY} {where}ORDER BY r.started_at DESC, r.id DESC LIMIT %(limit)s",
            {"after": after, "limit": limit},
        )
    return [_summary(row) for row in rows]


def _summary(row: Any) -> RolloutSummary:
    values = vars(row) | {"counts": _counts(row), "hold": row.hold["reason"] if row.hold else None}
    return RolloutSummary.model_validate({name: values[name] for name in RolloutSummary.model_fields})


def _counts(row: Any) -> Counts:
    return Counts(**{status: getattr(row, status) for status in MemberStatus})


def show(executor: Executor, which: str) -> RolloutState:
    """How far a rollout is, why it does not move, and what to do.

    Args:
        executor: Any session.
        which: Its id, the beginning of it, or a graph type for that type's latest.

    Raises:
        UnknownRollout: There is none, or several fit.
    """
    with executor.cursor() as cursor:
        rollout_id = find_rollout(cursor, which)
        (row,) = query(cursor, _SUMMARY + "WHERE r.id = %s", rollout_id)
        stages = query(
            cursor, "SELECT * FROM rollout_stages WHERE rollout_id = %s ORDER BY number", rollout_id
        )
        in_hand = query(
            cursor,
            "SELECT graph, paused, sent_at FROM rollout_members WHERE rollout_id = %s AND status = 'dispatched' "
            "AND pack_id IS NULL ORDER BY sent_at",
            rollout_id,
        )
        packs = query(
            cursor,
            "SELECT first_graph AS graph, false AS paused, sent_at FROM packs "
            "WHERE rollout_id = %s AND status IN ('sent', 'running') ORDER BY sent_at",
            rollout_id,
        )
        in_hand += packs
        (now,) = query(cursor, "SELECT clock_timestamp() AS now, held_at, held_by, why FROM rollout_fleet")
        served = _serve(live_workers(cursor, settings().queue), row)
        bad = worst(load_signals(cursor))
        left = time_left(cursor, row)
    strategy = Strategy.model_validate(row.strategy)
    paused = tuple(each.graph for each in in_hand if each.paused)
    why, what_to_do = _explained(row, stages, in_hand, now, strategy, served)
    return RolloutState(
        rollout=_summary(row),
        why=why,
        what_to_do=what_to_do.format(rollout=str(row.id)[:8]),
        hold=row.hold,
        stages=tuple(
            StageState(
                number=s.number,
                kind=s.kind,
                counts=_counts(s),
                began_at=s.began_at,
                ended_at=s.ended_at,
                promoted_at=s.promoted_at,
            )
            for s in stages
        ),
        in_flight=len(in_hand) - len(paused),
        max_in_flight=row.max_in_flight,
        pace=pace_now(row),
        pace_set_by=bad.in_words() if bad and strategy.health else None,
        paused_graphs=paused,
        time_left=None
        if left is None
        else TimeLeft(low_seconds=left.low, high_seconds=left.high, graphs=left.graphs),
        strategy=strategy,
        fleet_held=now.held_at is not None,
        came_from=(row.planned or {}).get("by_version", {}),
    )


def pace_now(row: Any) -> int:
    """How many units of a rollout may be in flight under the load of this moment."""
    return int(min(row.max_in_flight, row.pace or row.max_in_flight))


def _serve(live: list[WorkerState], row: Any) -> bool:
    """Whether any of these workers has the rollout's hops."""
    types = (worker.types.get(row.graph_type) for worker in live)
    return any(each is not None and each.oldest <= row.to_version <= each.newest for each in types)


def _explained(
    row: Any, stages: list[Any], in_hand: list[Any], now: Any, strategy: Strategy, served: bool
) -> tuple[str, str]:
    """The two lines that a person reads first."""
    status = RolloutStatus(row.status)
    paused = [each.graph for each in in_hand if each.paused]
    if status is RolloutStatus.HELD:
        reason = HoldReason(row.hold["reason"])
        since = str(row.hold["since"])[:19].replace("T", " ")
        return f"since {since} UTC: {evidence(reason, row.hold, now)}", reason.remedy
    if status not in {RolloutStatus.RUNNING, RolloutStatus.CANCELLING}:
        if status is RolloutStatus.FINISHED_WITH_FAILURES:
            return f"{status.phrase}: {row.failed} failed", HoldReason.BREAKER.remedy.partition("; mend")[0]
        return status.phrase, "nothing"
    moving = len(in_hand) - len(paused)
    if paused and not moving:
        return (
            f"an operator paused the migration of {', '.join(paused[:3])}",
            f"`graph-migrator resume {paused[0]}`, or `graph-migrator cancel {paused[0]}`",
        )
    if moving and not served and (now.now - in_hand[0].sent_at).total_seconds() > LIVE_SECONDS:
        return (
            f"{plural(moving, 'graph was', 'graphs were')} sent, and no live "
            f"worker serves {row.graph_type} v{row.to_version}",
            "start one: `celery -A graph_migrator worker`; `graph-migrator workers` lists those that live",
        )
    if moving:
        verb = "moves" if status is RolloutStatus.RUNNING else "is cancelled; it waits for"
        return (
            f"it {verb} {count(row.dispatched - len(paused), 'graph')} in stage {row.stage} of {row.stages}",
            f"nothing; `graph-migrator status {in_hand[0].graph}` looks at the one that was sent first",
        )
    open_stage = next((s for s in stages if s.number == row.stage), None)
    if open_stage is not None and open_stage.ended_at is not None:
        bake = strategy.bake_seconds if open_stage.kind == "canary" else strategy.wave_bake_seconds
        rest = max(0, round(bake - (now.now - open_stage.ended_at).total_seconds()))
        return (
            f"stage {row.stage} bakes for another {rest} s",
            "nothing, or `graph-migrator rollout pause {rollout}`",
        )
    if strategy.rate is not None and row.dispatch_after is not None:
        wait = (row.dispatch_after - now.now).total_seconds() + 1 / per_second(strategy.rate)
        if wait > 0:
            return (
                f"its rate of {strategy.rate} lets the next graph go in {wait:.0f} s",
                "nothing, or `graph-migrator rollout set {rollout} rate none`",
            )
    return (
        "it waits for the controller, which runs inside every worker that has the graph type",
        "start a worker, if none runs: `graph-migrator workers` lists them",
    )


def evidence(reason: HoldReason, hold: dict[str, Any], now: Any) -> str:
    """Why a rollout is held, with what is known of it.

    Args:
        reason: The kind of hold.
        hold: As it is stored.
        now: The row of `rollout_fleet`.
    """
    match reason:
        case HoldReason.BREAKER:
            group = f", error group {hold['error_group']}" if hold.get("error_group") else ""
            return f"{hold['why']} ({', '.join(hold['graphs'])}{group})"
        case HoldReason.OPERATOR:
            by = f" ({hold['by']})" if hold.get("by") else ""
            return f"{reason.phrase}{by}" + (f": {hold['why']}" if hold.get("why") else "")
        case HoldReason.GATE:
            return f"stage {hold['stage']}: {reason.phrase}"
        case HoldReason.CODE_CHANGED:
            return f"{reason.phrase}: {', '.join(hold['hops'])}"
        case HoldReason.HEALTH:
            return f"{reason.phrase}: {hold['why']}"
        case HoldReason.STALL:
            return f"{reason.phrase}: {hold['seconds']} s, the limit is {hold['limit']:g} s"
        case HoldReason.FLEET:
            by = f" by {now.held_by}" if now.held_by else ""
            return f"{reason.phrase}{by}" + (f": {now.why}" if now.why else "")
        case _:
            return reason.phrase


# How long each took a place: a chain from its dispatch to its end, a graph of a pack for its part of the pack's time. A
# small graph that went alone, as canaries do, says how long its hops take, which is its part of a pack that runs; as
# many places as wait for one process are taken for so long.
_SETTLED = """
SELECT m.row_count,
       CASE WHEN m.pack_id IS NOT NULL THEN extract(epoch FROM p.ended_at - p.sent_at) / p.done
            WHEN m.row_count <= %(pack_rows)s THEN %(places_a_process)s * coalesce((
                SELECT sum(extract(epoch FROM a.finished_at - a.started_at)) FROM hop_attempts a
                WHERE a.migration_id = m.migration_id), 0)
            ELSE extract(epoch FROM m.settled_at - m.sent_at) END::float8 AS seconds
FROM (SELECT * FROM rollout_members s WHERE s.rollout_id = %(rollout)s AND s.status IN ('succeeded', 'failed')
      ORDER BY s.settled_at DESC LIMIT %(most)s) m LEFT JOIN packs p ON p.id = m.pack_id
WHERE m.sent_at IS NOT NULL AND (m.pack_id IS NULL OR p.done > 0 AND p.ended_at IS NOT NULL)
"""
_MOST_SETTLED = 1_000


def time_left(cursor: Any, row: Any) -> Estimate | None:
    """How long the rest of a rollout takes, from its own settled graphs.

    Args:
        cursor: A driver's cursor.
        row: The rollout, with its `sizes`, `strategy`, `max_in_flight` and the sum of `pending`.
    """
    strategy = row.strategy
    processes = sum(each.processes for each in live_workers(cursor, settings().queue)) or row.max_in_flight
    settled = query(
        cursor,
        _SETTLED,
        {
            "rollout": row.id,
            "pack_rows": strategy["pack_rows"] if strategy["packs"] else -1,
            "places_a_process": max(1.0, row.max_in_flight / processes),
            "most": _MOST_SETTLED,
        },
    )
    # Not counted among what waits: that may be a million graphs.
    sizes = {int(size): count for size, count in (row.sizes or {}).items()}
    left = left_by_size(sizes, int(row.pending), smallest_first=strategy["order"] == "size")
    return estimate([(size_class(each.row_count), each.seconds) for each in settled], left, row.max_in_flight)


def errors(executor: Executor, which: str) -> list[GroupOfErrors]:
    """Failed members by cause, with three example graphs each.

    Raises:
        UnknownRollout: There is none, or several fit.
    """
    with executor.cursor() as cursor:
        rollout_id = find_rollout(cursor, which)
        rows = query(
            cursor,
            "SELECT error_group, min(error_title) AS title, count(*) AS graphs, "
            "(array_agg(graph ORDER BY settled_at))[1:3] AS examples FROM rollout_members "
            "WHERE rollout_id = %s AND status = 'failed' GROUP BY error_group ORDER BY count(*) DESC, error_group",
            rollout_id,
        )
    short = str(rollout_id)[:8]
    return [
        GroupOfErrors(
            **vars(row),
            what_to_do=f"`graph-migrator history {row.examples[0]}` shows the traceback; mend it, then "
            f"`graph-migrator rollout retry {short} --error {row.error_group}`",
        )
        for row in rows
    ]


def members(
    executor: Executor,
    which: str,
    *,
    status: MemberStatus | None = None,
    after: str | None = None,
    limit: int = 100,
) -> list[MemberState]:
    """Graphs of a rollout in the order in which they are moved.

    Args:
        executor: Any session.
        which: The rollout.
        status: Only graphs with this status.
        after: The `place` of the last graph of the page before.
        limit: How many at most.

    Raises:
        UnknownRollout: There is none, or several fit.
        InvalidRequest: `after` is no place.
    """
    # As a constant, so that the index of this status serves.
    chosen = "rollout_id = %(rollout)s" + (f" AND status = '{status.value}'" if status is not None else "")
    parts = [chosen]
    if (
        after is not None
    ):  # in two parts: of one row comparison the planner expects nothing, and reads everything
        parts = [
            f"{chosen} AND stage = %(stage)s AND (position, graph_id) > (%(position)s, %(graph)s)",
            f"{chosen} AND stage > %(stage)s",
        ]
    order = "ORDER BY stage, position, graph_id LIMIT %(limit)s"
    pages = " UNION ALL ".join(f"(SELECT * FROM rollout_members WHERE {part} {order})" for part in parts)  # noqa: S608 - own text
    stage, position, graph = _place(after) if after is not None else (None, None, None)
    with executor.cursor() as cursor:
        rows = query(
            cursor,
            "SELECT graph, graph_id, stage, status, number AS tries, from_version, note, error_group, "  # noqa: S608 - own text
            f"concat_ws('~', stage, position, graph_id) AS place FROM ({pages}) m {order}",
            {
                "rollout": find_rollout(cursor, which), "stage": stage, "position": position, "graph": graph,
                "limit": limit,
            },
        )  # fmt: skip
    return [MemberState(**vars(row)) for row in rows]


def _place(after: str) -> tuple[int, int, UUID]:
    try:
        stage, position, graph = after.split("~")
        found = int(stage), int(position), UUID(graph)
    except ValueError:
        found = (-1, 0, UUID(int=0))
    if not (0 <= found[0] < 2**31 and abs(found[1]) < 2**63):
        raise InvalidRequest("after", "it is no place in this list; pass what the page before said")
    return found


def changes(
    executor: Executor, which: str, *, before: int | None = None, limit: int = 10_000
) -> list[Change]:
    """What was changed in a rollout, by whom and why: the latest changes, oldest first.

    Args:
        executor: Any session.
        which: The rollout.
        before: Only changes before the one with this number: the first one of the page that was read last.
        limit: How many at most.

    Raises:
        UnknownRollout: There is none, or several fit.
    """
    with executor.cursor() as cursor:
        rows = query(
            cursor,
            "SELECT id, at, what, before, after, who, why FROM rollout_changes "
            "WHERE rollout_id = %s AND id < %s ORDER BY id DESC LIMIT %s",
            find_rollout(cursor, which), 2**63 - 1 if before is None else before, limit,
        )  # fmt: skip
    return [Change(**vars(row)) for row in reversed(rows)]
