"""Rollouts on Celery: the tasks that move one member, or the small graphs of a pack, and their sending."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from celery import Task
from celery.exceptions import Ignore
from celery.utils.log import get_task_logger

from graph_migrator.core.decisions import Ignored
from graph_migrator.core.events.log import only_ends
from graph_migrator.core.execution.model import Dispatch, Worker
from graph_migrator.core.plural import count
from graph_migrator.core.rollouts.controller import move_rollouts_on
from graph_migrator.core.rollouts.members import OtherCode, begin_member
from graph_migrator.core.rollouts.packs import PackReport, Surroundings, run_pack
from graph_migrator.core.rollouts.turn import Sending, SendingPack
from graph_migrator.core.store.redaction import redacted, safe_message
from graph_migrator.tasks import shutdown
from graph_migrator.tasks.celery import app
from graph_migrator.tasks.events import show_progress
from graph_migrator.tasks.migrate import carry_out_begin, send, turns_of
from graph_migrator.tasks.results import MemberArguments, MigrateTask, PackArguments, checked
from graph_migrator.tasks.runtime import executors
from graph_migrator.tasks.types_here import requeue, require_types

_log = get_task_logger("graph_migrator.tasks")


@app.task(
    bind=True, base=MigrateTask, name="tasks.migrate_member", max_retries=None, arguments=MemberArguments
)
def migrate_member(self: MigrateTask, *args: Any, **kwargs: Any) -> Any:
    """Internal: begin one try of a rollout's graph. Like `migrate_graph` it is replaced by the hops."""
    given = checked(MemberArguments, args, kwargs)
    require_types(self)
    rollout, graph, number = UUID(given["rollout_id"]), UUID(given["graph_id"]), given["number"]
    begun = carry_out_begin(
        self,
        lambda executor: begin_member(executor, rollout, graph, number, turns=turns_of(self)),
        str(graph),
    )
    if isinstance(begun, OtherCode):
        # A worker that has the planned code takes the message, or the rollout is resumed with this one.
        raise requeue(self, f"{graph}: this worker has other code for {', '.join(begun.hops)}")
    return begun


def send_members(sendings: list[Sending | SendingPack]) -> None:
    """Publish the messages of members that were dispatched. One that is lost is sent again by a later turn."""
    for each in sendings:
        if isinstance(each, SendingPack):
            _send_pack(each)
        else:
            _send(migrate_member, each)


def _send(task: Task, sending: Sending) -> None:
    task.apply_async(
        args=(str(sending.rollout_id), str(sending.graph_id), sending.number),
        task_id=str(sending.request_id),
        argsrepr=f"{sending.graph} → v{sending.to_version} (rollout {str(sending.rollout_id)[:8]})",
        kwargsrepr="",
    )


# ── packs ───────────────────────────────────────────────────────────────────────────────────────────


@app.task(bind=True, name="tasks.migrate_pack", max_retries=None, ignore_result=True)
def migrate_pack(self: Task, pack_id: str) -> str:
    """Internal: move the small graphs of one pack. What it returns is for Flower."""
    checked(PackArguments, (pack_id,), {})
    require_types(self)
    around = Surroundings(
        send_later=_send_later,
        show=lambda report: show_progress(self.request.id, report.in_words()),
        is_stopping=shutdown.is_asked,
    )
    worker = Worker(self.request.hostname or "?", task_id=self.request.id)
    try:
        with only_ends():
            ended = run_pack(executors(), UUID(pack_id), worker, around)
    except Exception as hindrance:  # noqa: BLE001 - raised again, without values
        raise redacted(hindrance) from None
    match ended:
        case PackReport():
            _log.info("pack %s: %s", pack_id, ended.in_words())
            _fill_its_place(ended.rollout_id)
            return ended.in_words()
        case OtherCode(hops):
            raise requeue(self, f"pack {pack_id}: this worker has other code for {', '.join(hops)}")
        case Ignored(why):
            _log.info("pack %s: ignored: %s", pack_id, why)
            raise Ignore(why)


def _fill_its_place(rollout: UUID | None) -> None:
    """Let the controller take the turn at once that the next sweep would take: a pack lasts less than its pause."""
    try:
        with executors().borrow() as executor:
            members = move_rollouts_on(executor, only=rollout)
        send_members(members)
    except Exception as error:  # noqa: BLE001 - the pack has ended, and a sweep takes a turn or sends again, too
        _log.info("rollout %s: its next turn is left to the sweep: %s", rollout, safe_message(error))


def _send_later(rest: Dispatch, seconds: float) -> None:
    send(rest, countdown=seconds)


def _send_pack(pack: SendingPack) -> None:
    """Publish a pack's message. One that is lost is sent again by a later turn of the controller."""
    migrate_pack.apply_async(
        args=(str(pack.pack_id),),
        task_id=str(pack.pack_id),
        argsrepr=in_words(pack),
        kwargsrepr="",
    )


def in_words(pack: SendingPack) -> str:
    """What Flower's row shows of a pack."""
    which = f"{count(pack.size, 'graph')} → v{pack.to_version}: {pack.first} … {pack.last}"
    return f"{which} (rollout {str(pack.rollout_id)[:8]})"
