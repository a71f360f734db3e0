"""Planning and starting a rollout: who takes part, in which stage, with which code."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Final
from uuid import UUID, uuid4

from psycopg2.extras import Json

from graph_migrator.core.errors import (
    InvalidRequest,
    RolloutGivesWay,
    RolloutInFlight,
    UnknownTarget,
)
from graph_migrator.core.events import types as events
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.graph_types.registry import graph_type
from graph_migrator.core.planning import Step, make_plan
from graph_migrator.core.plural import count
from graph_migrator.core.rollouts.canaries import Canary
from graph_migrator.core.rollouts.request import PlannedCanary, PlannedStage, RolloutPlan, RolloutRequest
from graph_migrator.core.rollouts.rows import query, record_change
from graph_migrator.core.rollouts.selection import COUNT_SHAPES, SIZES, canaries_of, select_candidates
from graph_migrator.core.rollouts.stages import Stage, cut_stages
from graph_migrator.core.rollouts.statuses import LIVE, HoldReason, RolloutStatus, StageKind
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.rollouts.workers import lacking, live_workers, served
from graph_migrator.core.settings import settings
from graph_migrator.core.store.errors import sqlstate
from graph_migrator.core.store.session import Executor

MANY: Final = 10_000
"""Graphs of a rollout whose members are counted by Postgres at once, not when autovacuum comes."""


def plan(executor: Executor, request: RolloutRequest) -> RolloutPlan:
    """Say what a rollout would do. Nothing is written.

    Args:
        executor: A session without an open transaction.
        request: What the rollout is to do.

    Raises:
        UnknownGraphType, UnknownTarget, UnknownGraph: The request names what does not exist.
        InvalidRequest: It selects no graph that could be moved.
    """
    kind, target = _target(request)
    with executor.transaction(), executor.cursor() as cursor:
        prepared = _prepare(cursor, request, kind, target)
        executor.roll_back()
    return prepared.plan  # type: ignore[no-any-return]


def start(executor: Executor, request: RolloutRequest, *, rollout_id: UUID | None = None) -> RolloutPlan:
    """Start a rollout: freeze members, stages and the code of all hops. The controller dispatches them.

    Args:
        executor: A session without an open transaction.
        request: What the rollout is to do.
        rollout_id: Its id, from a call that may be delivered twice: the second finds the rollout of the first.

    Raises:
        RolloutInFlight: The type has a live rollout. Nothing was changed.
        RolloutGivesWay: It was started by the type's policy and gives way; its graphs in flight end first.
        UnknownGraphType, UnknownTarget, UnknownGraph, InvalidRequest: As `plan`.
    """
    kind, target = _target(request)
    if rollout_id is not None and (known := _known(executor, rollout_id)) is not None:
        return known
    rollout_id = rollout_id or uuid4()
    if not request.automatic:
        _let_the_policy_give_way(executor, request, kind, target)
    try:
        with executor.transaction(), executor.cursor() as cursor:
            _refuse_a_second(cursor, kind.name)
            prepared = _prepare(cursor, request, kind, target)
            _write(cursor, rollout_id, request, target, prepared, served(kind).code)
            if prepared.plan.graphs >= MANY:
                # Until autovacuum comes, a page of what waits would read all of it. A role that may not is only warned.
                cursor.execute("ANALYZE rollout_members")
    except Exception as error:
        if sqlstate(error) == "23505":  # another start was committed at the same time
            with executor.cursor() as cursor:
                _refuse_a_second(cursor, kind.name)
        raise
    found: RolloutPlan = prepared.plan
    events.emit(
        events.RolloutStarted(
            rollout_id=rollout_id, graph_type=kind.name, to_version=target, graphs=found.graphs,
            stages=len(found.stages), requested_by=request.requested_by, reason=request.reason,
        )
    )  # fmt: skip
    return found.model_copy(update={"rollout_id": rollout_id})


def _target(request: RolloutRequest) -> tuple[GraphType, int]:
    kind = graph_type(request.graph_type)
    target = kind.newest if request.to_version is None else request.to_version
    if not kind.oldest <= target <= kind.newest:
        raise UnknownTarget(f"the graphs of type {kind.name}", kind.name, target, kind.oldest, kind.newest)
    if target == kind.oldest and request.reverses is None:
        raise InvalidRequest(
            "target", f"no graph of type {kind.name!r} can be below v{target}, its oldest version"
        )
    return kind, target


def _known(executor: Executor, rollout_id: UUID) -> RolloutPlan | None:
    """The plan of a rollout that an earlier delivery of the same call has started."""
    with executor.cursor() as cursor:
        found = query(cursor, "SELECT planned FROM rollouts WHERE id = %s", rollout_id)
    return None if not found else RolloutPlan.model_validate(found[0].planned)


def _let_the_policy_give_way(
    executor: Executor, request: RolloutRequest, kind: GraphType, target: int
) -> None:
    """End the policy's rollout of the type, where one is live and this request could start.

    Raises:
        RolloutGivesWay: Some of its graphs are in flight and end first.
    """
    with executor.cursor() as cursor:
        live = query(cursor, _AUTOMATIC, kind.name)
    if not live:
        return
    plan(executor, request)  # a request that is refused ends nothing
    with executor.transaction(), executor.cursor() as cursor:
        (row,) = query(cursor, "SELECT * FROM rollouts WHERE id = %s FOR UPDATE", live[0].id)
        if row.status not in LIVE:
            return
        if row.status != RolloutStatus.CANCELLING:
            cursor.execute("UPDATE rollouts SET status = 'cancelling', hold = NULL WHERE id = %s", (row.id,))
            cursor.execute(
                "UPDATE rollout_members SET status = 'skipped', note = 'it gave way to a rollout by hand', "
                "settled_at = clock_timestamp() WHERE rollout_id = %s AND status = 'pending'",
                (row.id,),
            )
            record_change(cursor, row.id, "give way", None, None, request.requested_by, request.reason)
        (found,) = query(
            cursor, "SELECT sum(dispatched)::bigint AS left FROM rollout_stages WHERE rollout_id = %s", row.id
        )
        if not found.left:
            cursor.execute(
                "UPDATE rollouts SET status = 'cancelled', finished_at = clock_timestamp() WHERE id = %s",
                (row.id,),
            )
    if found.left:
        raise RolloutGivesWay(kind.name, str(row.id), found.left)


_AUTOMATIC = """
SELECT id FROM rollouts WHERE graph_type = %s AND automatic AND status IN ('running', 'held', 'cancelling')
"""


def _refuse_a_second(cursor: Any, name: str) -> None:
    live = query(
        cursor,
        "SELECT id, status FROM rollouts WHERE graph_type = %s AND status IN ('running', 'held', 'cancelling')",
        name,
    )
    if live:
        raise RolloutInFlight(name, str(live[0].id), live[0].status)


# ── who takes part ──────────────────────────────────────────────────────────────────────────────────


def _prepare(cursor: Any, request: RolloutRequest, kind: GraphType, target: int) -> SimpleNamespace:
    select_candidates(cursor, request, kind, target)
    strategy = request.strategy
    if strategy.shapes:
        for statement in COUNT_SHAPES:
            cursor.execute(statement)
    by_version = {
        row.from_version: row.graphs
        for row in query(
            cursor,
            "SELECT from_version, count(*) AS graphs FROM rollout_candidates WHERE note IS NULL GROUP BY 1 ORDER BY 1",
        )
    }
    skipped = {
        row.note: row.graphs
        for row in query(
            cursor,
            "SELECT note, count(*) AS graphs FROM rollout_candidates WHERE note IS NOT NULL GROUP BY 1 ORDER BY 1",
        )
    }
    if not by_version:
        left = "; ".join(f"{count} skipped: {why}" for why, count in skipped.items())
        raise InvalidRequest(
            "selection",
            f"no graph of type {kind.name!r} is to be moved to v{target}" + (f" ({left})" if left else ""),
        )
    found = sum(by_version.values())
    if request.expected is not None and found != request.expected:
        raise InvalidRequest(
            "expected",
            f"the selection has {count(found, 'graph')} by now, not {request.expected:,}; look again",
        )
    goes_back = request.reverses is not None and max(by_version) > target
    begin = max(by_version) if goes_back else min(by_version)
    steps = make_plan(kind.name, kind, begin, target).steps
    canaries = canaries_of(cursor, request)
    stages = cut_stages(len(canaries), found - len(canaries), strategy.waves)
    return SimpleNamespace(
        steps=steps,
        canaries=canaries,
        stages=stages,
        skipped=sum(skipped.values()),
        direction=-1 if goes_back else 1,
        sizes={str(row.size): row.graphs for row in query(cursor, SIZES)},
        plan=RolloutPlan(
            graph_type=kind.name,
            to_version=target,
            graphs=found,
            by_version=by_version,
            hops=tuple(map(_in_words, steps)),
            without_reverse=tuple(
                _in_words(s) for s in steps if not goes_back and not _is_reversible(kind, s.from_version)
            ),
            expected_seconds=_expected_seconds(cursor, kind.name, steps, by_version, strategy.max_in_flight),
            lacking=lacking(live_workers(cursor, settings().queue), kind.name, served(kind)),
            skipped=skipped,
            canaries=tuple(PlannedCanary(graph=c.candidate.slug, why=c.why) for c in canaries),
            stages=tuple(PlannedStage(number=s.number, kind=s.kind, size=s.size) for s in stages),
        ),
    )


def _expected_seconds(
    cursor: Any, name: str, steps: Sequence[Step], by_version: dict[int, int], in_flight: int
) -> float | None:
    """How long the hops take, by the mean of those that succeeded and by how many graphs move at a time."""
    means = {
        row.hop_name: row.mean
        for row in query(
            cursor,
            "SELECT hop_name, seconds / nullif((SELECT sum(b) FROM unnest(buckets) b), 0)::float8 AS mean "
            "FROM hop_totals WHERE graph_type = %s AND status = 'succeeded'",
            name,
        )
    }
    if any(means.get(step.name) is None for step in steps):
        return None
    places = {step.from_version: place for place, step in enumerate(steps)}
    work = sum(
        count * sum(means[step.name] for step in steps[places[version] :])
        for version, count in by_version.items()
    )
    return round(float(work) / min(in_flight, sum(by_version.values())), 1)


def _in_words(step: Step) -> str:
    return f"v{step.from_version}→v{step.to_version} {step.name}"


def _is_reversible(kind: GraphType, from_version: int) -> bool:
    return next(hop.is_reversible for hop in kind.hops if hop.from_version == from_version)


# ── writing it ──────────────────────────────────────────────────────────────────────────────────────

_ORDER = {"slug": "slug", "size": "row_count NULLS FIRST, slug", "newest": "created_at DESC, slug"}
_BY_CONFIG = "config_value NULLS LAST, slug"


def _write(
    cursor: Any, rollout_id: UUID, request: RolloutRequest, target: int, prepared: SimpleNamespace, code: str
) -> None:
    strategy = request.strategy
    hold = (
        {"reason": HoldReason.OPERATOR, "by": request.requested_by, "why": "started held"}
        if request.held
        else None
    )
    cursor.execute(
        "INSERT INTO rollouts (id, graph_type, to_version, direction, status, strategy, max_in_flight, hold, plan, "
        "requested_by, reason, automatic, reverses, code, planned, sizes) VALUES (%s, %s, %s, %s, %s, %s, %s, "
        "%s::jsonb || jsonb_build_object('since', clock_timestamp()), %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            rollout_id, request.graph_type, target, prepared.direction, "held" if hold else "running",
            Json(strategy.model_dump(mode="json")), strategy.max_in_flight, Json(hold) if hold else None,
            Json([step.to_json() for step in prepared.steps]), request.requested_by, request.reason,
            request.automatic, request.reverses, code,
            Json(prepared.plan.model_copy(update={"rollout_id": rollout_id}).model_dump(mode="json")),
            Json(prepared.sizes),
        ),
    )  # fmt: skip
    _write_members(cursor, rollout_id, strategy, prepared.canaries, prepared.stages)
    # The stages last: from then on no member can be added.
    last = prepared.stages[-1].number
    for stage in prepared.stages:
        extra = prepared.skipped if stage.number == last else 0
        cursor.execute(
            "INSERT INTO rollout_stages (rollout_id, number, kind, size, pending, skipped) "
            "VALUES (%s, %s, %s, %s, %s, %s)",
            (rollout_id, stage.number, str(stage.kind), stage.size + extra, stage.size, extra),
        )
    record_change(
        cursor,
        rollout_id,
        "start",
        None,
        strategy.model_dump(mode="json"),
        request.requested_by,
        request.reason,
    )


def _write_members(
    cursor: Any, rollout_id: UUID, strategy: Strategy, canaries: Sequence[Canary], stages: Sequence[Stage]
) -> None:
    waves = [stage for stage in stages if stage.kind is StageKind.WAVE]
    bounds = [sum(s.size for s in waves[:place]) for place in range(1, len(waves) + 1)]
    cursor.execute(
        # The order is one of our own texts.
        "INSERT INTO rollout_members (rollout_id, graph_id, graph, stage, position, status, "  # noqa: S608 - own names
        "from_version, row_count, "
        "shape, note, settled_at) "
        "SELECT %(rollout)s, c.graph_id, c.slug, CASE WHEN c.note IS NOT NULL THEN %(last)s WHEN c.is_canary THEN 1 "
        "ELSE %(first_wave)s + (SELECT count(*) FROM unnest(%(bounds)s::bigint[]) b WHERE b < c.position) END, "
        "c.position, CASE WHEN c.note IS NULL THEN 'pending' ELSE 'skipped' END, c.from_version, c.row_count, c.shape, "
        "c.note, CASE WHEN c.note IS NOT NULL THEN clock_timestamp() END "
        "FROM (SELECT *, row_number() OVER (PARTITION BY note IS NULL, is_canary "
        f"ORDER BY {_ORDER.get(strategy.order, _BY_CONFIG)}) AS position "
        "FROM (SELECT *, graph_id = ANY (%(canaries)s::uuid[]) AS is_canary FROM rollout_candidates) k) c",
        {
            "rollout": rollout_id, "last": stages[-1].number, "first_wave": 2 if canaries else 1, "bounds": bounds,
            "canaries": [canary.candidate.graph_id for canary in canaries],
        },
    )  # fmt: skip
