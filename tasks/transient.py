"""What a message does where Postgres was out of reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from celery import Task

from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.execution.waits import NotThisTurn
from graph_migrator.core.store.errors import Failure, classify
from graph_migrator.core.store.redaction import redacted


@contextmanager
def retrying(task: Task, seconds: float) -> Iterator[None]:
    """Have the message delivered again after a transient error of the database.

    Raises:
        Retry: It will be delivered again.
        GraphMigratorError, NotThisTurn: As it was raised.
        Exception: What else was raised, without values.
    """
    try:
        yield
    except (GraphMigratorError, NotThisTurn):
        raise
    except Exception as error:  # noqa: BLE001 - raised again, without values
        if classify(error) is Failure.PERMANENT:
            raise redacted(error) from None
        raise task.retry(countdown=seconds, exc=redacted(error)) from None
