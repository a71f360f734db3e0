"""Beginning the migration of one member, as its message asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from graph_migrator.core.decisions import Ignored, Later
from graph_migrator.core.errors import RolloutRefused, UnknownGraphType
from graph_migrator.core.execution import failpoints
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.model import Caller, Dispatch
from graph_migrator.core.execution.recorded import record_outcome
from graph_migrator.core.graph_types.registry import graph_type
from graph_migrator.core.reports import MigrationReport
from graph_migrator.core.rollouts.rows import changed_hops, query, request_id
from graph_migrator.core.rollouts.statuses import PackStatus, RolloutStatus
from graph_migrator.core.store.session import Executor


@dataclass(frozen=True)
class Held:
    """The rollout does not run, or its pack is over: nothing more of the pack is begun."""

    why: str


@dataclass(frozen=True)
class OtherCode:
    """This process does not have the code that the rollout was planned with; another worker may have it."""

    hops: tuple[str, ...]


def begin_member(
    executor: Executor,
    rollout_id: UUID,
    graph_id: UUID,
    number: int,
    *,
    pack_id: UUID | None = None,
    turns: int | None = None,
) -> Dispatch | MigrationReport | Ignored | Later | OtherCode | Held:
    """Begin one try of one member's migration.

    The message names the try and nothing else; target, direction and code are those of the rollout's row.

    Args:
        executor: The session to do it on; it is left without any lock.
        rollout_id: The rollout.
        graph_id: The member's graph.
        number: Which try; the message of another one does nothing.
        pack_id: The pack that is to begin it; None for a message of its own, which a hold does not stop.
        turns: As for `begin_migration`.

    Returns:
        As `begin_migration`; or `OtherCode` or `Held`, and nothing was recorded.

    Raises:
        GraphMigratorError: As `begin_migration`.
        RolloutRefused: The rollout is being cancelled; recorded, so that the member settles.
    """
    with executor.cursor() as cursor:
        found = query(
            cursor,
            "SELECT r.status, r.graph_type, r.to_version, r.direction, r.plan, r.requested_by, r.reason, "
            "EXISTS (SELECT FROM requests q WHERE q.task_id = m.request_id::text) AS known, p.status AS pack, "
            "f.held_at IS NOT NULL AS fleet_held "
            "FROM rollout_members m JOIN rollouts r ON r.id = m.rollout_id CROSS JOIN rollout_fleet f "
            "LEFT JOIN packs p ON p.id = m.pack_id WHERE m.rollout_id = %s AND m.graph_id = %s AND m.number = %s "
            "AND m.status = 'dispatched' AND m.pack_id IS NOT DISTINCT FROM %s",
            rollout_id, graph_id, number, pack_id,
        )  # fmt: skip
    if not found:
        return Ignored("this try of the member is over")
    (rollout,) = found
    if pack_id is not None:
        if rollout.status != RolloutStatus.RUNNING or rollout.fleet_held:
            return Held("all rollouts are held" if rollout.fleet_held else f"the rollout is {rollout.status}")
        if rollout.pack != PackStatus.RUNNING:
            return Held("the controller has closed the pack")
        failpoints.hit("pack_looked")
    caller = caller_of(rollout_id, graph_id, number, by=rollout.requested_by, reason=rollout.reason)
    if rollout.status == RolloutStatus.CANCELLING and not rollout.known:
        # Also where no worker has the planned code any more: the member must settle, or the rollout never ends.
        refusal = RolloutRefused(str(rollout_id), "a migration", rollout.status, "nothing more is begun")
        record_outcome(executor, caller, graph_id, rollout.to_version, refusal)
        raise refusal
    changed = other_code(rollout.plan, rollout.graph_type)
    if changed is not None:
        return changed
    return begin_migration(
        executor, graph_id, rollout.to_version, caller=caller, direction=rollout.direction, turns=turns
    )


def caller_of(rollout_id: UUID, graph_id: UUID, number: int, *, by: str | None, reason: str | None) -> Caller:
    """Who asks for one try of one member's migration."""
    why = f"rollout {str(rollout_id)[:8]}" + (f": {reason}" if reason else "")
    return Caller(str(request_id(rollout_id, graph_id, number)), by, why[:2_000])


def other_code(plan: Sequence[Mapping[str, Any]], type_name: str) -> OtherCode | None:
    """What of a frozen plan this process has other code for; None where it has all of it."""
    try:
        changed = changed_hops(plan, graph_type(type_name))
    except UnknownGraphType:
        changed = (type_name,)
    return OtherCode(changed) if changed else None
