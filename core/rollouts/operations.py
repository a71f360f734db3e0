"""What operators can do to a rollout. Each verb locks it, follows one edge or is refused, and is written down."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from psycopg2.extras import Json
from pydantic import BaseModel, Field, ValidationError

from graph_migrator.core.errors import InvalidRequest, RolloutInFlight, RolloutRefused, UnknownRollout
from graph_migrator.core.events import types as events
from graph_migrator.core.graph_types.registry import graph_type
from graph_migrator.core.planning import Step
from graph_migrator.core.plural import plural
from graph_migrator.core.rollouts.rows import RESUME, changed_hops, query, record_change
from graph_migrator.core.rollouts.statuses import HoldReason, RolloutStatus
from graph_migrator.core.rollouts.strategy import FROZEN, Strategy
from graph_migrator.core.store.errors import sqlstate
from graph_migrator.core.store.session import Executor

_STEERABLE = (RolloutStatus.RUNNING, RolloutStatus.HELD)


@dataclass(frozen=True)
class Operator:
    """Who asks, and why.

    Attributes:
        name: Who.
        why: Why.
        request: The id of the call, where its message may be delivered twice.
    """

    name: str | None = None
    why: str | None = None
    request: str | None = None


class RolloutVerbReport(BaseModel):
    """What a verb did."""

    rollout_id: UUID | None = Field(description="None where all rollouts were meant.")
    status: RolloutStatus | None
    message: str
    graphs: int = Field(0, description="How many members it changed.")


def find_rollout(cursor: Any, which: str) -> UUID:
    """The rollout with this id, the beginning of an id, or the latest of a graph type.

    Raises:
        UnknownRollout: There is none, or several fit.
    """
    found = query(
        cursor, "SELECT id FROM rollouts WHERE graph_type = %s ORDER BY started_at DESC LIMIT 1", which
    )
    if not found and len(which) >= 4 and set(which.lower()) <= set("0123456789abcdef-"):
        found = query(cursor, "SELECT id FROM rollouts WHERE id::text LIKE %s LIMIT 2", f"{which.lower()}%")
    if len(found) != 1:
        raise UnknownRollout(which)
    return found[0].id  # type: ignore[no-any-return]


@contextmanager
def _locked(executor: Executor, which: str) -> Iterator[tuple[Any, SimpleNamespace]]:
    with executor.transaction(), executor.cursor() as cursor:
        rollout_id = find_rollout(cursor, which)
        (row,) = query(cursor, "SELECT * FROM rollouts WHERE id = %s FOR UPDATE", rollout_id)
        yield cursor, row


def _require(row: SimpleNamespace, verb: str, statuses: Sequence[RolloutStatus], why: str) -> None:
    if row.status not in statuses:
        raise RolloutRefused(str(row.id), verb, row.status, why)


def _report(
    executor: Executor,
    row: SimpleNamespace,
    verb: str,
    operator: Operator,
    *,
    status: RolloutStatus,
    message: str,
    graphs: int = 0,
) -> RolloutVerbReport:
    """What a verb did, for who asked; and as an event, once it is committed."""
    event = events.RolloutChanged(
        rollout_id=row.id, graph_type=row.graph_type, to_version=row.to_version, verb=verb, status=str(status),
        says=message, requested_by=operator.name, reason=operator.why,
    )  # fmt: skip
    executor.after_commit(lambda: events.emit(event))
    return RolloutVerbReport(rollout_id=row.id, status=status, message=message, graphs=graphs)


def _record(
    cursor: Any, rollout_id: UUID | None, verb: str, before: Any, after: Any, operator: Operator
) -> None:
    record_change(cursor, rollout_id, verb, before, after, operator.name, operator.why, operator.request)


def pause(executor: Executor, which: str, operator: Operator) -> RolloutVerbReport:
    """Hold a rollout until `resume`. Graphs in flight end their migration.

    Raises:
        UnknownRollout, RolloutRefused: Nothing was changed.
    """
    with _locked(executor, which) as (cursor, row):
        _require(row, "pause", _STEERABLE, "only one that is running or held can be paused")
        hold = {"reason": HoldReason.OPERATOR, "by": operator.name, "why": operator.why}
        # Over another hold too: one that ends by itself must not end what an operator asked for.
        cursor.execute(
            "UPDATE rollouts SET status = 'held', hold = %s || jsonb_build_object('since', clock_timestamp()) "
            "WHERE id = %s",
            (Json(hold), row.id),
        )
        _record(cursor, row.id, "pause", row.hold, hold, operator)
        return _report(executor, row, "pause", operator, status=RolloutStatus.HELD, message="paused")


def resume(
    executor: Executor, which: str, operator: Operator, *, accept_new_code: bool = False
) -> RolloutVerbReport:
    """Let a held rollout go on. Failures are counted anew.

    Args:
        executor: A session without an open transaction.
        which: The rollout.
        operator: Who asks.
        accept_new_code: Freeze the code that this process has, in place of the code that was planned. Graphs in
            flight go on with it too, from their next hop that has not begun.

    Raises:
        UnknownRollout, RolloutRefused: Nothing was changed.
    """
    with _locked(executor, which) as (cursor, row):
        _require(row, "resume", (RolloutStatus.HELD,), "only a held one can be resumed")
        reason = HoldReason(row.hold["reason"])
        if reason is HoldReason.GATE:
            raise RolloutRefused(str(row.id), "resume", row.status, "its gate is opened by `rollout promote`")
        if reason is HoldReason.FLEET:
            raise RolloutRefused(
                str(row.id), "resume", row.status, "all rollouts are held; see `rollout unhold`"
            )
        if reason is HoldReason.WINDOW:
            raise RolloutRefused(
                str(row.id), "resume", row.status, "its window is shut; change it with `rollout set`"
            )
        if reason is HoldReason.HEALTH:
            why = "load is too high; `rollout set` with health false ignores it"
            raise RolloutRefused(str(row.id), "resume", row.status, why)
        replanned = _settle_code(cursor, row, operator, accept=accept_new_code)
        cursor.execute(RESUME, (row.id,))
        _record(cursor, row.id, "resume", row.hold, None, operator)
        also = f"; {plural(replanned, 'graph', 'graphs')} in flight with the new code" if replanned else ""
        return _report(
            executor,
            row,
            "resume",
            operator,
            status=RolloutStatus.RUNNING,
            message=f"resumed{also}",
            graphs=replanned,
        )


def _settle_code(cursor: Any, row: SimpleNamespace, operator: Operator, *, accept: bool) -> int:
    """Freeze the code that is there now; how many graphs in flight go on with it."""
    kind = graph_type(row.graph_type)
    changed = changed_hops(row.plan, kind)
    if not changed:
        return 0
    if not accept:
        why = f"{', '.join(changed)} has other code here than was planned; --accept-new-code goes on with it"
        raise RolloutRefused(str(row.id), "resume", row.status, why)
    steps = [Step.from_json(each) for each in row.plan]
    renewed = []
    for step in steps:
        hop = kind.directed(step.from_version, step.to_version)
        renewed.append(
            Step(step.from_version, step.to_version, hop.name, hop.fingerprint, hop.direction, hop.is_batched)
        )
    plan = [step.to_json() for step in renewed]
    cursor.execute("UPDATE rollouts SET plan = %s WHERE id = %s", (Json(plan), row.id))
    record_change(cursor, row.id, "accept new code", row.plan, plan, operator.name, operator.why)
    return _plan_anew(cursor, row, plan)


def _plan_anew(cursor: Any, row: SimpleNamespace, plan: list[dict[str, Any]]) -> int:
    """Put the accepted code into the plans of graphs in flight: no worker may have the code that they were begun with.

    A hop that an executor has in hand, or that stands half-way, keeps its code.
    """
    # Two statements: the second one sees what was committed before a lock was free.
    free = query(
        cursor,
        "SELECT graph_id FROM rollout_members WHERE rollout_id = %s AND status = 'dispatched' "
        "AND request_id IS NOT NULL AND pg_try_advisory_xact_lock(lock_key(graph_id))",
        row.id,
    )
    return len(query(cursor, _PLAN_ANEW, [each.graph_id for each in free], Json(plan), row.direction, row.id))


_PLAN_ANEW = """
UPDATE migrations g SET plan = n.plan, code_mismatches = 0, code_mismatch_since = NULL
FROM rollout_members m
JOIN requests q ON q.task_id = m.request_id::text
JOIN migrations c ON c.id = q.migration_id
JOIN graphs o ON o.id = m.graph_id
CROSS JOIN LATERAL (
    SELECT m.graph_id = ANY (%s::uuid[])
           AND NOT EXISTS (SELECT FROM checkpoints k WHERE k.migration_id = c.id) AS between_hops
) b
CROSS JOIN LATERAL (
    SELECT jsonb_agg(coalesce(v.step, s.step) ORDER BY s.place) AS plan
    FROM jsonb_array_elements(c.plan) WITH ORDINALITY s (step, place)
    LEFT JOIN jsonb_array_elements(%s) v (step)
        ON v.step->'from_version' = s.step->'from_version' AND v.step->'to_version' = s.step->'to_version'
        AND ((s.step->>'from_version')::integer - o.version) * %s >= CASE WHEN b.between_hops THEN 0 ELSE 1 END
) n
WHERE m.rollout_id = %s AND m.status = 'dispatched' AND g.id = c.id
  AND g.status IN ('queued', 'running', 'pausing', 'paused') AND n.plan <> c.plan
RETURNING g.id
"""


def promote(executor: Executor, which: str, operator: Operator) -> RolloutVerbReport:
    """Open the gate that a rollout waits at.

    Raises:
        UnknownRollout, RolloutRefused: Nothing was changed.
    """
    with _locked(executor, which) as (cursor, row):
        _require(row, "promote", (RolloutStatus.HELD,), "it does not wait at a gate")
        if row.hold["reason"] != HoldReason.GATE:
            raise RolloutRefused(str(row.id), "promote", row.status, f"it waits for {row.hold['reason']!r}")
        cursor.execute(
            "UPDATE rollout_stages SET promoted_at = clock_timestamp() WHERE rollout_id = %s AND number = %s",
            (row.id, row.stage),
        )
        cursor.execute(RESUME, (row.id,))
        _record(cursor, row.id, "promote", row.hold, {"stage": row.stage}, operator)
        return _report(executor, row, "promote", operator, status=RolloutStatus.RUNNING, message="promoted")


def cancel(executor: Executor, which: str, operator: Operator) -> RolloutVerbReport:
    """End a rollout. What waits is skipped; what is in flight ends its migration.

    Raises:
        UnknownRollout, RolloutRefused: Nothing was changed.
    """
    with _locked(executor, which) as (cursor, row):
        _require(row, "cancel", _STEERABLE, "only one that is running or held can be cancelled")
        cursor.execute("UPDATE rollouts SET status = 'cancelling', hold = NULL WHERE id = %s", (row.id,))
        note = "the rollout was cancelled" + (f" by {operator.name}" if operator.name else "")
        cursor.execute(
            "UPDATE rollout_members SET status = 'skipped', note = %s, settled_at = clock_timestamp() "
            "WHERE rollout_id = %s AND status = 'pending'",
            (note, row.id),
        )
        skipped = cursor.rowcount
        _record(cursor, row.id, "cancel", row.hold, None, operator)
        message = f"cancelling; {plural(skipped, 'graph that waited is', 'graphs that waited are')} not moved"
        return _report(
            executor,
            row,
            "cancel",
            operator,
            status=RolloutStatus.CANCELLING,
            message=message,
            graphs=skipped,
        )


def retry(
    executor: Executor, which: str, operator: Operator, *, error_group: str | None = None
) -> RolloutVerbReport:
    """Let failed members wait for another try. A rollout that finished with failures is opened again.

    Args:
        executor: A session without an open transaction.
        which: The rollout.
        operator: Who asks.
        error_group: Only failures of this group, as `errors` names it; all where None.

    Raises:
        UnknownRollout, RolloutRefused: Nothing was changed.
        RolloutInFlight: It has ended, and its type has another live rollout.
    """
    statuses = (*_STEERABLE, RolloutStatus.FINISHED_WITH_FAILURES)
    with _locked(executor, which) as (cursor, row):
        _require(row, "retry", statuses, "it has no members that could be retried")
        status = RolloutStatus(row.status)
        cursor.execute(
            "UPDATE rollout_members SET status = 'pending', number = number + 1, note = NULL, error_group = NULL, "
            "error_title = NULL, crashed = false, settled_at = NULL, request_id = NULL, pack_id = NULL "
            "WHERE rollout_id = %s AND status = 'failed' AND (%s::text IS NULL OR error_group = %s)",
            (row.id, error_group, error_group),
        )
        count = cursor.rowcount
        if not count:
            of = f" in error group {error_group!r}" if error_group else ""
            raise RolloutRefused(str(row.id), "retry", row.status, f"no member has failed{of}")
        if status is RolloutStatus.FINISHED_WITH_FAILURES:
            _reopen(cursor, row)
            status = RolloutStatus.RUNNING
        _record(cursor, row.id, "retry", {"error_group": error_group}, {"graphs": count}, operator)
        then = "; `graph-migrator rollout resume` lets it go on" if status is RolloutStatus.HELD else ""
        return _report(
            executor,
            row,
            "retry",
            operator,
            status=status,
            message=f"{plural(count, 'graph waits', 'graphs wait')} for another try{then}",
            graphs=count,
        )


def _reopen(cursor: Any, row: SimpleNamespace) -> None:
    try:
        cursor.execute(RESUME, (row.id,))
    except Exception as error:
        if sqlstate(error) != "23505":
            raise
        raise RolloutInFlight(row.graph_type, "another one", "live") from None


def skip(executor: Executor, which: str, graphs: Sequence[str], operator: Operator) -> RolloutVerbReport:
    """Take members out that wait or have failed. The rollout leaves their graphs as they are.

    Raises:
        UnknownRollout, RolloutRefused: Nothing was changed; also where a graph is no such member.
    """
    with _locked(executor, which) as (cursor, row):
        _require(row, "skip", (*_STEERABLE, RolloutStatus.CANCELLING), "it has ended")
        note = "taken out" + (f" by {operator.name}" if operator.name else "")
        note += f": {operator.why}" if operator.why else ""
        named = query(cursor, _NAMED, list(graphs))
        taken = query(
            cursor,
            "UPDATE rollout_members SET status = 'skipped', note = %s, error_group = NULL, "
            "settled_at = clock_timestamp() WHERE rollout_id = %s AND status IN ('pending', 'failed') "
            "AND graph_id = ANY (%s::uuid[]) RETURNING graph_id",
            note, row.id, [each.graph_id for each in named],
        )  # fmt: skip
        ids = {each.graph_id for each in taken}
        missing = [each.name for each in named if each.graph_id not in ids]
        if missing:
            raise RolloutRefused(
                str(row.id), "skip", row.status, f"{missing[0]!r} is no member that waits or has failed"
            )
        _record(cursor, row.id, "skip", None, {"graphs": sorted(graphs)}, operator)
        return _report(
            executor,
            row,
            "skip",
            operator,
            status=RolloutStatus(row.status),
            message=f"{plural(len(taken), 'graph is', 'graphs are')} left out of it",
            graphs=len(taken),
        )


# A graph that was deleted is still named by its id.
_NAMED = """
SELECT v.name, coalesce(graph_id_of(v.name), CASE
    WHEN v.name ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' THEN v.name::uuid END) AS graph_id
FROM unnest(%s::text[]) WITH ORDINALITY v (name, place) ORDER BY v.place
"""


def set_knob(executor: Executor, which: str, knob: str, value: str, operator: Operator) -> RolloutVerbReport:
    """Change one knob of a live rollout; the next turn of the controller uses it.

    Args:
        executor: A session without an open transaction.
        which: The rollout.
        knob: Its name, as in `Strategy`.
        value: Its value as text; ``none`` for none.
        operator: Who asks.

    Raises:
        InvalidRequest: There is no such knob, it is frozen at the start, or it cannot have this value.
        UnknownRollout, RolloutRefused: Nothing was changed.
    """
    name = knob.replace("-", "_")
    if name not in Strategy.model_fields:
        raise InvalidRequest(
            "knob", f"there is no knob {knob!r}; there are {', '.join(Strategy.model_fields)}"
        )
    if name in FROZEN:
        raise InvalidRequest(name, "it is settled when a rollout starts")
    with _locked(executor, which) as (cursor, row):
        _require(row, "set", _STEERABLE, "only one that is running or held can be changed")
        before = row.strategy.get(name)
        changed = {**row.strategy, name: None if value.lower() == "none" else value}
        try:
            strategy = Strategy.model_validate(changed)
        except ValidationError as error:
            raise InvalidRequest(name, str(error.errors(include_url=False)[0]["msg"])) from None
        stored = json.loads(strategy.model_dump_json())
        cursor.execute(
            "UPDATE rollouts SET strategy = %s, max_in_flight = %s, pace = CASE WHEN %s THEN pace END WHERE id = %s",
            (Json(stored), strategy.max_in_flight, strategy.health, row.id),
        )
        _record(cursor, row.id, "set", {name: before}, {name: stored[name]}, operator)
        return _report(
            executor,
            row,
            "set",
            operator,
            status=RolloutStatus(row.status),
            message=f"{name}: {before} → {stored[name]}",
        )


def done_before(executor: Executor, request: str) -> RolloutVerbReport | None:
    """What an earlier delivery of the same call has done; None where this is the first."""
    with executor.cursor() as cursor:
        found = query(
            cursor,
            "SELECT c.rollout_id, c.what, r.status FROM rollout_changes c LEFT JOIN rollouts r ON r.id = c.rollout_id "
            "WHERE c.request_id = %s",
            request,
        )
    if not found:
        return None
    message = f"{found[0].what}: done before, by another delivery of this call"
    return RolloutVerbReport(rollout_id=found[0].rollout_id, status=found[0].status, message=message)


def hold_all(executor: Executor, operator: Operator) -> RolloutVerbReport:
    """Hold all rollouts, also those that start later, until `unhold_all`. One row, so nothing slips through."""
    with executor.transaction(), executor.cursor() as cursor:
        cursor.execute(
            "UPDATE rollout_fleet SET held_at = coalesce(held_at, clock_timestamp()), held_by = %s, why = %s",
            (operator.name, operator.why),
        )
        _record(cursor, None, "hold all", None, None, operator)
    return RolloutVerbReport(rollout_id=None, status=None, message="all rollouts are held")


def unhold_all(executor: Executor, operator: Operator) -> RolloutVerbReport:
    """End the hold of all rollouts. Those that are held for another reason stay held."""
    with executor.transaction(), executor.cursor() as cursor:
        cursor.execute("UPDATE rollout_fleet SET held_at = NULL, held_by = NULL, why = NULL")
        _record(cursor, None, "unhold all", None, None, operator)
    return RolloutVerbReport(rollout_id=None, status=None, message="rollouts go on")
