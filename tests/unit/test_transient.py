"""What a message does after an error of the database: again where it is transient, else the error without values."""

from __future__ import annotations

import sqlite3
from typing import Any

import psycopg2
import pytest
from celery.exceptions import Retry
from sqlalchemy.exc import IntegrityError

from graph_migrator.core.errors import GraphExists
from graph_migrator.tasks.transient import retrying

SECRET = "Ada-Lovelace-1815"


class Message:
    """As `celery.Task`: its `retry` raises."""

    def retry(self, *, countdown: float, exc: Exception) -> Retry:
        return Retry(str(exc), exc, countdown)


def raised(error: Exception) -> Exception:
    task: Any = Message()
    with pytest.raises(Exception, match=r".") as caught, retrying(task, 7):
        raise error
    return caught.value


def test_a_transient_error_has_the_message_delivered_again() -> None:
    again = raised(psycopg2.OperationalError(f"could not connect to {SECRET}"))
    assert isinstance(again, Retry)
    assert again.when == 7


def test_any_other_error_of_the_database_is_raised_without_values() -> None:
    cause = sqlite3.IntegrityError("UNIQUE constraint failed: people.name")
    refused = raised(IntegrityError("INSERT INTO people VALUES (:name)", {"name": SECRET}, cause))
    assert not isinstance(refused, Retry | IntegrityError)
    assert "UNIQUE constraint failed" in str(refused)
    assert SECRET not in str(refused)
    assert refused.__cause__ is None


def test_a_refusal_of_ours_is_raised_as_it_is() -> None:
    refusal = GraphExists("g")
    assert raised(refusal) is refusal
