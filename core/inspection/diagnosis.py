"""Why a graph is not moving: what blocks it, and what to do. `status` shows it; a page or an API can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection.history import GraphState
from graph_migrator.core.inspection.lock_sessions import LockSession
from graph_migrator.core.inspection.phrases import count, duration
from graph_migrator.core.statuses import MigrationStatus


@dataclass
class Fleet:
    """What the workers answered.

    Attributes:
        workers: Those that serve our queue: by worker, a digest of its code by graph type.
        elsewhere: Workers of ours that serve other queues only.
        queued: Messages that wait in our queue; None where the broker does not say.
        broker_error: Why the broker could not be asked.
    """

    workers: dict[str, dict[str, str]] = field(default_factory=dict)
    elsewhere: list[str] = field(default_factory=list)
    queued: int | None = None
    broker_error: str | None = None


AskWorkers = Callable[[], Fleet]
"""Asks the workers; called only where the answer matters, because it takes a second."""


class Reason(BaseModel):
    """One answer to "why is it not moving?"."""

    model_config = ConfigDict(frozen=True)

    kind: str = Field(description="For scripts; listed in docs/cli.md.")
    what: str = Field(description="What holds it up, or that nothing does.")
    way_out: str | None = None

    def __str__(self) -> str:
        return self.what if self.way_out is None else f"{self.what} {self.way_out}"


def explain(state: GraphState, sessions: list[LockSession], ask_workers: AskWorkers) -> list[Reason]:
    """Reasons for an operator, the most important first.

    Args:
        state: What Postgres knows.
        sessions: Who is at the graph's lock.
        ask_workers: Asks the workers.
    """
    slug, migration = state.graph.slug, state.migration
    if state.graph.partially_migrated:
        way_out = (
            f"Finish it: `graph-migrator retry {slug}`; or, mended by hand: "
            f"`graph-migrator release {slug} --whole`."
        )
        return [Reason(kind="half-done", what="It was forced loose half-way through a hop.", way_out=way_out)]
    waiting = _of_a_begin_that_waits(sessions)
    if migration is None or (migration.status.is_settled and migration.status is not MigrationStatus.FAILED):
        return [*waiting, *_of_an_idle_graph(state, ask_workers)]
    match migration.status:
        case MigrationStatus.FAILED:
            force = "" if state.checkpoint_done is None else " --force"
            way_out = (
                f"`graph-migrator history {slug}` tells what failed; mend it and `graph-migrator retry {slug}`, "
                f"or give up with `graph-migrator release {slug}{force}`."
            )
            return [*waiting, Reason(kind="failed", what=_what_stands(state), way_out=way_out)]
        case MigrationStatus.PAUSED:
            what, way_out = "An operator paused it.", f"`graph-migrator resume {slug}` goes on"
            if state.checkpoint_done is None:
                way_out += f", `graph-migrator cancel {slug}` ends it at this version."
            else:
                what = f"An operator paused it half-way through a hop, after {count(state.checkpoint_done, 'row')}."
                way_out += "; only then is the graph whole again."
            return [Reason(kind="paused", what=what, way_out=way_out)]
    return _of_a_live_migration(state, sessions, ask_workers)


def _of_a_live_migration(
    state: GraphState, sessions: list[LockSession], ask_workers: AskWorkers
) -> list[Reason]:
    holders = [each for each in sessions if each.holds]
    named = "; ".join(each.describe() for each in holders)
    if state.running is not None and holders:
        return [Reason(kind="working", what=f"A worker is on it: {named}.")]
    fleet = ask_workers()
    if state.running is not None:
        what = "Its worker died a moment ago. Recovery in any living worker sends it again within seconds."
        return [Reason(kind="worker-died", what=what), *_of_the_fleet(state, fleet)]
    reasons = _of_the_fleet(state, fleet)
    if state.requeued:
        what = (
            f"Workers whose code for the hop is not the planned one have put it back {state.requeued} times."
        )
        way_out = "Deploy the planned code; or let it fail, and `retry` plans with the code that is there."
        reasons.insert(0, Reason(kind="other-code", what=what, way_out=way_out))
    if holders:
        way_out = "Let it finish, or end that session; the worker tries again each second."
        reasons.insert(
            0, Reason(kind="lock-held", what=f"The graph's lock is held by {named}.", way_out=way_out)
        )
    if state.deadline_in is not None:
        what = f"Recovery rings again in {duration(max(0.0, state.deadline_in))}."
        reasons.append(Reason(kind="deadline", what=what))
    return reasons


def _of_a_begin_that_waits(sessions: list[LockSession]) -> list[Reason]:
    """A migration that wants to begin has no row yet: it is seen as an exclusive lock that is waited for."""
    waiters = [each for each in sessions if not each.holds and each.exclusive]
    if not waiters:
        return []
    writers = "; ".join(each.describe() for each in sessions if each.holds) or "writers that end just now"
    return [
        Reason(
            kind="writers-not-drained",
            what=f"A migration wants to begin ({waiters[0].describe()}) and waits for writers in flight: {writers}.",
            way_out="Let them finish, or end those sessions; it gives up after "
            "GRAPH_MIGRATOR_WRITER_DRAIN_SECONDS and changes nothing.",
        )
    ]


def _what_stands(state: GraphState) -> str:
    if state.checkpoint_done is not None:
        return f"A batched hop stopped after {count(state.checkpoint_done, 'row')}: the graph's rows are of two shapes."
    return f"The graph is whole at v{state.graph.version}; nothing of the failed hop was kept."


def _of_an_idle_graph(state: GraphState, ask_workers: AskWorkers) -> list[Reason]:
    graph = state.graph
    kind = graph_types().get(graph.graph_type)
    reasons = []
    if graph.read_only == "owner":
        what = "Its owner locked it against writers."
        reasons.append(
            Reason(kind="owner-locked", what=what, way_out=f"`graph-migrator unlock {graph.slug}`.")
        )
    if kind is None:
        what = f"Nothing owns it. Its type {graph.graph_type!r} is not known here."
        reasons.append(Reason(kind="unknown-type-here", what=what, way_out="See GRAPH_MIGRATOR_TYPES."))
    elif graph.version < kind.newest:
        what = f"Nothing owns it. v{kind.newest} is there for it."
        reasons.append(Reason(kind="behind", what=what, way_out=f"`graph-migrator migrate {graph.slug}`."))
        # It may have been asked for already: a call leaves no trace here before a worker has taken it.
        reasons.extend(r for r in _of_the_fleet(state, ask_workers()) if r.kind != "waiting")
    elif not reasons:
        reasons.append(Reason(kind="newest", what="Nothing owns it, and it is at its type's newest version."))
    return reasons


def _of_the_fleet(state: GraphState, fleet: Fleet) -> list[Reason]:
    if fleet.broker_error:
        what = f"The broker is out of reach ({fleet.broker_error}). Messages wait; nothing is lost."
        way_out = "Check CELERY_BROKER_URL; recovery goes on when it is back."
        return [Reason(kind="broker-unreachable", what=what, way_out=way_out)]
    if not fleet.workers:
        also = f" ({len(fleet.elsewhere)} serve other queues)" if fleet.elsewhere else ""
        waiting = f"; {fleet.queued} messages wait" if fleet.queued else ""
        way_out = "Start one: `celery -A graph_migrator worker -Q migrations`."
        what = f"No worker answers on the queue{also}{waiting}."
        return [Reason(kind="no-worker", what=what, way_out=way_out)]
    kind = state.graph.graph_type
    serving = [name for name, types in fleet.workers.items() if kind in types]
    reasons = []
    if not serving:
        what = f"{len(fleet.workers)} workers answer, and none of them knows the type {kind!r}."
        way_out = "Check GRAPH_MIGRATOR_TYPES on the workers."
        reasons.append(Reason(kind="unknown-type", what=what, way_out=way_out))
    reasons.extend(_code_differs(kind, fleet))
    if fleet.queued:
        what = f"{fleet.queued} messages wait in the queue before {len(fleet.workers)} workers."
        reasons.append(Reason(kind="queue", what=what, way_out="More workers take it sooner."))
    if not reasons:
        what = f"{len(serving)} workers serve it; its message should be taken at once."
        reasons.append(Reason(kind="waiting", what=what))
    return reasons


def _code_differs(kind: str, fleet: Fleet) -> list[Reason]:
    told = {name: types[kind] for name, types in fleet.workers.items() if kind in types}
    if len(set(told.values())) < 2:
        return []
    listed = ", ".join(f"{name}: {digest}" for name, digest in sorted(told.items()))
    what = f"The workers have different code for {kind!r} (a rolling deploy?): {listed}."
    return [
        Reason(kind="other-code", what=what, way_out="Finish the deploy; then `retry`, if it has failed.")
    ]
