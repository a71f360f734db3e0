"""Planning and starting a rollout: who takes part, in which stage, with which code."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

from psycopg2.extras import Json
from pydantic import BaseModel, ConfigDict, Field

from graph_migrator.core.errors import InvalidRequest, RolloutInFlight, UnknownGraph, UnknownTarget
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.graph_types.registry import graph_type
from graph_migrator.core.planning import Step, make_plan
from graph_migrator.core.rollouts.canaries import Canary, Candidate, choose_canaries
from graph_migrator.core.rollouts.rows import query, record_change
from graph_migrator.core.rollouts.stages import Stage, cut_stages
from graph_migrator.core.rollouts.statuses import HoldReason, StageKind
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.store.errors import sqlstate
from graph_migrator.core.store.session import Executor


class RolloutRequest(BaseModel):
    """What a rollout is to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    graph_type: str
    to_version: int | None = Field(None, description="The target; None for the newest version of the type.")
    graphs: tuple[str, ...] | None = Field(
        None, description="Ids or slugs; None for all graphs below the target."
    )
    slug: str | None = Field(
        None, description="Only graphs whose slug fits this pattern, with `*` for any text."
    )
    from_version: int | None = Field(None, description="Only graphs at this version.")
    canary_graphs: tuple[str, ...] = Field(
        (), description="Slugs of canaries; chosen by shape where none is named."
    )
    strategy: Strategy = Strategy()
    held: bool = Field(False, description="Start it held, until `resume`.")
    requested_by: str | None = None
    reason: str | None = Field(None, max_length=1_000)


class PlannedCanary(BaseModel):
    """A canary and why it was chosen."""

    graph: str
    why: str


class PlannedStage(BaseModel):
    """A stage and how many graphs it has."""

    number: int
    kind: StageKind
    size: int


class RolloutPlan(BaseModel):
    """What a rollout would do, or does."""

    rollout_id: UUID | None = Field(None, description="None for a plan; a plan writes nothing.")
    graph_type: str
    to_version: int
    graphs: int = Field(description="Graphs that are to be moved.")
    by_version: dict[int, int] = Field(description="The same by the version that they have.")
    hops: tuple[str, ...] = Field(description="All hops that are run, in order.")
    without_reverse: tuple[str, ...] = Field(description="Those that cannot be undone by a migration back.")
    skipped: dict[str, int] = Field(description="Selected graphs that are left as they are, by reason.")
    canaries: tuple[PlannedCanary, ...]
    stages: tuple[PlannedStage, ...]


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


def start(executor: Executor, request: RolloutRequest) -> RolloutPlan:
    """Start a rollout: freeze members, stages and the code of all hops. The controller dispatches them.

    Args:
        executor: A session without an open transaction.
        request: What the rollout is to do.

    Raises:
        RolloutInFlight: The type has a live rollout. Nothing was changed.
        UnknownGraphType, UnknownTarget, UnknownGraph, InvalidRequest: As `plan`.
    """
    kind, target = _target(request)
    rollout_id = uuid4()
    try:
        with executor.transaction(), executor.cursor() as cursor:
            _refuse_a_second(cursor, kind.name)
            prepared = _prepare(cursor, request, kind, target)
            _write(cursor, rollout_id, request, target, prepared)
    except Exception as error:
        if sqlstate(error) == "23505":  # another start was committed at the same time
            with executor.cursor() as cursor:
                _refuse_a_second(cursor, kind.name)
        raise
    found: RolloutPlan = prepared.plan
    return found.model_copy(update={"rollout_id": rollout_id})


def _target(request: RolloutRequest) -> tuple[GraphType, int]:
    kind = graph_type(request.graph_type)
    target = kind.newest if request.to_version is None else request.to_version
    if not kind.oldest <= target <= kind.newest:
        raise UnknownTarget(f"the graphs of type {kind.name}", kind.name, target, kind.oldest, kind.newest)
    if target == kind.oldest:
        raise InvalidRequest(
            "target", f"no graph of type {kind.name!r} can be below v{target}, its oldest version"
        )
    return kind, target


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
    _select(cursor, request, kind, target)
    strategy = request.strategy
    if strategy.shapes:
        for statement in _COUNT_SHAPES:
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
    steps = make_plan(kind.name, kind, min(by_version), target).steps
    canaries = _canaries(cursor, request)
    stages = cut_stages(len(canaries), sum(by_version.values()) - len(canaries), strategy.waves)
    return SimpleNamespace(
        steps=steps,
        canaries=canaries,
        stages=stages,
        skipped=sum(skipped.values()),
        plan=RolloutPlan(
            graph_type=kind.name,
            to_version=target,
            graphs=sum(by_version.values()),
            by_version=by_version,
            hops=tuple(map(_in_words, steps)),
            without_reverse=tuple(_in_words(s) for s in steps if not _is_reversible(kind, s.from_version)),
            skipped=skipped,
            canaries=tuple(PlannedCanary(graph=c.candidate.slug, why=c.why) for c in canaries),
            stages=tuple(PlannedStage(number=s.number, kind=s.kind, size=s.size) for s in stages),
        ),
    )


def _in_words(step: Step) -> str:
    return f"v{step.from_version}→v{step.to_version} {step.name}"


def _is_reversible(kind: GraphType, from_version: int) -> bool:
    return next(hop.is_reversible for hop in kind.hops if hop.from_version == from_version)


def _select(cursor: Any, request: RolloutRequest, kind: GraphType, target: int) -> None:
    graphs = None
    if request.graphs is not None:
        found = {
            row.name: row.graph_id
            for row in query(
                cursor,
                "SELECT v.name, graph_id_of(v.name) AS graph_id FROM unnest(%s::text[]) v (name)",
                list(request.graphs),
            )
        }
        missing = [name for name, graph_id in found.items() if graph_id is None]
        if missing:
            raise UnknownGraph(missing[0])
        graphs = list(found.values())
    like = None
    if request.slug is not None:
        like = request.slug.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")
    cursor.execute(
        _SELECT,
        {
            "type": kind.name, "target": target, "oldest": kind.oldest, "graphs": graphs, "slug": like,
            "from": request.from_version,
        },
    )  # fmt: skip


_SELECT = """
CREATE TEMP TABLE rollout_candidates ON COMMIT DROP AS
SELECT g.id AS graph_id, g.slug, g.version AS from_version, g.created_at, NULL::bigint AS row_count,
       NULL::text AS shape,
       CASE WHEN g.version > %(target)s THEN 'beyond the target'
            WHEN g.version < %(oldest)s THEN 'unreachable: its type does not know its version'
            WHEN g.partially_migrated IS NOT NULL THEN 'partially migrated' END AS note
FROM graphs g
WHERE g.graph_type = %(type)s AND g.version <> %(target)s
  AND (%(graphs)s::uuid[] IS NULL AND g.version < %(target)s OR g.id = ANY (%(graphs)s::uuid[]))
  AND (%(slug)s::text IS NULL OR g.slug LIKE %(slug)s)
  AND (%(from)s::integer IS NULL OR g.version = %(from)s)
"""
_COUNT_SHAPES = (
    """
UPDATE rollout_candidates c SET row_count = 0, shape = ''
""",
    """
UPDATE rollout_candidates c SET row_count = s.rows, shape = s.labels
FROM (SELECT l.graph_id, sum(l.rows) AS rows, string_agg(l.label, ',' ORDER BY l.label) AS labels
      FROM (SELECT n.graph_id, n.label, count(*) AS rows FROM nodes n
            WHERE n.graph_id IN (SELECT graph_id FROM rollout_candidates) GROUP BY 1, 2) l GROUP BY 1) s
WHERE c.graph_id = s.graph_id
""",
    """
UPDATE rollout_candidates c SET row_count = c.row_count + s.rows, shape = c.shape || ' | ' || s.types
FROM (SELECT l.graph_id, sum(l.rows) AS rows, string_agg(l.type, ',' ORDER BY l.type) AS types
      FROM (SELECT e.graph_id, e.type, count(*) AS rows FROM edges e
            WHERE e.graph_id IN (SELECT graph_id FROM rollout_candidates) GROUP BY 1, 2) l GROUP BY 1) s
WHERE c.graph_id = s.graph_id
""",
)
"""One pass over nodes and one over edges, for all graphs together."""

# Of each version and shape the smallest, the largest and the first by slug; with how many graphs they stand for.
_REPRESENTATIVES = """
SELECT graph_id, slug, from_version, row_count, shape, greatest(1, likes / 3) AS likes
FROM (SELECT c.*, count(*) OVER like_it AS likes,
             row_number() OVER (like_it ORDER BY row_count, slug) AS smallest,
             row_number() OVER (like_it ORDER BY row_count DESC, slug) AS largest,
             row_number() OVER (like_it ORDER BY slug) AS first
      FROM rollout_candidates c WHERE note IS NULL WINDOW like_it AS (PARTITION BY from_version, shape)) c
WHERE smallest = 1 OR largest = 1 OR first <= %s ORDER BY likes DESC, slug LIMIT 5000
"""


def _canaries(cursor: Any, request: RolloutRequest) -> tuple[Canary, ...]:
    if request.canary_graphs:
        rows = query(
            cursor,
            "SELECT graph_id, slug, from_version FROM rollout_candidates WHERE note IS NULL AND slug = ANY (%s)",
            list(request.canary_graphs),
        )
        missing = set(request.canary_graphs) - {row.slug for row in rows}
        if missing:
            raise InvalidRequest(
                "canary-graphs", f"{min(missing)!r} is not among the graphs that are to be moved"
            )
        return tuple(Canary(Candidate(r.graph_id, r.slug, r.from_version), "named") for r in rows)
    most = request.strategy.canaries
    if not most:
        return ()
    rows = query(cursor, _REPRESENTATIVES, most)
    candidates = [
        Candidate(r.graph_id, r.slug, r.from_version, r.row_count, r.shape, int(r.likes)) for r in rows
    ]
    return choose_canaries(candidates, most)


# ── writing it ──────────────────────────────────────────────────────────────────────────────────────

_ORDER = {"slug": "slug", "size": "row_count NULLS FIRST, slug", "newest": "created_at DESC, slug"}


def _write(
    cursor: Any, rollout_id: UUID, request: RolloutRequest, target: int, prepared: SimpleNamespace
) -> None:
    strategy = request.strategy
    hold = (
        {"reason": HoldReason.OPERATOR, "by": request.requested_by, "why": "started held"}
        if request.held
        else None
    )
    cursor.execute(
        "INSERT INTO rollouts (id, graph_type, to_version, direction, status, strategy, max_in_flight, hold, plan, "
        "requested_by, reason) VALUES (%s, %s, %s, 1, %s, %s, %s, "
        "%s::jsonb || jsonb_build_object('since', clock_timestamp()), %s, %s, %s)",
        (
            rollout_id, request.graph_type, target, "held" if hold else "running",
            Json(strategy.model_dump(mode="json")), strategy.max_in_flight, Json(hold) if hold else None,
            Json([step.to_json() for step in prepared.steps]), request.requested_by, request.reason,
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
        f"ORDER BY {_ORDER[strategy.order]}) AS position "
        "FROM (SELECT *, graph_id = ANY (%(canaries)s::uuid[]) AS is_canary FROM rollout_candidates) k) c",
        {
            "rollout": rollout_id, "last": stages[-1].number, "first_wave": 2 if canaries else 1, "bounds": bounds,
            "canaries": [canary.candidate.graph_id for canary in canaries],
        },
    )  # fmt: skip
