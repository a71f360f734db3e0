"""The living workers: who answers, which graph types they serve with which code, and how long the queue is."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from celery.worker.control import inspect_command

from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection.diagnosis import Fleet
from graph_migrator.core.rollouts.workers import WorkerState, served
from graph_migrator.core.settings import settings
from graph_migrator.tasks.celery import app

_NO_QUEUE = ("not_found", "does not exist", "no queue")


def code_digests() -> dict[str, str]:
    """A short digest of all hops of each graph type that this process knows."""
    return {name: served(kind).code for name, kind in graph_types().items()}


def own_state(name: str, pool: str, processes: int) -> WorkerState:
    """What this worker is and serves, for its row in Postgres."""
    try:
        types, error = {name: served(kind) for name, kind in graph_types().items()}, None
    except GraphMigratorError as failure:  # it lives, and serves none
        types, error = {}, str(failure)
    return WorkerState(
        name=name,
        instance=uuid4(),
        queue=settings().queue,
        types=types,
        error=error,
        pool=pool,
        processes=processes,
    )


@inspect_command(name="graph_types")
def _graph_types(state: Any) -> dict[str, Any]:
    """Asked by `look_at_fleet`: the types that this worker serves, and the queues it takes messages from."""
    consumer = getattr(state.consumer, "task_consumer", None)
    answer: dict[str, Any] = {"queues": [queue.name for queue in getattr(consumer, "queues", ())]}
    try:
        versions = {name: (kind.oldest, kind.newest) for name, kind in graph_types().items()}
        return answer | {"types": code_digests(), "versions": versions}
    except GraphMigratorError as error:  # it lives, and serves none
        return answer | {"types": {}, "versions": {}, "error": str(error)}


def look_at_fleet(timeout: float = 1.0) -> Fleet:
    """Ask the broker and all workers.

    Args:
        timeout: Seconds to wait for workers to answer.
    """
    fleet = Fleet()
    try:
        with app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, timeout=2)
            fleet.queued = _length_of_queue(connection)
        answers = app.control.broadcast("graph_types", reply=True, timeout=timeout) or []
    except Exception as error:  # noqa: BLE001 - whatever the broker's driver raises: it did not answer
        fleet.broker_error = type(error).__name__
        return fleet
    for answer in answers:
        for name, reply in answer.items():
            if not isinstance(reply, dict) or "types" not in reply:
                continue  # another application's worker on the same broker
            if settings().queue in reply["queues"]:
                fleet.workers[name] = reply["types"]
                fleet.versions[name] = {
                    kind: tuple(known) for kind, known in reply.get("versions", {}).items()
                }
                if reply.get("error"):
                    fleet.broken[name] = str(reply["error"])
            else:
                fleet.elsewhere.append(name)
    return fleet


def queue_length() -> int | None:
    """How many messages wait in our queue; None where the broker cannot say.

    Raises:
        Exception: Whatever the broker's driver raises where it is out of reach.
    """
    with app.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, timeout=2)
        return _length_of_queue(connection)


def _length_of_queue(connection: Any) -> int | None:
    try:
        found: int = connection.default_channel.queue_declare(settings().queue, passive=True).message_count
    except Exception as error:
        if any(phrase in str(error).lower() for phrase in _NO_QUEUE):
            return 0  # no message was ever sent, or all are taken
        raise
    return found
