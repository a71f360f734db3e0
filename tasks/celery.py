"""The Celery app. ``celery -A tasks worker -Q migrations`` finds it here."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.app.amqp import AMQP

from tasks import metrics


class Messages(AMQP):
    """Celery's messages, whose `shadow` name stands in the event `task-sent` too.

    Celery has it in `task-received` only. Either may reach Flower last, and would name the row.
    """

    def as_task_v2(self, *args: Any, **kwargs: Any) -> Any:
        """A task's message, and the event that tells of it."""
        message = super().as_task_v2(*args, **kwargs)
        if message.sent_event and message.headers["shadow"]:
            message.sent_event["name"] = message.headers["shadow"]
        return message


app = Celery(
    "graph_migrator",
    amqp=Messages,
    include=["tasks.fleet", "tasks.migrate", "tasks.operate", "tasks.recover"],
)
app.config_from_object("celeryconfig")
app.user_options["worker"].update(metrics.OPTIONS)
app.steps["worker"].add(metrics.MetricsEndpoint)
