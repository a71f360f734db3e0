"""The foreign project's own tasks and app."""

from celery import Celery, current_app, current_task, shared_task
from graph_migrator import migrate_graph

app = Celery("shop")
app.config_from_object("celeryconfig")


@shared_task
def where_am_i() -> list[str]:
    return [current_app.main, current_task.request.delivery_info["routing_key"]]


@app.task
def publish_release(slug: str, version: int) -> str:
    return str(migrate_graph.delay(slug, version).id)
