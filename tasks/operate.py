"""Operators' verbs as tasks. Each returns a `core.execution.operations.VerbReport` as a dict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from celery import Task
from pydantic import BaseModel

from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.model import Caller, Dispatch
from graph_migrator.core.execution.operations import VerbReport
from graph_migrator.core.execution.recorded import record_outcome
from graph_migrator.core.execution.waits import NotThisTurn
from graph_migrator.core.statuses import Verb
from graph_migrator.core.store.session import Executor
from graph_migrator.tasks import telemetry
from graph_migrator.tasks.celery import app
from graph_migrator.tasks.migrate import send, turns_of, wait_again
from graph_migrator.tasks.results import (
    CheckedTask,
    GraphArguments,
    LockArguments,
    ReleaseArguments,
    RetryArguments,
    checked,
)
from graph_migrator.tasks.runtime import executors
from graph_migrator.tasks.transient import retrying
from graph_migrator.tasks.types_here import require_types

_VERBS = {
    "tasks.pause_migration": Verb.PAUSE,
    "tasks.cancel_migration": Verb.CANCEL,
    "tasks.resume_migration": Verb.RESUME,
    "tasks.retry_migration": Verb.RETRY,
    "tasks.release_graph": Verb.RELEASE,
    "tasks.lock_graph": Verb.LOCK,
    "tasks.unlock_graph": Verb.UNLOCK,
}
_Verb = Callable[[Executor, dict[str, Any], Caller], tuple[VerbReport, Dispatch | None]]


def _carry_out(task: Task, model: type[BaseModel], args: Any, kwargs: Any, verb: _Verb) -> dict[str, Any]:
    given = checked(model, args, kwargs)
    if task.name == "tasks.retry_migration":  # the one verb that plans
        require_types(task)
    caller = Caller(task.request.id, given.get("requested_by"))
    try:
        with retrying(task, 1):
            report, dispatch = _recorded(task, caller, given, verb)
    except NotThisTurn as turn:
        raise wait_again(task, given["graph_id"], turn.later) from None
    if dispatch is not None:
        telemetry.link_to_call(dispatch)
        send(dispatch)
    return report.model_dump(mode="json")


def _recorded(
    task: Task, caller: Caller, given: dict[str, Any], verb: _Verb
) -> tuple[VerbReport, Dispatch | None]:
    """Carry out a verb; a refusal is remembered, since the message may come again in another state."""
    try:
        with executors().borrow() as executor:
            return verb(executor, given, caller)
    except GraphMigratorError as refusal:
        with executors().borrow() as executor:
            record_outcome(executor, caller, given["graph_id"], None, refusal, _VERBS[task.name])
        raise


def _migration(given: dict[str, Any]) -> UUID | None:
    return UUID(given["migration_id"]) if given.get("migration_id") else None


@app.task(bind=True, base=CheckedTask, name="tasks.pause_migration", max_retries=None)
def pause_migration(self: Task, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Stop a graph's migration at the next hop or batch boundary."""

    def verb(executor: Executor, given: dict[str, Any], caller: Caller) -> tuple[VerbReport, None]:
        return operations.pause(executor, given["graph_id"], caller, migration_id=_migration(given)), None

    return _carry_out(self, GraphArguments, args, kwargs, verb)


@app.task(bind=True, base=CheckedTask, name="tasks.cancel_migration", max_retries=None)
def cancel_migration(self: Task, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """End a graph's migration at the next hop or batch boundary."""

    def verb(executor: Executor, given: dict[str, Any], caller: Caller) -> tuple[VerbReport, None]:
        return operations.cancel(executor, given["graph_id"], caller, migration_id=_migration(given)), None

    return _carry_out(self, GraphArguments, args, kwargs, verb)


@app.task(bind=True, base=CheckedTask, name="tasks.resume_migration", max_retries=None)
def resume_migration(self: Task, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Let a graph's paused migration go on."""

    def verb(executor: Executor, given: dict[str, Any], caller: Caller) -> tuple[VerbReport, Dispatch | None]:
        return operations.resume(
            executor,
            given["graph_id"],
            caller,
            migration_id=_migration(given),
            turns=turns_of(self),
        )

    return _carry_out(self, GraphArguments, args, kwargs, verb)


@app.task(
    bind=True, base=CheckedTask, name="tasks.retry_migration", max_retries=None, arguments=RetryArguments
)
def retry_migration(self: Task, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Continue a graph's failed migration where it stopped."""

    def verb(executor: Executor, given: dict[str, Any], caller: Caller) -> tuple[VerbReport, Dispatch | None]:
        return operations.retry(
            executor,
            given["graph_id"],
            caller,
            accept_new_code=given["accept_new_code"],
            migration_id=_migration(given),
            turns=turns_of(self),
        )

    return _carry_out(self, RetryArguments, args, kwargs, verb)


@app.task(
    bind=True, base=CheckedTask, name="tasks.release_graph", max_retries=None, arguments=ReleaseArguments
)
def release_graph(self: Task, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Release a graph: end its migration and let writers in."""

    def verb(executor: Executor, given: dict[str, Any], caller: Caller) -> tuple[VerbReport, None]:
        options = {name: given[name] for name in ("force", "terminate", "whole")}
        report = operations.release(
            executor,
            given["graph_id"],
            caller,
            **options,
            migration_id=_migration(given),
            turns=turns_of(self),
        )
        return report, None

    return _carry_out(self, ReleaseArguments, args, kwargs, verb)


@app.task(bind=True, base=CheckedTask, name="tasks.lock_graph", max_retries=None, arguments=LockArguments)
def lock_graph(self: Task, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Make a graph read-only on its owner's behalf. Migrations still run."""

    def verb(executor: Executor, given: dict[str, Any], caller: Caller) -> tuple[VerbReport, None]:
        return operations.set_read_only(executor, given["graph_id"], caller, on=True), None

    return _carry_out(self, LockArguments, args, kwargs, verb)


@app.task(bind=True, base=CheckedTask, name="tasks.unlock_graph", max_retries=None, arguments=LockArguments)
def unlock_graph(self: Task, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Take the owner's lock off a graph."""

    def verb(executor: Executor, given: dict[str, Any], caller: Caller) -> tuple[VerbReport, None]:
        return operations.set_read_only(executor, given["graph_id"], caller, on=False), None

    return _carry_out(self, LockArguments, args, kwargs, verb)
