"""Why a graph is not moving, and the way out. `status` shows it; a page or an API can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from graph_migrator.core.errors import UnreachableGraph
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection.graph_state import GraphState
from graph_migrator.core.inspection.graphs import GraphSummary
from graph_migrator.core.inspection.quantities import count, duration, plural
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.core.store.lock_sessions import LockSession


@dataclass
class Fleet:
    """What the workers answered.

    Attributes:
        workers: Those that serve our queue: by worker, a digest of its code by graph type.
        versions: Of the same workers: the oldest and newest version of each graph type.
        broken: Workers whose types cannot be loaded, and why: they requeue every message.
        elsewhere: Workers of ours that serve other queues only.
        queued: Messages that wait in our queue; None where the broker does not say.
        broker_error: Why the broker could not be asked.
    """

    workers: dict[str, dict[str, str]] = field(default_factory=dict)
    versions: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
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
    way_out: str | None = Field(None, description="What an operator can do about it.")

    def __str__(self) -> str:
        return self.what if self.way_out is None else f"{self.what} {self.way_out}"


def explain(state: GraphState, sessions: list[LockSession], ask_workers: AskWorkers) -> list[Reason]:
    """Find the reasons why a graph is not moving, the most important first.

    Args:
        state: What Postgres knows.
        sessions: The sessions that hold the graph's lock or wait for it.
        ask_workers: Asks the broker and the workers. It takes a second, so it is called only where the answer matters.
    """
    slug, migration = state.graph.slug, state.migration
    if state.graph.partially_migrated:
        way_out = (
            f"Finish it: `graph-migrator retry {slug}`. If you have corrected its rows by hand: "
            f"`graph-migrator release {slug} --whole`."
        )
        what = "It was released by force in the middle of a batched hop: it is partially migrated."
        return [Reason(kind="partially-migrated", what=what, way_out=way_out)]
    calls = [Reason(kind="call-waits", what=each.fact, way_out=each.way_out) for each in state.waiting_calls]
    waiting = [*calls, *_waiting_begin(sessions)]
    if migration is None or (migration.status.is_settled and migration.status is not MigrationStatus.FAILED):
        idle = _idle_graph(state, ask_workers)
        return [*waiting, *(each for each in idle if not (calls and each.kind == "behind"))]
    match migration.status:
        case MigrationStatus.FAILED:
            return [*waiting, _failed_migration(state), *_unreachable(state.graph)]
        case MigrationStatus.PAUSED:
            return [_paused_migration(state), *calls]
    return [*_live_migration(state, sessions, ask_workers), *calls]


def _failed_migration(state: GraphState) -> Reason:
    slug = state.graph.slug
    if state.checkpoint_done is not None:
        rows = count(state.checkpoint_done, "row")
        what = f"A batched hop stopped after {rows}: the graph is partially migrated."
    else:
        what = f"The graph is whole at v{state.graph.version}; nothing of the failed hop was kept."
    force = "" if state.checkpoint_done is None else " --force"
    way_out = (
        f"`graph-migrator history {slug}` shows what failed. Correct the hop, or the data with graph_repair "
        f"(docs/how-to.md), and `graph-migrator retry {slug}`; "
        f"or end the migration with `graph-migrator release {slug}{force}`."
    )
    return Reason(kind="failed", what=what, way_out=way_out)


def _paused_migration(state: GraphState) -> Reason:
    slug = state.graph.slug
    resume = (
        f"To correct its data first: graph_repair (docs/how-to.md). `graph-migrator resume {slug}` goes on"
    )
    if state.checkpoint_done is None:
        way_out = f"{resume}, `graph-migrator cancel {slug}` ends it at this version."
        return Reason(kind="paused", what="An operator paused it.", way_out=way_out)
    what = f"An operator paused it in the middle of a hop, after {count(state.checkpoint_done, 'row')}."
    return Reason(kind="paused", what=what, way_out=f"{resume}; only then is the graph whole again.")


def _live_migration(state: GraphState, sessions: list[LockSession], ask_workers: AskWorkers) -> list[Reason]:
    holders = [each for each in sessions if each.holds]
    named = "; ".join(each.describe() for each in holders)
    if state.running is not None and holders:
        return [*_quiet_hop(state, holders), Reason(kind="working", what=f"A worker is on it: {named}.")]
    fleet = ask_workers()
    if state.running is not None:
        what = "Its executor was lost a moment ago. Recovery in any living worker sends the hop again within seconds."
        return [Reason(kind="executor-lost", what=what), *_workers(state, fleet)]
    reasons = _workers(state, fleet)
    if state.requeued:
        times = count(state.requeued, "time")
        what = (
            f"Workers whose code for the hop is not the planned one have requeued it {times} "
            f"in {duration(state.requeued_seconds or 0.0)}."
        )
        way_out = (
            f"Deploy the planned code. After {duration(settings().deploy_seconds)} it fails, and `retry` plans with "
            "the code that is there."
        )
        reasons.insert(0, Reason(kind="other-code", what=what, way_out=way_out))
    if holders:
        what = f"The graph's lock is held by {named}."
        way_out = "Let it finish, or end that session; the worker tries again each second."
        reasons.insert(0, Reason(kind="lock-held", what=what, way_out=way_out))
    if state.lost_in_a_row:
        times = count(state.lost_in_a_row, "time")
        what = f"Its hop lost its executor {times} in a row; the last time {state.last_loss}."
        way_out = (
            f"`graph-migrator history {state.graph.slug}` shows each. It runs again after a pause that grows."
        )
        reasons.insert(0, Reason(kind="interrupted", what=what, way_out=way_out))
    if state.deadline_in is not None:
        what = f"Recovery sends it again in {duration(max(0.0, state.deadline_in))}."
        reasons.append(Reason(kind="deadline", what=what))
    return reasons


def _quiet_hop(state: GraphState, holders: list[LockSession]) -> list[Reason]:
    """A hop that computes runs no statement, and neither does one in an endless loop."""
    idle = max((each.idle or 0.0 for each in holders if each.exclusive), default=0.0)
    running, migration = state.running, state.migration
    if running is None or migration is None or idle <= settings().quiet_seconds:
        return []
    what = f"Hop {running.hop_name!r} has run no statement for {duration(idle)}: it computes, or never ends."
    if migration.status is not MigrationStatus.RUNNING:
        what += " What was asked for takes effect at its next boundary only."
    way_out = (
        f"Look at the process: `py-spy dump --pid {running.pid}` on {running.worker}. To end it: `graph-migrator "
        f"release {state.graph.slug} --force --terminate`, which ends the process too; then give the hop a timeout=."
    )
    return [Reason(kind="quiet-hop", what=what, way_out=way_out)]


def _waiting_begin(sessions: list[LockSession]) -> list[Reason]:
    """A migration that wants to begin has no row yet: it is seen as an exclusive lock that is waited for."""
    waiters = [each for each in sessions if not each.holds and each.exclusive]
    if not waiters:
        return []
    writers = "; ".join(each.describe() for each in sessions if each.holds) or "writers that are just ending"
    return [
        Reason(
            kind="open-write-transactions",
            what=f"A migration wants to begin ({waiters[0].describe()}) and waits for open write transactions: "
            f"{writers}.",
            way_out="Let them finish, or end those sessions; it is refused after "
            "GRAPH_MIGRATOR_WRITER_DRAIN_SECONDS and changes nothing.",
        )
    ]


def _idle_graph(state: GraphState, ask_workers: AskWorkers) -> list[Reason]:
    graph = state.graph
    kind = graph_types().get(graph.graph_type)
    reasons = []
    if graph.read_only == "owner":
        what = "Its owner locked it against writers."
        way_out = f"`graph-migrator unlock {graph.slug}`."
        reasons.append(Reason(kind="owner-locked", what=what, way_out=way_out))
    if kind is None:
        what = f"Nothing owns it. Its type {graph.graph_type!r} is not known here."
        reasons.append(Reason(kind="unknown-type-here", what=what, way_out="See GRAPH_MIGRATOR_TYPES."))
    elif unreachable := _unreachable(graph):
        reasons.extend(unreachable)
    elif graph.version < kind.newest:
        what = f"Nothing owns it. v{kind.newest} is there for it."
        reasons.append(Reason(kind="behind", what=what, way_out=f"`graph-migrator migrate {graph.slug}`."))
        # It may have been asked for already: a call leaves no trace here before a worker has taken it.
        reasons.extend(r for r in _workers(state, ask_workers()) if r.kind != "waiting")
    elif not reasons:
        reasons.append(Reason(kind="newest", what="Nothing owns it, and it is at its type's newest version."))
    return reasons


def _unreachable(graph: GraphSummary) -> list[Reason]:
    """No hop leads from a version that the type does not know; the same sentence as in the refusal of `migrate`."""
    kind = graph_types().get(graph.graph_type)
    if kind is None or kind.oldest <= graph.version <= kind.newest:
        return []
    error = UnreachableGraph(graph.slug, kind.name, graph.version, kind.oldest, kind.newest)
    return [Reason(kind="unreachable", what=error.fact, way_out=error.way_out)]


def _workers(state: GraphState, fleet: Fleet) -> list[Reason]:
    if fleet.broker_error:
        what = f"The broker is out of reach ({fleet.broker_error}). Messages wait; nothing is lost."
        way_out = "Check CELERY_BROKER_URL; recovery goes on when it is back."
        return [Reason(kind="broker-unreachable", what=what, way_out=way_out)]
    if not fleet.workers:
        return [_no_worker(fleet)]
    kind = state.graph.graph_type
    serving = [name for name, types in fleet.workers.items() if kind in types]
    reasons = []
    if not serving:
        what = f"{count(len(fleet.workers), 'worker')} answered, and none of them knows the type {kind!r}."
        way_out = "Check GRAPH_MIGRATOR_TYPES on the workers."
        reasons.append(Reason(kind="unknown-type", what=what, way_out=way_out))
    reasons.extend(_code_differs(kind, fleet))
    if fleet.queued:
        what = f"{_messages(fleet.queued)} in the queue before {count(len(fleet.workers), 'worker')}."
        reasons.append(Reason(kind="queue", what=what, way_out="With more workers it starts sooner."))
    if not reasons:
        serve = plural(len(serving), "worker serves", "workers serve")
        what = f"{serve} it; its message should be received at once."
        reasons.append(Reason(kind="waiting", what=what))
    return reasons


def _no_worker(fleet: Fleet) -> Reason:
    elsewhere = len(fleet.elsewhere)
    also = f" ({plural(elsewhere, 'serves', 'serve')} other queues)" if elsewhere else ""
    waiting = f"; {_messages(fleet.queued)}" if fleet.queued else ""
    way_out = "Start one: `celery -A graph_migrator worker -Q migrations`."
    return Reason(kind="no-worker", what=f"No worker answers on the queue{also}{waiting}.", way_out=way_out)


def _messages(number: int) -> str:
    return plural(number, "message waits", "messages wait")


def _code_differs(kind: str, fleet: Fleet) -> list[Reason]:
    digests = {name: types[kind] for name, types in fleet.workers.items() if kind in types}
    if len(set(digests.values())) < 2:
        return []
    listed = ", ".join(f"{name}: {digest}" for name, digest in sorted(digests.items()))
    what = f"The workers have different code for {kind!r} (a rolling deploy?): {listed}."
    way_out = "Finish the deploy; then `retry`, if it has failed."
    return [Reason(kind="other-code", what=what, way_out=way_out)]
