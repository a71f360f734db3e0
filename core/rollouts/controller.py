"""The controller: a step of the recovery sweep, so it runs inside every worker and one at a time."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, Final
from uuid import UUID

from graph_migrator.core.events import types as events
from graph_migrator.core.execution import failpoints
from graph_migrator.core.recorded_errors import name_of
from graph_migrator.core.rollouts.decisions import CloseStage, End, Hold, OpenStage, Resume
from graph_migrator.core.rollouts.policy import start_what_is_behind
from graph_migrator.core.rollouts.rows import query
from graph_migrator.core.rollouts.turn import Sending, SendingPack, Turn, take_turn
from graph_migrator.core.rollouts.turn_rows import PostgresRows
from graph_migrator.core.store.errors import Failure, classify
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.core.store.session import Executor

_log = logging.getLogger("graph_migrator.rollouts")

_MOST_TURNS: Final = 50
"""Of one rollout in one sweep: recovery of other graphs waits meanwhile."""


def move_rollouts_on(executor: Executor, *, only: UUID | None = None) -> list[Sending | SendingPack]:
    """Take a turn for every live rollout, or as many as there is work for, each in a transaction of its own.

    Args:
        executor: A session without an open transaction.
        only: The only rollout to take turns for.

    Returns:
        Migrations to send now, after the commits. One that is not sent is found and sent again later.
    """
    with executor.cursor() as cursor:
        live = query(
            cursor,
            "SELECT id, graph_type, to_version FROM rollouts WHERE status IN ('running', 'held', 'cancelling') "
            "AND (%s::uuid IS NULL OR id = %s)",
            only, only,
        )  # fmt: skip
    to_send: list[Sending | SendingPack] = []
    for each in live:
        try:
            for _ in range(_MOST_TURNS):
                turn = turn_of(executor, each.id)
                to_send += turn.to_send
                _publish(each, turn)
                if not turn.goes_on:
                    break
        except Exception as error:
            if classify(error) is Failure.LOST_CONNECTION:
                raise
            # Whatever is wrong with one rollout must not keep recovery, or the others, from their work.
            _log.error("rollout %s: %s: %s", each.id, name_of(error), safe_message(error))
    return to_send


def turn_of(executor: Executor, rollout_id: UUID) -> Turn:
    """Take one turn for one rollout, in a transaction of its own; an empty one where an operator's verb has it."""
    with executor.transaction(), executor.cursor() as cursor:
        rows = PostgresRows.lock(cursor, rollout_id)
        turn = take_turn(rows) if rows is not None else Turn()
        failpoints.hit("turn_before_commit")
    failpoints.hit("turn_committed")
    return turn


def start_by_policy(executor: Executor) -> None:
    """Start the rollouts that policies ask for. Whatever is wrong with one must not keep recovery from its work."""
    try:
        start_what_is_behind(executor)
    except Exception as error:
        if classify(error) is Failure.LOST_CONNECTION:
            raise
        _log.error("policies: %s: %s", name_of(error), safe_message(error))


def _publish(rollout: SimpleNamespace, turn: Turn) -> None:
    """An event for each decision that changed the rollout itself, after its commit."""
    whose: dict[str, Any] = {
        "rollout_id": rollout.id, "graph_type": rollout.graph_type, "to_version": rollout.to_version,
    }  # fmt: skip
    for decision in turn.decisions:
        match decision:
            case Hold(reason, evidence):
                _log.warning("rollout %s: held: %s %s", rollout.id, reason.phrase, evidence or "")
                events.emit(events.RolloutHeld(**whose, reason=str(reason), why=reason.phrase))
            case Resume():
                events.emit(events.RolloutResumed(**whose))
            case OpenStage(number):
                events.emit(events.RolloutStageOpened(**whose, stage=number))
            case CloseStage(number):
                events.emit(events.RolloutStageEnded(**whose, stage=number))
            case End(status):
                events.emit(events.RolloutEnded(**whose, status=str(status)))
            case _:
                pass
