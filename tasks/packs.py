"""Packs on Celery: the task that moves several small graphs of a rollout."""

from __future__ import annotations

from uuid import UUID

from celery import Task
from celery.exceptions import Ignore
from celery.utils.log import get_task_logger

from graph_migrator.core.decisions import Ignored
from graph_migrator.core.events.log import only_ends
from graph_migrator.core.execution.model import Dispatch, Worker
from graph_migrator.core.plural import count
from graph_migrator.core.rollouts.members import OtherCode
from graph_migrator.core.rollouts.packs import PackReport, Surroundings, run_pack
from graph_migrator.core.rollouts.turn import SendingPack
from graph_migrator.core.store.redaction import redacted
from graph_migrator.tasks import shutdown
from graph_migrator.tasks.celery import app
from graph_migrator.tasks.events import show_progress
from graph_migrator.tasks.migrate import send
from graph_migrator.tasks.results import PackArguments, checked
from graph_migrator.tasks.runtime import executors
from graph_migrator.tasks.types_here import requeue, require_types

_log = get_task_logger("graph_migrator.tasks")


@app.task(bind=True, name="tasks.migrate_pack", max_retries=None, ignore_result=True)
def migrate_pack(self: Task, pack_id: str) -> str:
    """Internal: move the small graphs of one pack, one after another. What it returns is for Flower."""
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
            return ended.in_words()
        case OtherCode(hops):
            raise requeue(self, f"pack {pack_id}: this worker has other code for {', '.join(hops)}")
        case Ignored(why):
            _log.info("pack %s: ignored: %s", pack_id, why)
            raise Ignore(why)


def _send_later(rest: Dispatch, seconds: float) -> None:
    send(rest, countdown=seconds)


def send_pack(pack: SendingPack) -> None:
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
