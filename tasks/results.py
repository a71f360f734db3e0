"""What `.delay()` returns, and how a task checks its arguments before they travel."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final
from uuid import UUID

from celery import Task
from celery.result import AsyncResult
from celery.worker.request import Request
from celery.worker.state import successful_requests
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from graph_migrator.core.errors import InvalidRequest, ResultsNotKept
from graph_migrator.core.reports import MigrationReport
from graph_migrator.tasks.answers import backend_name, keeps_results


class CallResult(AsyncResult):
    """The result of a call of ours."""

    def __del__(self) -> None:
        """Stop waiting, but not while the process ends: Celery before 5.7 would reconnect to the backend for it."""
        if not sys.is_finalizing():
            super().__del__()


class MigrationResult(CallResult):
    """The result of a `migrate_graph` call: `.get()` gives a `MigrationReport` or raises the hop's error."""

    def get(self, *args: Any, **kwargs: Any) -> MigrationReport:
        """Wait for the end of the migration.

        Args:
            args: As `celery.result.AsyncResult.get`; above all ``timeout=`` in seconds.
            kwargs: Likewise.

        Raises:
            ResultsNotKept: The result backend cannot answer; raised at once. `graph_migrator.wait_for` can.
            celery.exceptions.TimeoutError: It has not ended in time; it goes on.
            GraphMigratorError: The call was refused, or the migration ended without reaching its target.
            Exception: What a hop raised.
        """
        if not keeps_results(self.backend):
            raise ResultsNotKept(backend_name(), self.id)
        return MigrationReport.model_validate(super().get(*args, **kwargs))


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, UUID) else value


def _storable(value: str) -> str:
    if "\x00" in value or (not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value)):
        raise ValueError("a NUL character or a lone surrogate cannot be stored")
    return value


_Text = Annotated[str, AfterValidator(_storable)]
_GraphName = Annotated[
    str,
    BeforeValidator(_as_text),
    Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"),
]
_Id = Annotated[
    str, BeforeValidator(_as_text), Field(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")
]


class MigrateArguments(BaseModel):
    """The arguments of `migrate_graph`, checked before they are sent and again when they arrive."""

    model_config = ConfigDict(extra="forbid", strict=True)

    graph_id: _GraphName
    target: int | None = Field(None, ge=1, le=2**31 - 1)
    requested_by: _Text | None = Field(None, max_length=200)
    reason: _Text | None = Field(None, max_length=2_000)


class HopArguments(BaseModel):
    """The arguments of `run_hop`, which only this project sends; whoever reaches the broker may send others."""

    model_config = ConfigDict(extra="forbid", strict=True)

    migration_id: _Id
    from_version: int = Field(ge=1, le=2**31 - 1)
    to_version: int = Field(ge=1, le=2**31 - 1)
    dispatch: int = Field(ge=1, le=2**31 - 1)


class ShardArguments(HopArguments):
    """The arguments of `run_shard`, which only this project sends."""

    shard: int = Field(ge=1, le=1_000)


class MemberArguments(BaseModel):
    """The arguments of `migrate_member`, which only this project sends."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rollout_id: _Id
    graph_id: _Id
    number: int = Field(ge=1, le=2**31 - 1)


class PackArguments(BaseModel):
    """The arguments of `migrate_pack`, which only this project sends."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pack_id: _Id


class LockArguments(BaseModel):
    """The arguments of `lock_graph` and `unlock_graph`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    graph_id: _GraphName
    requested_by: _Text | None = Field(None, max_length=200)


class GraphArguments(BaseModel):
    """The arguments of an operator's verb on a graph's migration."""

    model_config = ConfigDict(extra="forbid", strict=True)

    graph_id: _GraphName
    migration_id: _Id | None = None
    requested_by: _Text | None = Field(None, max_length=200)


class RetryArguments(GraphArguments):
    """The arguments of `retry_migration`."""

    accept_new_code: bool = False


class ReleaseArguments(GraphArguments):
    """The arguments of `release_graph`."""

    force: bool = False
    terminate: bool = False
    whole: bool = False


def checked(model: type[BaseModel], args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments by name, as JSON values.

    Raises:
        InvalidRequest: Names the argument and what is wrong with it, never its value.
    """
    names = list(model.model_fields)
    if len(args or ()) > len(names):
        raise InvalidRequest("arguments", f"at most {len(names)}: {', '.join(names)}")
    given = dict(zip(names, args or (), strict=False))
    twice = sorted(set(given) & set(kwargs or {}))
    if twice:
        raise InvalidRequest(twice[0], "it is given twice")
    try:
        return model.model_validate(given | dict(kwargs or {})).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        raise InvalidRequest(".".join(map(str, first["loc"])) or "arguments", first["msg"]) from None


def in_words(given: dict[str, Any]) -> str:
    """A call's arguments as Flower's row and the worker's log show them: ``novel → v3, by release-7``."""
    subject = str(given.get("graph_id") or given.get("rollout") or given.get("graph_type") or "all")
    if "target" in given:
        subject += f" → v{given['target']}" if given["target"] else " → newest"
    words = [subject, *(name for name, value in given.items() if value is True)]
    if given.get("requested_by"):
        words.append(f"by {given['requested_by']}")
    return ", ".join(words)


class CheckedTask(Task):
    """A task that refuses malformed arguments at the caller, before anything is sent."""

    abstract = True
    typing = False  # `checked` says it better than a TypeError
    arguments: type[BaseModel] = GraphArguments

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Check the arguments, then send them by name.

        Raises:
            InvalidRequest: They are malformed; nothing was sent.
        """
        given = checked(self.arguments, args, kwargs)
        options.setdefault("argsrepr", in_words(given))
        return super().apply_async((), given, **options)

    def AsyncResult(self, task_id: str, **kwargs: Any) -> CallResult:  # noqa: N802 - Celery's name
        """The result of a call of this task."""
        return CallResult(task_id, backend=self.backend, app=self.app, **kwargs)


BEGUN: Final = "begun:"
"""A `migrate_graph` task whose chain is to answer returns a text that begins with this."""


class MigrateRequest(Request):
    """A `migrate_graph` message in a worker's main process.

    One that has begun a chain is done as a message, but not as a call: the last task of the chain bears its id,
    and succeeds or fails for it.
    """

    def acknowledge(self) -> None:
        """Acknowledge the message, and forget that it succeeded: its id is still in use."""
        successful_requests.discard(self.id)
        super().acknowledge()

    def send_event(self, type: str, **fields: Any) -> None:
        """Send an event, but none that would end the call's row in Flower before the migration does."""
        if type != "task-succeeded" or not str(fields["result"]).strip("'").startswith(BEGUN):
            super().send_event(type, **fields)


class MigrateTask(CheckedTask):
    """`migrate_graph`, whose result is a `MigrationResult`."""

    abstract = True
    Request = MigrateRequest
    arguments = MigrateArguments

    def AsyncResult(self, task_id: str, **kwargs: Any) -> MigrationResult:  # noqa: N802 - Celery's name
        """The result of a call of this task."""
        return MigrationResult(task_id, backend=self.backend, app=self.app, **kwargs)
