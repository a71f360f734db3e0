"""The Celery side: tasks, the worker's recovery, and the command line.

from tasks import migrate_graph
report = migrate_graph.delay("les-miserables", 3).get()
"""

from tasks import signing as _signing  # noqa: F401 - switches itself on, where it is set up
from tasks.celery import app
from tasks.migrate import migrate_graph
from tasks.operate import (
    cancel_migration,
    lock_graph,
    pause_migration,
    release_graph,
    resume_migration,
    retry_migration,
    unlock_graph,
)
from tasks.recover import recover_migrations

__all__ = [
    "app",
    "cancel_migration",
    "lock_graph",
    "migrate_graph",
    "pause_migration",
    "recover_migrations",
    "release_graph",
    "resume_migration",
    "retry_migration",
    "unlock_graph",
]
