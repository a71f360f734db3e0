"""Beginning the migration of one member, as its message asks for."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from graph_migrator.core.decisions import Ignored
from graph_migrator.core.errors import RolloutRefused, UnknownGraphType
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.model import Caller, Dispatch
from graph_migrator.core.execution.recorded import record_outcome
from graph_migrator.core.graph_types.registry import graph_type
from graph_migrator.core.reports import MigrationReport
from graph_migrator.core.rollouts.rows import changed_hops, query, request_id
from graph_migrator.core.rollouts.statuses import RolloutStatus
from graph_migrator.core.store.session import Executor


@dataclass(frozen=True)
class OtherCode:
    """This process has not the code that the rollout was planned with; another worker may have it."""

    hops: tuple[str, ...]


def begin_member(
    executor: Executor, rollout_id: UUID, graph_id: UUID, number: int
) -> Dispatch | MigrationReport | Ignored | OtherCode:
    """Begin one try of one member's migration.

    The message names the try and nothing else; target, direction and code are those of the rollout's row.

    Args:
        executor: The session to do it on; it is left without any lock.
        rollout_id: The rollout.
        graph_id: The member's graph.
        number: Which try; the message of another one does nothing.

    Returns:
        As `begin_migration`; or `OtherCode`, and nothing was recorded.

    Raises:
        GraphMigratorError: As `begin_migration`.
        RolloutRefused: The rollout is being cancelled; recorded, so that the member settles.
    """
    with executor.cursor() as cursor:
        found = query(
            cursor,
            "SELECT r.status, r.graph_type, r.to_version, r.direction, r.plan, r.requested_by, r.reason, "
            "EXISTS (SELECT FROM requests q WHERE q.task_id = m.request_id::text) AS known "
            "FROM rollout_members m JOIN rollouts r ON r.id = m.rollout_id "
            "WHERE m.rollout_id = %s AND m.graph_id = %s AND m.number = %s "
            "AND m.status = 'dispatched'",
            rollout_id, graph_id, number,
        )  # fmt: skip
    if not found:
        return Ignored("this try of the member is over")
    (rollout,) = found
    reason = f"rollout {str(rollout_id)[:8]}" + (f": {rollout.reason}" if rollout.reason else "")
    caller = Caller(str(request_id(rollout_id, graph_id, number)), rollout.requested_by, reason[:2_000])
    if rollout.status == RolloutStatus.CANCELLING and not rollout.known:
        # Also where no worker has the planned code any more: the member must settle, or the rollout never ends.
        refusal = RolloutRefused(str(rollout_id), "a migration", rollout.status, "nothing more is begun")
        record_outcome(executor, caller, graph_id, rollout.to_version, refusal)
        raise refusal
    try:
        changed = changed_hops(rollout.plan, graph_type(rollout.graph_type))
    except UnknownGraphType:
        changed = (rollout.graph_type,)
    if changed:
        return OtherCode(changed)
    return begin_migration(executor, graph_id, rollout.to_version, caller=caller, direction=rollout.direction)
