"""What an error from Postgres means for a migration. Classified here, once; `core.store.redaction` tells it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import psycopg2
import psycopg2.errors
from sqlalchemy.exc import DBAPIError


class Failure(StrEnum):
    """The four kinds of error that an executor tells apart."""

    TRANSIENT = "transient"
    LOST_CONNECTION = "lost connection"
    LOST_FENCE = "lost fence"
    PERMANENT = "permanent"


_TRANSIENT: Final = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "55P03",  # lock_not_available: a lock timeout
        "53300",  # too_many_connections
        "57P03",  # cannot_connect_now: starting up or shutting down
    }
)
_LOST_CONNECTION: Final = frozenset({"57P01", "57P02", "57P05", "08000", "08003", "08006", "08001", "08004"})
DRIVER_ERRORS: Final = (psycopg2.Error, DBAPIError)
"""Whatever Postgres or its driver raises."""

FENCE: Final = "GM001"
"""Raised by our own functions when a session is not, or no longer, the executor."""
ENDED: Final = "GM002"
"""Raised by our own functions when somebody ended the transaction that they were to finish."""


def driver_error(error: BaseException) -> psycopg2.Error | None:
    """The psycopg2 error in `error`, whether SQLAlchemy wrapped it or not."""
    if isinstance(error, DBAPIError):
        return error.orig if isinstance(error.orig, psycopg2.Error) else None
    return error if isinstance(error, psycopg2.Error) else None


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE of a Postgres error; None for anything else, and where the server never answered."""
    cause = driver_error(error)
    return cause.pgcode if cause is not None else None


def classify(error: BaseException) -> Failure:
    """Tell what an error means.

    A connection that died without a word has no SQLSTATE: psycopg2 then raises `OperationalError`, or
    `InterfaceError` on its next use.
    """
    cause = driver_error(error)
    if cause is None:
        return Failure.PERMANENT
    if cause.pgcode == FENCE:
        return Failure.LOST_FENCE
    if cause.pgcode in _TRANSIENT:
        return Failure.TRANSIENT
    unanswered = cause.pgcode is None and isinstance(
        cause, psycopg2.OperationalError | psycopg2.InterfaceError
    )
    if unanswered or cause.pgcode in _LOST_CONNECTION:
        return Failure.LOST_CONNECTION
    return Failure.PERMANENT
