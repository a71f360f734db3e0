"""What is wrong with rollouts and with the load that slows them, in the words of `core.inspection.overview`."""

from __future__ import annotations

from types import SimpleNamespace

from graph_migrator.core.inspection.overview import Trouble
from graph_migrator.core.inspection.quantities import quantity
from graph_migrator.core.rollouts.health import Level
from graph_migrator.core.rollouts.inspection import evidence, health
from graph_migrator.core.rollouts.rows import query
from graph_migrator.core.rollouts.statuses import HoldReason
from graph_migrator.core.store.session import Executor

_HELD = """
SELECT r.id, r.graph_type, r.to_version, r.hold, (r.hold->>'since')::timestamptz AS since,
       (SELECT coalesce(sum(s.pending + s.dispatched), 0)::bigint FROM rollout_stages s
        WHERE s.rollout_id = r.id) AS graphs
FROM rollouts r WHERE r.status = 'held' ORDER BY since
"""


def troubles(executor: Executor) -> list[Trouble]:
    """Rollouts that are held, the hold of all rollouts, and health signals over their limits."""
    with executor.cursor() as cursor:
        (fleet,) = query(cursor, "SELECT held_at, held_by, why FROM rollout_fleet")
        held = query(cursor, _HELD)
    return [*_of_the_fleet(fleet), *(_of_a_rollout(row, fleet) for row in held), *_of_load(executor)]


def is_fleet_held(executor: Executor) -> bool:
    """Whether all rollouts are held."""
    with executor.cursor() as cursor:
        (fleet,) = query(cursor, "SELECT held_at FROM rollout_fleet")
    return fleet.held_at is not None


def _of_the_fleet(fleet: SimpleNamespace) -> list[Trouble]:
    if fleet.held_at is None:
        return []
    by = f" by {fleet.held_by}" if fleet.held_by else ""
    why = f": {fleet.why}" if fleet.why else ""
    return [
        Trouble(
            kind="fleet-held", what=f"All rollouts are held{by}{why}.", since=fleet.held_at, graphs=0,
            next_step="Let rollouts go on.", command="graph-migrator rollout unhold",
        )
    ]  # fmt: skip


def _of_a_rollout(row: SimpleNamespace, fleet: SimpleNamespace) -> Trouble:
    reason, short = HoldReason(row.hold["reason"]), str(row.id)[:8]
    remedy = reason.remedy.format(rollout=short)
    return Trouble(
        kind="held",
        what=f"The rollout of {row.graph_type!r} to v{row.to_version} is held: {evidence(reason, row.hold, fleet)}.",
        since=row.since, graphs=row.graphs, example=str(row.id), next_step=f"{remedy[0].upper()}{remedy[1:]}.",
        command=f"graph-migrator rollout show {short}",
    )  # fmt: skip


def _of_load(executor: Executor) -> list[Trouble]:
    return [
        Trouble(
            kind="over-limit", since=each.since, graphs=0, next_step=each.remedy or "",
            what=f"{each.signal}, {each.meaning}, is or was over its limit and is "
            f"{quantity(each.value, each.unit) or 'not known'} now: it {each.level.effect}.",
            command="graph-migrator health",
        )
        for each in health(executor)
        if each.level in {Level.SLOW, Level.STOP}
    ]  # fmt: skip
