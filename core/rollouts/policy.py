"""Policies: graphs that are behind the newest version of their type move forward by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import SimpleNamespace
from typing import Any, Final

from psycopg2.extras import Json
from pydantic import BaseModel, ConfigDict, Field

from graph_migrator.core.errors import InvalidRequest, UnknownGraphType
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.graph_types.registry import graph_type, graph_types
from graph_migrator.core.rollouts.operations import Operator
from graph_migrator.core.rollouts.request import RolloutRequest
from graph_migrator.core.rollouts.rows import query
from graph_migrator.core.rollouts.selection import LEFT_OUT
from graph_migrator.core.rollouts.start import start
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.rollouts.workers import WorkerState, lacking, live_workers, served
from graph_migrator.core.settings import settings
from graph_migrator.core.store.session import Executor

STARTED_BY: Final = "policy"
MOST_SETTLE_SECONDS: Final = 86_400.0


class Mode(StrEnum):
    """Who starts rollouts of a type."""

    MANUAL = "manual"
    AUTOMATIC = "automatic"


class Policy(BaseModel):
    """The policy of a graph type."""

    model_config = ConfigDict(frozen=True)

    graph_type: str
    mode: Mode = Mode.MANUAL
    strategy: Strategy = Field(
        Strategy(gate="auto"),
        description="Of the rollouts that it starts. Their gate opens by itself by default.",
    )
    settle_seconds: float = Field(
        60,
        ge=0,
        le=MOST_SETTLE_SECONDS,
        description="So long all live workers must have served the same code: a rolling deploy is over by then.",
    )
    changed_by: str | None = None
    why: str | None = None
    changed_at: datetime | None = Field(None, description="None where it was never set.")


class PolicyState(BaseModel):
    """A policy, and what it does at this moment."""

    policy: Policy
    state: str = Field(description="What it does, or what it waits for.")


# ── deciding ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class PolicyFacts:
    """What a policy's next step rests on.

    Attributes:
        mode: Of the policy.
        live_rollout: The type's live rollout, if any.
        fleet_held: All rollouts are held.
        workers: How many workers live.
        lacking: Those that serve other code than this process, and what they have.
        agreed_seconds: How long all live workers have served the same code.
        settle_seconds: How long they must have.
        behind: There are graphs below the newest version that it may move.
        cancelled: An automatic rollout to this version with this code was cancelled by an operator since the policy
            was set.
    """

    mode: Mode
    live_rollout: str | None = None
    fleet_held: bool = False
    workers: int = 1
    lacking: tuple[tuple[str, str], ...] = ()
    agreed_seconds: float = 0.0
    settle_seconds: float = 60.0
    behind: bool = False
    cancelled: str | None = None


@dataclass(frozen=True)
class StartRollout:
    """Start a rollout of the graphs that are behind."""


@dataclass(frozen=True)
class Wait:
    """Nothing to do, and why."""

    why: str


def decide_policy(facts: PolicyFacts) -> StartRollout | Wait:
    """Decide whether a policy starts a rollout now."""
    if facts.mode is Mode.MANUAL:
        return Wait("rollouts are started by hand")
    if facts.live_rollout is not None:
        return Wait(f"rollout {facts.live_rollout[:8]} of the type is live")
    if facts.fleet_held:
        return Wait("all rollouts are held: `graph-migrator rollout unhold`")
    if not facts.workers:
        return Wait("no worker lives")
    if facts.lacking:
        name, has = facts.lacking[0]
        more = f", and {len(facts.lacking) - 1} more" if len(facts.lacking) > 1 else ""
        return Wait(f"worker {name} {has}{more}: `graph-migrator workers`")
    if facts.agreed_seconds < facts.settle_seconds:
        left = facts.settle_seconds - facts.agreed_seconds
        return Wait(f"the workers have agreed for {facts.agreed_seconds:.0f} s; it starts in {left:.0f} s")
    if facts.cancelled is not None:
        return Wait(
            f"rollout {facts.cancelled[:8]} with this code was cancelled; it starts another one after the next deploy, "
            "or when the policy is set again"
        )
    if not facts.behind:
        return Wait("no graph is behind")
    return StartRollout()


# ── reading and setting ─────────────────────────────────────────────────────────────────────────────


def policies(executor: Executor, name: str | None = None) -> list[PolicyState]:
    """The policies in force, by type, each with what it waits for.

    Args:
        executor: A session without an open transaction.
        name: Of one type; by default of all that this process knows or that have one.

    Raises:
        UnknownGraphType: Nobody knows this type.
    """
    with executor.cursor() as cursor:
        stored = _stored(cursor)
    known = graph_types()
    if name is not None and name not in known and name not in stored:
        graph_type(name)  # raises
    names = sorted({*known, *stored}) if name is None else [name]
    found = []
    for each in names:
        policy = stored.get(each, Policy(graph_type=each))
        if each in known:
            decision = decide_policy(_facts(executor, policy, known[each]))
            state = decision.why if isinstance(decision, Wait) else "it starts a rollout at the next sweep"
        else:
            state = "this process does not know the type; a worker that does decides"
        found.append(PolicyState(policy=policy, state=state))
    return found


def set_policy(
    executor: Executor,
    name: str,
    mode: Mode,
    operator: Operator,
    *,
    strategy: Strategy | None = None,
    settle_seconds: float | None = None,
) -> Policy:
    """Set a type's policy. The older one is kept as a record.

    Args:
        executor: A session without an open transaction.
        name: The graph type.
        mode: Who starts its rollouts.
        operator: Who asks.
        strategy: Of the rollouts that it starts; as it was where None.
        settle_seconds: How long all workers must agree; as it was where None.

    Raises:
        UnknownGraphType: This process does not know the type. Nothing was changed.
        InvalidRequest: The time is no such time.
    """
    graph_type(name)
    if settle_seconds is not None and not 0 <= settle_seconds <= MOST_SETTLE_SECONDS:
        raise InvalidRequest("settle-seconds", f"it is between 0 and {MOST_SETTLE_SECONDS:.0f}")
    with executor.transaction(), executor.cursor() as cursor:
        before = _stored(cursor, name).get(name, Policy(graph_type=name))
        (row,) = query(
            cursor,
            "INSERT INTO policies (graph_type, mode, strategy, settle_seconds, changed_by, why) "
            "VALUES (%s, %s, %s, %s, %s, %s) RETURNING *",
            name, str(mode), Json((strategy or before.strategy).model_dump(mode="json")),
            before.settle_seconds if settle_seconds is None else settle_seconds, operator.name, operator.why,
        )  # fmt: skip
    return _policy(row)


def _stored(cursor: Any, name: str | None = None) -> dict[str, Policy]:
    rows = query(
        cursor,
        "SELECT DISTINCT ON (graph_type) * FROM policies WHERE %s::text IS NULL OR graph_type = %s "
        "ORDER BY graph_type, id DESC",
        name, name,
    )  # fmt: skip
    return {row.graph_type: _policy(row) for row in rows}


def _policy(row: SimpleNamespace) -> Policy:
    return Policy.model_validate({name: getattr(row, name) for name in Policy.model_fields})


# ── the controller's step ───────────────────────────────────────────────────────────────────────────


def start_what_is_behind(executor: Executor) -> list[tuple[str, int, int]]:
    """Start the rollouts that policies ask for.

    Args:
        executor: A session without an open transaction, of the process that sweeps.

    Returns:
        Type, target and number of graphs of each rollout that was started.
    """
    with executor.cursor() as cursor:
        stored = _stored(cursor)
    started = []
    for name, policy in stored.items():
        if policy.mode is Mode.MANUAL:
            continue
        try:
            kind = graph_type(name)
        except UnknownGraphType:
            continue  # a worker that knows it decides at a later sweep
        if isinstance(decide_policy(_facts(executor, policy, kind)), StartRollout):
            request = RolloutRequest(
                graph_type=name,
                strategy=policy.strategy,
                automatic=True,
                requested_by=STARTED_BY,
                reason=f"policy of {policy.changed_by or 'an operator'}"
                + (f": {policy.why}" if policy.why else ""),
            )
            begun = start(executor, request)
            started.append((name, begun.to_version, begun.graphs))
    return started


def _facts(executor: Executor, policy: Policy, kind: GraphType) -> PolicyFacts:
    if policy.mode is Mode.MANUAL:
        return PolicyFacts(policy.mode)
    code = served(kind)
    with executor.cursor() as cursor:
        live = live_workers(cursor, settings().queue)
        (found,) = query(
            cursor,
            _FACTS,
            {
                "type": kind.name, "target": kind.newest, "oldest": kind.oldest, "code": code.code,
                "set_at": policy.changed_at, "agreed": _agreed_since(live),
            },
        )  # fmt: skip
    return PolicyFacts(
        mode=policy.mode,
        live_rollout=found.live_rollout,
        fleet_held=found.fleet_held,
        workers=len(live),
        lacking=tuple(lacking(live, kind.name, code).items()),
        agreed_seconds=found.agreed_seconds or 0.0,
        settle_seconds=policy.settle_seconds,
        behind=found.behind,
        cancelled=found.cancelled,
    )


def _agreed_since(live: Sequence[WorkerState]) -> datetime | None:
    return max((worker.types_since for worker in live if worker.types_since is not None), default=None)


# Nothing is looked for while a rollout of the type is live: it may have a million graphs to move.
_FACTS = f"""
SELECT r.id::text AS live_rollout, f.held_at IS NOT NULL AS fleet_held,
       extract(epoch FROM clock_timestamp() - %(agreed)s::timestamptz)::float8 AS agreed_seconds,
       (SELECT c.id::text FROM rollouts c WHERE c.automatic AND c.graph_type = %(type)s AND c.to_version = %(target)s
        AND c.code = %(code)s AND c.finished_at > %(set_at)s::timestamptz
        AND EXISTS (SELECT FROM rollout_changes x WHERE x.rollout_id = c.id AND x.what = 'cancel')
        ORDER BY c.started_at DESC LIMIT 1) AS cancelled,
       r.id IS NULL AND EXISTS (
           SELECT FROM graphs g WHERE g.graph_type = %(type)s AND g.version >= %(oldest)s AND g.version < %(target)s
           AND {LEFT_OUT}) AS behind
FROM rollout_fleet f
LEFT JOIN rollouts r ON r.graph_type = %(type)s AND r.status IN ('running', 'held', 'cancelling')
"""  # noqa: S608 - own text
