"""The foreign project's program: it writes, migrates, and uses its own worker. Prints what it saw, as JSON."""

import json
import os

import core
import core.models
import graph_migrator
import tasks
from graph_migrator import migrate_graph
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

with Session(create_engine(os.environ["DATABASE_URL"])) as session:
    written = core.models.relabel(session, "society", "Person", version=1)
    session.commit()
report = migrate_graph.delay("society", 2).get(timeout=60)
call = tasks.publish_release.delay("club", 2).get(timeout=60)
print(
    json.dumps(
        {
            "package": graph_migrator.__file__,
            "core": core.__file__,
            "written": written,
            "version": report.version,
            "from their worker": migrate_graph.AsyncResult(call).get(timeout=60).version,
            "shared task": tasks.where_am_i.delay().get(timeout=60),
            "settings": [tasks.app.conf.task_acks_late, graph_migrator.app.conf.task_acks_late],
        }
    )
)
