"""Answering callers through the result backend, from another process than the one that took the call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Final

from celery.backends.base import Backend, DisabledBackend
from celery.backends.redis import RedisBackend
from celery.backends.rpc import RPCBackend

from graph_migrator.core.execution import recovery
from graph_migrator.core.reports import MigrationReport
from graph_migrator.core.settings import settings
from graph_migrator.core.store.protocol import SettledCall
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.core.store.session import Executors
from graph_migrator.tasks.celery import app
from graph_migrator.tasks.events import show_failure

_log = logging.getLogger("graph_migrator.recovery")

_MOST_FAILURES_IN_A_ROW: Final = 10
"""After this many failures it is the backend that is away; the other callers wait for the next sweep."""


def keeps_results(backend: Backend) -> bool:
    """Whether any process can store the result of any call, and any process can read it.

    ``rpc://`` sends a result to the client that waits, from the process that has the client's message; recovery has
    no such message, and the last hop's message came from a worker. ``disabled://`` stores nothing.
    """
    return not isinstance(backend, RPCBackend | DisabledBackend)


@cache
def backend_answers() -> bool:
    """Whether this app's result backend can answer callers; asked once in each process."""
    return keeps_results(app.backend)


def answer_callers(executors: Executors, calls: list[SettledCall]) -> int:
    """Store the results that settled calls lack, so that every `.get()` resolves.

    A caller that cannot be answered hinders no other: it is tried again after a pause that doubles, for as long as
    the backend would keep a result.

    Returns:
        How many were missing and are stored now.
    """
    if not calls:
        return 0
    if not backend_answers():
        because = f"{backend_name()} keeps no results"
        with executors.borrow() as executor:
            recovery.answers_failed(
                executor, dict.fromkeys((c.task_id for c in calls), because), most_seconds=0
            )
        return 0
    state_of = _states([call.task_id for call in calls])
    failed: dict[str, str] = {}
    answered: list[SettledCall] = []
    stored = in_a_row = 0
    for call in calls:
        try:
            if state_of(call.task_id) != ("SUCCESS" if call.succeeded else "FAILURE"):
                stored += _answer(executors, call)
        except Exception as error:  # noqa: BLE001 - whatever the backend's driver or one row raises
            failed[call.task_id] = f"{type(error).__name__}: {safe_message(error)}"
            _log.warning("call %s could not be answered: %s", call.task_id, failed[call.task_id])
            in_a_row += 1
            if in_a_row == _MOST_FAILURES_IN_A_ROW:
                break
        else:
            in_a_row = 0
            answered.append(call)
    with executors.borrow() as executor:
        recovery.mark_answered(executor, answered)
        if failed:
            recovery.answers_failed(executor, failed, most_seconds=app.conf.result_expires)
    return stored


def backend_name() -> str:
    """The kind of result backend, as in ``rpc://``; never its password."""
    return settings().result_backend.partition(":")[0] + "://"


def _answer(executors: Executors, call: SettledCall) -> bool:
    """Answer one caller; whether there was anything to say."""
    with executors.borrow() as executor:
        outcome = recovery.outcome_of(executor, call)
    # No session is borrowed any more: whoever stores may wait for the backend for long.
    if outcome is None:
        return False
    _store(call.task_id, outcome)
    if isinstance(outcome, Exception):
        show_failure(call.task_id, outcome)
    return True


def _states(task_ids: list[str]) -> Callable[[str], str | None]:
    """What the result backend has of a call; all in one question, where it understands that."""
    backend = app.backend
    if not isinstance(backend, RedisBackend):
        return lambda task_id: str(backend.get_state(task_id))
    found = backend.mget([backend.get_key_for_task(task_id) for task_id in task_ids])
    stored = dict(zip(task_ids, found, strict=True))

    def state_of(task_id: str) -> str | None:
        return backend.decode_result(stored[task_id])["status"] if stored[task_id] else None

    return state_of


def _store(task_id: str, result: recovery.Outcome) -> None:
    if isinstance(result, Exception):
        app.backend.mark_as_failure(task_id, result)
    else:
        value = result.model_dump(mode="json") if isinstance(result, MigrationReport) else result
        app.backend.mark_as_done(task_id, value)
