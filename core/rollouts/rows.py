"""What several modules read and write of a rollout: changes, signals, requests, and rows with named columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid5

from psycopg2.extras import Json

from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.planning import Step
from graph_migrator.core.rollouts.health import SIGNALS, STALE_AFTER, Level, SignalState


def query(cursor: Any, statement: str, *values: Any) -> list[SimpleNamespace]:
    """The rows of a statement, columns as attributes; a single mapping has its values by name."""
    by_name = len(values) == 1 and isinstance(values[0], Mapping)
    cursor.execute(statement, values[0] if by_name else values or None)
    names = [each.name for each in cursor.description]
    return [SimpleNamespace(**dict(zip(names, row, strict=True))) for row in cursor.fetchall()]


def request_id(rollout_id: UUID, graph_id: UUID, number: int) -> UUID:
    """The request of one try of one member: a second delivery is a known request."""
    return uuid5(rollout_id, f"{graph_id}/{number}")


def record_change(
    cursor: Any,
    rollout_id: UUID | None,
    what: str,
    before: Any,
    after: Any,
    who: str | None,
    why: str | None,
    request: str | None = None,
) -> None:
    """Write down what was changed. These rows are never changed or deleted.

    Args:
        cursor: In the transaction of the change.
        rollout_id: The rollout; None where all are meant.
        what: The verb.
        before: What was changed, as JSON.
        after: What it was changed to.
        who: Who asked; None for the controller.
        why: Why.
        request: The call that asked for it: a second delivery of it changes nothing.
    """
    cursor.execute(
        "INSERT INTO rollout_changes (rollout_id, what, before, after, who, why, request_id) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s)",
        (rollout_id, what, _json(before), _json(after), who, why, request),
    )


def _json(value: Any) -> Json | None:
    return None if value is None else Json(value)


def load_signals(cursor: Any) -> tuple[SignalState, ...]:
    """What the signals said at the latest reading; what was read too long ago is unknown."""
    rows = query(
        cursor,
        "SELECT *, measured_at < clock_timestamp() - make_interval(secs => %s) AS is_stale FROM health_signals",
        STALE_AFTER,
    )
    by_name = {row.name: row for row in rows}
    return tuple(_state(by_name[signal.name]) for signal in SIGNALS if signal.name in by_name)


def _state(row: SimpleNamespace) -> SignalState:
    level, detail = (Level.UNKNOWN, "not read of late") if row.is_stale else (Level(row.level), row.detail)
    return SignalState(
        row.name, level, row.value, row.slow_limit, row.stop_limit, row.since, row.better_since, detail
    )


def changed_hops(plan: Sequence[Mapping[str, Any]], kind: GraphType) -> tuple[str, ...]:
    """The hops of a frozen plan whose code in this process is another one."""
    steps = [Step.from_json(each) for each in plan]
    known = range(kind.oldest, kind.newest + 1)
    return tuple(
        f"v{s.from_version}→v{s.to_version} {s.name}"
        for s in steps
        if s.from_version not in known
        or s.to_version not in known
        or kind.directed(s.from_version, s.to_version).fingerprint != s.fingerprint
    )


RESUME = """
UPDATE rollouts SET status = 'running', hold = NULL, finished_at = NULL, failures_since = clock_timestamp(),
       progress_at = clock_timestamp() WHERE id = %s
"""
