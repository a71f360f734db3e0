"""How errors reach a person: a sentence and an exit code, without passwords, row data or tracebacks."""

from __future__ import annotations

from traceback import walk_tb

import click
from kombu.exceptions import OperationalError as BrokerError
from pydantic import ValidationError
from rich.console import Console
from sqlalchemy import Engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from graph_migrator.core.errors import (
    BrokerUnreachable,
    DatabaseUnreachable,
    GraphMigratorError,
    HopFailed,
    InvalidRequest,
    ResultsUnreachable,
    SchemaOutdated,
)
from graph_migrator.core.recorded_errors import name_of, rows_of
from graph_migrator.core.settings import settings
from graph_migrator.core.store import schema
from graph_migrator.core.store.errors import DRIVER_ERRORS, Failure, classify, sqlstate
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.tasks.cli.output import without_password

_NO_TABLES = {"42P01", "3F000", "42883", "42703"}  # undefined table, schema, function, column
_NOT_ALLOWED = "42501"
_URLS = {
    "database_url": "DATABASE_URL",
    "broker_url": "CELERY_BROKER_URL",
    "result_backend": "CELERY_RESULT_BACKEND",
}


def report(error: Exception) -> int:
    """Print an error to standard error; the exit code that it means."""
    shown = as_ours(error)
    Console(stderr=True, soft_wrap=True, highlight=False).print("[bold red]error:[/] ", end="")
    if shown is None:
        click.echo(f"{name_of(error)}: {safe_message(error)} (--debug shows where)", err=True)
        return 1
    rows = rows_of(error)
    click.echo(f"{shown} {rows}" if rows and rows not in str(shown) else str(shown), err=True)
    if isinstance(shown, HopFailed):
        click.echo(
            f"`graph-migrator history {shown.graph}` shows where. Correct the hop or the data, and "
            f"`graph-migrator retry {shown.graph}`.",
            err=True,
        )
    if isinstance(shown, DatabaseUnreachable | BrokerUnreachable | ResultsUnreachable):
        unset = sorted(name for field, name in _URLS.items() if field not in settings().model_fields_set)
        if unset:
            way = 'eval "$(graph-migrator env)"'
            click.echo(f"Not set: {', '.join(unset)}. While `graph-migrator dev` runs: {way}", err=True)
    return shown.exit_code


def as_ours(error: Exception) -> GraphMigratorError | None:
    """What to say of an error: ours as it is, the services' by what is out of reach; None for the unexpected."""
    if isinstance(error, GraphMigratorError):
        return error
    if isinstance(error, ValidationError) and error.title == "Settings":
        return _of_settings(error)
    if isinstance(error, ArgumentError | NoSuchModuleError):
        return InvalidRequest("DATABASE_URL", "it is not the URL of a Postgres database (postgresql://…)")
    if isinstance(error, DRIVER_ERRORS):
        return _of_postgres(error)
    if _is_of_results(error):
        return ResultsUnreachable(without_password(settings().result_backend))
    is_brokers = type(error).__module__.split(".")[0] in {"redis", "kombu", "amqp"}
    if isinstance(error, BrokerError | ConnectionError) or is_brokers:
        return BrokerUnreachable(without_password(settings().broker_url), type(error).__name__)
    if type(error) is RuntimeError and "result store" in str(error):  # Celery has no type of its own for it
        return ResultsUnreachable(without_password(settings().result_backend))
    if isinstance(error, UnicodeEncodeError):
        return InvalidRequest("arguments", "they are not valid UTF-8")
    if isinstance(error, OSError) and error.filename is not None:
        return InvalidRequest(str(error.filename), error.strerror or type(error).__name__)
    return None


def _is_of_results(error: BaseException | None) -> bool:
    """Whether a result backend raised it. Celery before 5.7 passes it on as an error of the broker."""
    while error is not None:
        for frame, _ in walk_tb(error.__traceback__):
            if str(frame.f_globals.get("__name__")).startswith("celery.backends."):
                return True
        error = error.__cause__ or error.__context__
    return False


def of_a_hop(error: Exception, slug: str, hop: str) -> GraphMigratorError:
    """A hop's error marked as one, so that its ConnectionError is not taken for the broker's."""
    if isinstance(error, GraphMigratorError):
        return error
    return HopFailed(slug, hop, name_of(error), safe_message(error))


def _of_settings(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    shown = name if name.isupper() else _URLS.get(name, f"GRAPH_MIGRATOR_{name.upper()}")
    return InvalidRequest(shown, str(first["msg"]))


def _of_postgres(error: Exception) -> GraphMigratorError | None:
    where = without_password(settings().database_url)
    state = sqlstate(error)
    if state in _NO_TABLES:
        return _of_the_schema()
    if state == _NOT_ALLOWED or classify(error) is not Failure.PERMANENT:
        return DatabaseUnreachable(where, safe_message(error))
    return None


def _of_the_schema() -> SchemaOutdated | None:
    from graph_migrator.tasks.runtime import engine

    found = _revision(engine())
    return SchemaOutdated(found, schema.head_revision()) if found != schema.head_revision() else None


def _revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return schema.current_revision(connection)
