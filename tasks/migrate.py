"""The chain: `migrate_graph` begins a migration and is replaced by one `run_hop` for each hop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar
from uuid import UUID

from celery import Task, chain, current_task, uuid
from celery.exceptions import Ignore, Retry
from celery.signals import after_task_publish, task_success
from celery.utils.log import get_task_logger

from graph_migrator.core.decisions import HopMessage, Ignored, Later, deploy_pause, deploy_waited
from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.execution import failpoints
from graph_migrator.core.execution.begin import begin_migration, lacks_code
from graph_migrator.core.execution.model import (
    Applied,
    Caller,
    Dispatch,
    Failed,
    Sharded,
    Worker,
)
from graph_migrator.core.execution.run_hop import run_hop as run_one_hop
from graph_migrator.core.execution.waits import backoff, jittered
from graph_migrator.core.plural import count
from graph_migrator.core.reports import MigrationReport
from graph_migrator.core.settings import settings
from graph_migrator.core.store.redaction import redacted
from graph_migrator.core.store.session import Executor
from graph_migrator.tasks.calls import record_requeue
from graph_migrator.tasks.celery import app
from graph_migrator.tasks.events import show_failure, show_ignored
from graph_migrator.tasks.results import (
    BEGUN,
    HopArguments,
    MigrateArguments,
    MigrateTask,
    ShardArguments,
    checked,
)
from graph_migrator.tasks.runtime import executors
from graph_migrator.tasks.transient import retrying
from graph_migrator.tasks.types_here import require_types

_log = get_task_logger("graph_migrator.tasks")
_T = TypeVar("_T")
_TURNS: Final = "graph_migrator_turns"


@app.task(bind=True, base=MigrateTask, name="tasks.migrate_graph", max_retries=None)
def migrate_graph(self: MigrateTask, *args: Any, **kwargs: Any) -> Any:
    """Move a graph along its hops: ``migrate_graph.delay(graph_id, target=None, requested_by=None, reason=None)``.

    Args:
        self: The task.
        args: `graph_id` (UUID or slug) and `target` (a version; None for the newest).
        kwargs: The same by name, `requested_by` and `reason`, which stand in the audit rows.

    Returns:
        Through ``.get()``, the final `MigrationReport`.
    """
    given = checked(MigrateArguments, args, kwargs)
    graph, target = given["graph_id"], given["target"]
    caller = Caller(self.request.id, given["requested_by"], given["reason"], self.request.hostname)

    def requeued(why: GraphMigratorError) -> None:
        record_requeue(executors(), caller, graph, target, why, has_limit=lacks_code(why))

    require_types(self, requeued)
    may_wait = deploy_waited(self.request.retries) < settings().deploy_seconds
    return carry_out_begin(
        self,
        lambda executor: begin_migration(
            executor, graph, target, caller=caller, may_wait=may_wait, turns=turns_of(self)
        ),
        graph,
        on_requeue=requeued if may_wait else None,
    )


def turns_of(task: Task) -> int:
    """How often a call has waited for its graph's lock; counted in a header of its message."""
    return int(task.request.get(_TURNS, 0))


def wait_again(task: Task, graph: str, later: Later) -> Retry:
    """Give a message back to the queue for its next turn; to be raised."""
    _log.info("%s: again in %.1f s: %s", graph, later.seconds, later.why)
    headers = {**(task.request.headers or {}), _TURNS: turns_of(task) + 1}
    return task.retry(countdown=jittered(later.seconds), headers=headers, throw=False)


def carry_out_begin(
    task: Task,
    begin: Callable[[Executor], _T],
    graph: str,
    *,
    on_requeue: Callable[[GraphMigratorError], None] | None = None,
) -> _T | Any:
    """Begin a migration in a task, and send its chain in place of the task.

    Args:
        task: The task that was called.
        begin: Begins the migration.
        graph: What the log names.
        on_requeue: A worker with newer code may carry out what is refused here for lack of it: called with the
            refusal before the message goes back to the queue. None: what is refused here is refused.

    Returns:
        What the task is to return: the report, or a note that a chain answers; anything else that `begin` gave is
        returned as it is.

    Raises:
        Ignore: Another message of the same call has it in hand.
        GraphMigratorError: It was refused.
    """
    try:
        with retrying(task, backoff(task.request.retries)), executors().borrow() as executor:
            begun = begin(executor)
    except GraphMigratorError as refusal:
        if on_requeue is None or not lacks_code(refusal):
            raise
        on_requeue(refusal)
        # Never in step with the consumers' polling, or the same worker takes it each time.
        pause = jittered(deploy_pause(task.request.retries))
        _log.warning("%s: this worker lacks the code; again in %.1f s: %s", graph, pause, refusal)
        raise task.retry(countdown=pause, exc=refusal) from None
    match begun:
        case Dispatch():
            return _replace(task, begun)
        case Ignored(why):
            _log.info("%s: ignored: %s", graph, why)
            raise Ignore(why)
        case Later():
            raise wait_again(task, graph, begun)
        case MigrationReport():
            return begun.model_dump(mode="json")
        case _:
            return begun


@app.task(
    bind=True,
    name="tasks.run_hop",
    max_retries=None,
    resultrepr_maxsize=256,  # of the report, in logs and in Flower: as far as its status
    # Nobody reads an inner hop's result; its failure must reach the caller all the same.
    store_errors_even_if_ignored=True,
)
def run_hop(self: Task, migration_id: str, from_version: int, to_version: int, dispatch: int) -> Any:
    """Internal: one hop of a migration. A message is good for its dispatch only."""
    checked(HopArguments, (migration_id, from_version, to_version, dispatch), {})
    require_types(self)
    return _carry_out(self, HopMessage(UUID(migration_id), from_version, to_version, dispatch))


@app.task(bind=True, name="tasks.run_shard", max_retries=None, ignore_result=True)
def run_shard(
    self: Task, migration_id: str, from_version: int, to_version: int, dispatch: int, shard: int
) -> Any:
    """Internal: one shard of a hop. Sent when the hop was cut, or when another shard has ended."""
    checked(ShardArguments, (migration_id, from_version, to_version, dispatch, shard), {})
    require_types(self)
    return _carry_out(self, HopMessage(UUID(migration_id), from_version, to_version, dispatch, shard))


def _carry_out(self: Task, message: HopMessage) -> Any:
    worker = Worker(self.request.hostname or "?", task_id=self.request.id)
    try:
        outcome = run_one_hop(executors(), message, worker=worker)
    except Exception as hindrance:  # noqa: BLE001 - raised again, without values
        raise redacted(hindrance) from None
    match outcome:
        case Applied(report):
            # Nobody but Flower looks at what an inner hop returns.
            return report.model_dump(mode="json") if report is not None else f"applied: v{message.to_version}"
        case Failed(error):
            show_failure(row_of_the_call(self), error)
            raise error
        case Later(seconds, why):
            _log.info("%s again in %.1f s: %s", _in_words(message), seconds, why)
            raise self.retry(countdown=seconds)
        case Sharded(messages, closing):
            for each in messages:
                send_shard(each)
            if closing is not None:
                send(closing)
            failpoints.hit("shards_sent")
            if message.shard is not None:
                return f"done: shard {message.shard}"
            raise _ignored(self, "it runs in shards")  # the last of them sends the chain from here on
        case Ignored(why, must_not_occur):
            (_log.error if must_not_occur else _log.info)("%s: ignored: %s", _in_words(message), why)
            raise _ignored(self, why)


def _ignored(task: Task, why: str) -> Ignore:
    if task.request.chain:  # the last hop's row is the call's own, which others may be answering
        show_ignored(task.request.id, why)
    return Ignore(why)


def _in_words(message: HopMessage) -> str:
    shard = f" shard {message.shard}" if message.shard is not None else ""
    return f"migration {message.migration_id}: v{message.from_version}→v{message.to_version}{shard}"


def send_shard(message: HopMessage, *, countdown: float | None = None) -> None:
    """Publish a shard's message, to be taken in so many seconds."""
    run_shard.apply_async(
        args=(
            str(message.migration_id),
            message.from_version,
            message.to_version,
            message.dispatch,
            message.shard,
        ),
        countdown=countdown,
        argsrepr=_in_words(message),
        kwargsrepr="",
    )


def hop_chain(dispatch: Dispatch) -> list[Any]:
    """The tasks for the rest of a migration. The last one bears the id of the latest `migrate_graph` call."""
    last = len(dispatch.steps) - 1
    hops = []
    for place, (message, step) in enumerate(zip(dispatch.messages(), dispatch.steps, strict=True)):
        which = f"v{step.from_version}→v{step.to_version} {step.name}"
        hop = run_hop.si(
            str(message.migration_id), message.from_version, message.to_version, message.dispatch
        ).set(
            ignore_result=place != last,
            argsrepr=f"{dispatch.graph} {which}",
            kwargsrepr="",
        )
        hops.append(hop)
    if dispatch.task_id is not None:
        # In Flower the last hop's row is the call's own row, and keeps its name.
        hops[-1].set(
            task_id=dispatch.task_id,
            shadow=migrate_graph.name,
            argsrepr=f"{dispatch.graph} → v{dispatch.steps[-1].to_version}: {dispatch.steps[-1].name}",
        )
    return hops


def send(dispatch: Dispatch, *, countdown: float | None = None) -> None:
    """Publish the chain for the rest of a migration, outside of any `migrate_graph` task.

    Args:
        dispatch: What is left of it.
        countdown: Seconds until its first hop may be taken.
    """
    if dispatch.steps:
        chain(hop_chain(dispatch)).apply_async(task_id=dispatch.task_id, countdown=countdown)


def _replace(task: Task, dispatch: Dispatch) -> str:
    """Let the chain answer for this call, with all that was linked to it.

    A plain call's chain is sent as the message that Celery's `replace` would send. That, and the exception with
    which it leaves the task, cost a quarter of a small migration's time in the worker.

    Raises:
        Ignore: Something was linked to the call; Celery has replaced it.
    """
    hops, request = hop_chain(dispatch), task.request
    if _is_linked(request):
        with suppress(Ignore):
            task.replace(chain(hops))
        failpoints.hit("begin_dispatched")
        raise Ignore("its chain answers")
    for hop in hops:
        hop.set(root_id=request.root_id or request.id, replaced_task_nesting=1)
        hop.options.setdefault("task_id", uuid())
    first, *rest = hops
    first.apply_async(chain=rest[::-1])
    failpoints.hit("begin_dispatched")
    request.ignore_result = True  # nothing is stored: the result to come is the chain's; see `MigrateRequest`
    return f"{BEGUN} {count(len(hops), 'hop')}"


def _is_linked(request: Any) -> bool:
    names = ("callbacks", "errbacks", "chain", "chord", "group", "stamps", "is_eager")
    return any(request.get(name) for name in names)


def row_of_the_call(task: Task) -> str | None:
    """The id of the `migrate_graph` call that a hop belongs to, where that is another row of Flower's.

    It is the id of the chain's last task. Celery would leave that row as started for ever.
    """
    rest = task.request.chain
    last = rest[0]["options"].get("task_id") if rest else None
    return str(last) if last else None


@task_success.connect
def _after_the_result(sender: Task | None = None, **_: object) -> None:
    if sender is not None and sender.name == run_hop.name:
        failpoints.hit("hop_result_stored")


def _after_the_next_message(sender: str | None = None, **published: Any) -> None:
    inside = current_task and current_task.name == run_hop.name
    # A hop that requeues itself publishes its own id; that is not the next message.
    if inside and sender == run_hop.name and published["headers"]["id"] != current_task.request.id:
        failpoints.hit("hop_published")


if failpoints.hold_folder is not None:
    after_task_publish.connect(_after_the_next_message)
