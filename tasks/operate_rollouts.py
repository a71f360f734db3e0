"""The commands on rollouts and policies as tasks of the same names: ``tasks.rollout_start``, ``tasks.policy_set``.

Each returns what the command prints with ``--json``. A message that is delivered twice acts once: its id is recorded
with the change that it made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid5

from celery import Task
from pydantic import BaseModel, ConfigDict, Field

from graph_migrator.core.rollouts import inspection, operations
from graph_migrator.core.rollouts import start as starting
from graph_migrator.core.rollouts.back import back
from graph_migrator.core.rollouts.operations import Operator
from graph_migrator.core.rollouts.policy import Mode, policies, set_policy
from graph_migrator.core.rollouts.request import RolloutRequest
from graph_migrator.core.rollouts.statuses import MemberStatus
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.rollouts.workers import workers
from graph_migrator.core.store.session import Executor
from graph_migrator.tasks.celery import app
from graph_migrator.tasks.results import CheckedTask, checked
from graph_migrator.tasks.runtime import executors
from graph_migrator.tasks.transient import retrying
from graph_migrator.tasks.types_here import require_types


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Asked(_Arguments):
    requested_by: str | None = Field(None, max_length=200)
    reason: str | None = Field(None, max_length=1_000)


class _Nothing(_Arguments):
    """No argument."""


class _Which(_Arguments):
    rollout: str = Field(min_length=1, max_length=100)


class _Verb(_Asked):
    rollout: str = Field(min_length=1, max_length=100)


class _Members(_Which):
    status: MemberStatus | None = None
    limit: int = Field(100, ge=1, le=100_000)


class _Resume(_Verb):
    accept_new_code: bool = False


class _Retry(_Verb):
    error: str | None = Field(None, max_length=100)


class _Skip(_Verb):
    graphs: tuple[str, ...] = Field(min_length=1, max_length=100_000)


class _Set(_Verb):
    knob: str = Field(max_length=100)
    value: str = Field(max_length=200)


class _Back(_Verb):
    to_version: int | None = Field(None, ge=1, le=2**31 - 1)
    strategy: Strategy | None = None
    dry_run: bool = False


class _Policy(_Arguments):
    graph_type: str | None = Field(None, max_length=200)


class _SetPolicy(_Asked):
    graph_type: str = Field(max_length=200)
    mode: Mode
    strategy: Strategy | None = None
    settle_seconds: float | None = None


Given = Any  # the checked arguments, an instance of the task's model
Act = Callable[[Executor, Given, Operator], Any]


def _start(executor: Executor, given: RolloutRequest, operator: Operator) -> Any:
    return starting.start(executor, given, rollout_id=_rollout_of(operator))


def _back(executor: Executor, given: _Back, operator: Operator) -> Any:
    request = back(executor, given.rollout, operator, to_version=given.to_version, strategy=given.strategy)
    if given.dry_run:
        return starting.plan(executor, request)
    return starting.start(executor, request, rollout_id=_rollout_of(operator))


def _rollout_of(operator: Operator) -> UUID:
    """The id of the rollout that a call starts: a second delivery finds it."""
    return uuid5(UUID("6f1c7c1e-4c0b-5a54-9e0b-2f6a7f3d9b10"), str(operator.request))


_ACTS: dict[str, tuple[type[BaseModel], Act, str]] = {
    "rollout_plan": (
        RolloutRequest,
        lambda executor, given, _: starting.plan(executor, given),
        "Say what a rollout would do; nothing is written.",
    ),
    "rollout_start": (RolloutRequest, _start, "Start a rollout."),
    "rollout_list": (
        _Nothing,
        lambda executor, *_: inspection.list_rollouts(executor),
        "List rollouts, the latest first.",
    ),
    "rollout_show": (
        _Which,
        lambda executor, given, _: inspection.show(executor, given.rollout),
        "Say how far a rollout is, why it does not move, and what to do next.",
    ),
    "rollout_graphs": (
        _Members,
        lambda executor, given, _: inspection.members(
            executor, given.rollout, status=given.status, limit=given.limit
        ),
        "List the graphs of a rollout.",
    ),
    "rollout_errors": (
        _Which,
        lambda executor, given, _: inspection.errors(executor, given.rollout),
        "Group a rollout's failures by cause.",
    ),
    "rollout_changes": (
        _Which,
        lambda executor, given, _: inspection.changes(executor, given.rollout),
        "List what was changed in a rollout, by whom, when and why.",
    ),
    "rollout_pause": (
        _Verb,
        lambda executor, given, operator: operations.pause(executor, given.rollout, operator),
        "Hold a rollout until it is resumed.",
    ),
    "rollout_resume": (
        _Resume,
        lambda executor, given, operator: operations.resume(
            executor, given.rollout, operator, accept_new_code=given.accept_new_code
        ),
        "Let a held rollout go on.",
    ),
    "rollout_promote": (
        _Verb,
        lambda executor, given, operator: operations.promote(executor, given.rollout, operator),
        "Open the gate that a rollout waits at.",
    ),
    "rollout_cancel": (
        _Verb,
        lambda executor, given, operator: operations.cancel(executor, given.rollout, operator),
        "End a rollout.",
    ),
    "rollout_retry": (
        _Retry,
        lambda executor, given, operator: operations.retry(
            executor, given.rollout, operator, error_group=given.error
        ),
        "Let failed graphs wait for another try.",
    ),
    "rollout_skip": (
        _Skip,
        lambda executor, given, operator: operations.skip(executor, given.rollout, given.graphs, operator),
        "Take graphs out of a rollout.",
    ),
    "rollout_set": (
        _Set,
        lambda executor, given, operator: operations.set_knob(
            executor, given.rollout, given.knob, given.value, operator
        ),
        "Change a knob of a live rollout.",
    ),
    "rollout_back": (_Back, _back, "Move back what a rollout has moved; with `dry_run` say what that would do."),
    "rollout_hold": (
        _Asked,
        lambda executor, _, operator: operations.hold_all(executor, operator),
        "Hold all rollouts.",
    ),
    "rollout_unhold": (
        _Asked,
        lambda executor, _, operator: operations.unhold_all(executor, operator),
        "End the hold of all rollouts.",
    ),
    "policy_show": (
        _Policy,
        lambda executor, given, _: policies(executor, given.graph_type),
        "Show the policies of graph types, and what each waits for.",
    ),
    "policy_set": (
        _SetPolicy,
        lambda executor, given, operator: set_policy(
            executor, given.graph_type, given.mode, operator,
            strategy=given.strategy, settle_seconds=given.settle_seconds,
        ),
        "Set the policy of a graph type.",
    ),
    "workers": (_Nothing, lambda executor, *_: workers(executor), "List the workers that have been seen within a day."),
}  # fmt: skip


def _carry_out(task: Task, model: type[BaseModel], act: Act, args: Any, kwargs: Any) -> Any:
    given = model.model_validate(checked(model, args, kwargs))
    require_types(task)
    operator = Operator(getattr(given, "requested_by", None), getattr(given, "reason", None), task.request.id)
    with retrying(task, 1), executors().borrow() as executor:
        found = operations.done_before(executor, task.request.id) or act(executor, given, operator)
    return (
        [each.model_dump(mode="json") for each in found]
        if isinstance(found, list)
        else found.model_dump(mode="json")
    )


def _register(name: str, model: type[BaseModel], act: Act, says: str) -> None:
    def run(self: Task, *args: Any, **kwargs: Any) -> Any:
        return _carry_out(self, model, act, args, kwargs)

    run.__doc__ = says
    app.task(bind=True, base=CheckedTask, name=f"tasks.{name}", max_retries=None, arguments=model)(run)


for _name, (_model, _act, _says) in _ACTS.items():
    _register(_name, _model, _act, _says)
