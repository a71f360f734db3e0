"""Rollouts on Celery: the task that begins one member's migration, and its sending."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from celery import Task

from graph_migrator.core.rollouts.members import OtherCode, begin_member
from graph_migrator.core.rollouts.turn import Sending, SendingPack
from graph_migrator.tasks.celery import app
from graph_migrator.tasks.migrate import carry_out_begin, turns_of
from graph_migrator.tasks.packs import send_pack
from graph_migrator.tasks.results import MemberArguments, MigrateTask, checked
from graph_migrator.tasks.types_here import requeue, require_types


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
            send_pack(each)
        else:
            _send(migrate_member, each)


def _send(task: Task, sending: Sending) -> None:
    task.apply_async(
        args=(str(sending.rollout_id), str(sending.graph_id), sending.number),
        task_id=str(sending.request_id),
        argsrepr=f"{sending.graph} → v{sending.to_version} (rollout {str(sending.rollout_id)[:8]})",
        kwargsrepr="",
    )
