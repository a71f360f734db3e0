"""What pages and API read: the models of `core`, put together for one answer each."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from graph_migrator.console.services import Services
from graph_migrator.core.errors import GraphMigratorError, InvalidRequest
from graph_migrator.core.graph_types.registry import graph_type as type_named
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection import history as reading
from graph_migrator.core.inspection import overview
from graph_migrator.core.inspection.actions import Action, graph_actions
from graph_migrator.core.inspection.diagnosis import Fleet, Reason, explain
from graph_migrator.core.inspection.failures import FailureGroup, failure_groups
from graph_migrator.core.inspection.graph_state import GraphState, graph_state
from graph_migrator.core.inspection.graphs import GraphSummary, find_graph, list_graphs
from graph_migrator.core.inspection.history import Refusal
from graph_migrator.core.inspection.overview import Moving, Trouble, VersionInUse
from graph_migrator.core.planning import Plan, make_plan
from graph_migrator.core.rollouts import inspection as rollouts
from graph_migrator.core.rollouts.actions import rollout_actions
from graph_migrator.core.rollouts.back import WayBack, ways_back
from graph_migrator.core.rollouts.inspection import (
    Change,
    GroupOfErrors,
    RolloutState,
)
from graph_migrator.core.rollouts.policy import PolicyState, policies
from graph_migrator.core.rollouts.troubles import troubles as rollout_troubles
from graph_migrator.core.rollouts.workers import WorkerState
from graph_migrator.core.rollouts.workers import workers as list_workers
from graph_migrator.core.store.lock_sessions import LockSession, lock_sessions

MOST_AT_ONCE: Final = 1_000
"""Graphs that one request may be about. For more there are rollouts."""
MOST_ROLLOUTS: Final = 10
CHANGES: Final = 50
"""Changes of a rollout that come with it."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class Overview(_Model):
    """The first page."""

    wrong: tuple[Trouble, ...] = Field(description="What is wrong now, the oldest first.")
    moving: tuple[Moving, ...]
    rollouts: tuple[RolloutState, ...] = Field(
        description=f"Those that have not ended, the latest {MOST_ROLLOUTS}."
    )
    more_rollouts: int = Field(description="How many more have not ended.")
    fleet_held: bool


class GraphDetail(_Model):
    """One graph, as `status` shows it, and what can be done."""

    state: GraphState
    reasons: tuple[Reason, ...]
    lock_sessions: tuple[LockSession, ...]
    refusals: tuple[Refusal, ...]
    actions: tuple[Action, ...]


class PlannedHop(_Model):
    """One hop of a plan."""

    from_version: int
    to_version: int
    name: str
    direction: str
    batched: bool
    fingerprint: str


class RolloutDetail(_Model):
    """One rollout, and what can be done."""

    state: RolloutState
    errors: tuple[GroupOfErrors, ...]
    changes: tuple[Change, ...] = Field(description=f"The latest {CHANGES}, oldest first.")
    actions: tuple[Action, ...]
    ways_back: tuple[WayBack, ...]


class HopOfType(_Model):
    """One hop of a graph type."""

    from_version: int
    to_version: int
    name: str
    batched: bool
    reversible: bool
    description: str | None
    fingerprint: str


class TypeDetail(_Model):
    """One graph type, who serves it and where its graphs are."""

    name: str
    oldest: int
    newest: int
    digest: str | None = Field(description="Of the code that this console has.")
    hops: tuple[HopOfType, ...]
    versions: tuple[VersionInUse, ...]
    workers: dict[str, str] = Field(description="Digest of the code by worker.")
    policy: PolicyState | None = Field(description="None where it cannot be said.")


class WorkersState(_Model):
    """The workers, and the queue before them."""

    workers: tuple[WorkerState, ...] = Field(description="As `graph-migrator workers` lists them.")
    queued: int | None = Field(description="Messages that wait; None where the broker does not say.")
    broker_error: str | None
    asked_at: datetime | None = Field(
        description="When the broker was asked; None while the first answer is under way."
    )


def first_page(services: Services) -> Overview:
    """What is wrong now, and what moves."""
    with services.engine.connect() as connection:
        wrong = overview.troubles(connection, graph_types())
        moving = overview.moving(connection)
    with services.executors.borrow() as executor:
        wrong = overview.oldest_first([*wrong, *rollout_troubles(executor)])
        live = rollouts.list_rollouts(executor, live=True)
        shown = [rollouts.show(executor, str(each.id)) for each in live[:MOST_ROLLOUTS]]
    seen = services.fleet.look()
    if seen is not None:
        wrong = [*_of_the_fleet(seen.value), *wrong]
    return Overview(
        wrong=tuple(wrong),
        moving=tuple(moving),
        rollouts=tuple(shown),
        more_rollouts=len(live) - len(shown),
        fleet_held=any(each.kind == "fleet-held" for each in wrong),
    )


def _of_the_fleet(fleet: Fleet) -> list[Trouble]:
    if fleet.broker_error:
        return [
            Trouble(
                kind="broker-unreachable", since=None, graphs=0, next_step="Check CELERY_BROKER_URL.",
                what=f"The broker is out of reach ({fleet.broker_error}). Messages wait; nothing is lost.",
                command="graph-migrator doctor",
            )
        ]  # fmt: skip
    if not fleet.workers:
        waiting = f" {fleet.queued:,} messages wait." if fleet.queued else ""
        return [
            Trouble(
                kind="no-worker", since=None, graphs=0, next_step="Start one.",
                what=f"No worker answers on the queue.{waiting}",
                command="celery -A graph_migrator worker -Q migrations",
            )
        ]  # fmt: skip
    return []


def graphs(
    services: Services,
    *,
    graph_type: str | None,
    version: int | None,
    state: str | None,
    behind: bool,
    unreachable: bool,
    after: str | None,
    limit: int,
) -> list[GraphSummary]:
    """One page of graphs; the filters of `graph-migrator graphs`.

    Raises:
        InvalidRequest: Filters that exclude each other, or a version without a type.
        UnknownGraph: `after` is no graph.
    """
    if behind and unreachable:
        raise InvalidRequest("behind", "it and `unreachable` exclude each other")
    if version is not None and graph_type is None:
        raise InvalidRequest("version", "it needs a type: versions of different types have nothing in common")
    known = graph_types().values()
    return list_graphs(
        services.engine,
        graph_type=graph_type,
        version=version,
        behind={kind.name: kind.newest for kind in known} if behind else None,
        oldest={kind.name: kind.oldest for kind in known},
        unreachable={kind.name: (kind.oldest, kind.newest) for kind in known} if unreachable else None,
        state=state,
        after=after,
        limit=limit,
    )


def failures(
    services: Services, *, graph_type: str | None = None, hop: str | None = None, error: str | None = None
) -> list[FailureGroup]:
    """Failed graphs by cause: of so many as one request may retry, and as many again."""
    return failure_groups(
        services.engine, graph_types(), graph_type=graph_type, hop=hop, error=error, most=2 * MOST_AT_ONCE
    )


def ask_workers(services: Services) -> Fleet:
    """The last answer of the workers; waits for the first one."""
    seen = services.fleet.look()
    if seen is None or seen.seconds > 60:
        seen = services.fleet.look(wait_seconds=3)
    return seen.value if seen is not None else Fleet(broker_error="it has not answered yet")


def graph(services: Services, name: str) -> GraphDetail:
    """One graph.

    Raises:
        UnknownGraph: Nothing has this id or slug.
    """
    with services.engine.connect() as connection:
        state = graph_state(connection, name, count_rows=False)
        sessions = lock_sessions(connection, state.graph.id)
        refused = reading.refusals(connection, state.graph.id)
    return GraphDetail(
        state=state,
        reasons=tuple(explain(state, sessions, lambda: ask_workers(services))),
        lock_sessions=tuple(sessions),
        refusals=tuple(refused),
        actions=tuple(graph_actions(state)),
    )


def plan(services: Services, name: str, target: int | None) -> tuple[PlannedHop, ...]:
    """The hops from where a graph is to a version. Nothing is run.

    Raises:
        UnknownGraph, UnknownGraphType, UnknownTarget, UnreachableGraph, IrreversibleHop: There is no way.
    """
    found = find_graph(services.engine, name)
    kind = type_named(found.graph_type)
    return _hops(make_plan(found.slug, kind, found.version, target, undoable_to=found.undoable_to))


def plan_ahead(state: GraphState) -> tuple[PlannedHop, ...]:
    """The hops that a graph has before it; none where there is no way."""
    summary = state.graph
    try:
        return _hops(
            make_plan(
                summary.slug,
                type_named(summary.graph_type),
                summary.version,
                summary.to_version,
                undoable_to=summary.undoable_to,
            )
        )
    except GraphMigratorError:
        return ()


def _hops(made: Plan) -> tuple[PlannedHop, ...]:
    return tuple(PlannedHop.model_validate(step.to_json()) for step in made.steps)


def rollout(services: Services, which: str) -> RolloutDetail:
    """One rollout.

    Raises:
        UnknownRollout: There is none, or several fit.
    """
    with services.executors.borrow() as executor:
        state = rollouts.show(executor, which)
        failed = rollouts.errors(executor, which)
        changed = rollouts.changes(executor, which, limit=CHANGES)
    return RolloutDetail(
        state=state,
        errors=tuple(failed),
        changes=tuple(changed),
        actions=tuple(rollout_actions(state)),
        ways_back=ways_back(state),
    )


def types(services: Services) -> list[TypeDetail]:
    """The graph types that this process knows."""
    from graph_migrator.tasks.fleet import code_digests

    used = overview.versions_in_use(services.engine)
    seen = services.fleet.look()
    workers: dict[str, dict[str, str]] = seen.value.workers if seen is not None else {}
    digests = code_digests()
    with services.executors.borrow() as executor:
        known = {each.policy.graph_type: each for each in policies(executor)}
    return [
        TypeDetail(
            name=kind.name,
            oldest=kind.oldest,
            newest=kind.newest,
            digest=digests.get(kind.name),
            hops=tuple(
                HopOfType(
                    from_version=hop.from_version,
                    to_version=hop.to_version,
                    name=hop.name,
                    batched=hop.forward.is_batched,
                    reversible=hop.is_reversible,
                    description=hop.description,
                    fingerprint=hop.forward.fingerprint,
                )
                for hop in kind.hops
            ),
            versions=tuple(each for each in used if each.graph_type == kind.name),
            workers={name: served[kind.name] for name, served in workers.items() if kind.name in served},
            policy=known.get(kind.name),
        )
        for kind in graph_types().values()
    ]


def workers(services: Services) -> WorkersState:
    """The workers as Postgres knows them, and the queue as the broker said last."""
    with services.executors.borrow() as executor:
        known = list_workers(executor)
    seen = services.fleet.look()
    return WorkersState(
        workers=tuple(known),
        queued=seen.value.queued if seen is not None else None,
        broker_error=seen.value.broker_error if seen is not None else None,
        asked_at=seen.at if seen is not None else None,
    )


def without_traceback(story: Any, *, may_see: bool) -> Any:
    """An attempt as somebody may see it: tracebacks are for operators."""
    return story if may_see else story.model_copy(update={"traceback": None})
