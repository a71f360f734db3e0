"""The Celery app. ``celery -A graph_migrator worker -Q migrations`` finds it here."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from celery.signals import celeryd_init

from graph_migrator.core.settings import settings
from graph_migrator.tasks import metrics, patience


class Messages(AMQP):
    """Celery's messages, whose `shadow` name stands in the event `task-sent` too.

    Celery has it in `task-received` only. Either may reach Flower last, and would name the row.
    """

    def as_task_v2(self, *args: Any, **kwargs: Any) -> Any:
        """A task's message, and the event about it."""
        message = super().as_task_v2(*args, **kwargs)
        if message.sent_event and message.headers["shadow"]:
            message.sent_event["name"] = message.headers["shadow"]
        return message


class App(Celery):
    """An app whose tasks are its own.

    Celery registers an app's tasks in every other app of the process as well. A program's worker would run our
    tasks on its own queue, and ours would replace its own of the same name: `tasks` is a common module.
    """

    def task(self, *args: Any, **options: Any) -> Any:
        """As `celery.Celery.task`."""
        return super().task(*args, **{"shared": False, **options})


app = App(
    "graph_migrator",
    amqp=Messages,
    include=[
        f"graph_migrator.tasks.{module}"
        for module in (
            "processes",
            "children",
            "watchdog",
            "fleet",
            "migrate",
            "operate",
            "operate_rollouts",
            "recover",
            "redis_transport",
            "rollouts",
        )
    ],
    # The program that imports us may have an app of its own, whose shared tasks must not become ours.
    set_as_current=False,
)
# By its full name: a celeryconfig in the working directory is somebody else's.
app.config_from_object("graph_migrator.celeryconfig")
app.user_options["worker"].update(metrics.OPTIONS)
app.steps["worker"].add(metrics.MetricsEndpoint)


@app.on_after_configure.connect
def _sign(sender: Any, **_: object) -> None:
    """With a key and certificates, a worker takes signed messages and no others (SECURITY.md).

    JSON stays known to kombu for the results; what a worker takes is accept_content's business.
    """
    if settings().signing_key:
        sender.setup_security(allowed_serializers=["json"])


@celeryd_init.connect
def _wait_for_long(instance: Any = None, **_: object) -> None:
    """A worker of ours waits for its broker and its results. One of another app that calls our tasks is a program."""
    if instance is not None and instance.app is app:
        app.conf.update(patience.settings_for(patience.WORKER))
