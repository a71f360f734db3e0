"""The controller: a step of the recovery sweep, so it runs inside every worker and one at a time."""

from __future__ import annotations

import logging
from uuid import UUID

from graph_migrator.core.recorded_errors import name_of
from graph_migrator.core.rollouts.decisions import CloseStage, End, Hold, OpenStage, Resume
from graph_migrator.core.rollouts.rows import PostgresRows, query
from graph_migrator.core.rollouts.turn import Sending, SendingPack, Turn, take_turn
from graph_migrator.core.store.errors import Failure, classify
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.core.store.session import Executor

_log = logging.getLogger("graph_migrator.rollouts")


def move_rollouts_on(executor: Executor) -> list[Sending | SendingPack]:
    """Take a turn for every live rollout, each in a transaction of its own.

    Args:
        executor: A session without an open transaction.

    Returns:
        Migrations to send now, after the commits. One that is not sent is found and sent again later.
    """
    with executor.cursor() as cursor:
        live = query(cursor, "SELECT id FROM rollouts WHERE status IN ('running', 'held', 'cancelling')")
    to_send: list[Sending | SendingPack] = []
    for each in live:
        try:
            with executor.transaction(), executor.cursor() as cursor:
                rows = PostgresRows.lock(cursor, each.id)
                turn = take_turn(rows) if rows is not None else Turn()
        except Exception as error:
            if classify(error) is Failure.LOST_CONNECTION:
                raise
            # Whatever is wrong with one rollout must not keep recovery, or the others, from their work.
            _log.error("rollout %s: %s: %s", each.id, name_of(error), safe_message(error))
            continue
        to_send += turn.to_send
        _log_decisions(each.id, turn)
    return to_send


def _log_decisions(rollout_id: UUID, turn: Turn) -> None:
    """One line for each decision that changed the rollout itself, after its commit."""
    for decision in turn.decisions:
        match decision:
            case Hold(reason, evidence):
                _log.warning("rollout %s: held: %s %s", rollout_id, reason.phrase, evidence or "")
            case Resume():
                _log.info("rollout %s: goes on: the reason of its hold is gone", rollout_id)
            case OpenStage(number):
                _log.info("rollout %s: stage %d opens", rollout_id, number)
            case CloseStage(number):
                _log.info("rollout %s: stage %d has ended", rollout_id, number)
            case End(status):
                _log.info("rollout %s: %s", rollout_id, status)
            case _:
                pass
