"""Durable migrations of versioned graphs in Postgres: the public names, loaded when they are first used.

For authors of graph types: `GraphType`, `HopContext`, `Node`, `Edge` and what a batched hop processes (`Nodes`,
`Edges`, `Rows`). For application code: `graph_writer`, and `current` for what is opened. To migrate in this process:
`run_graph_migration` and `execute_migration`. As Celery tasks: `migrate_graph` and the operators' verbs;
``celery -A graph_migrator worker`` finds `app`. To wait for the end of one, with any result backend: `wait_for`.
Authors and writers load no Celery.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graph_migrator.core.execution.in_process import execute_migration, run_graph_migration
    from graph_migrator.core.graph_types.context import HopContext
    from graph_migrator.core.graph_types.data import Edge, Node
    from graph_migrator.core.graph_types.definition import GraphType
    from graph_migrator.core.graph_types.selectors import Edges, Nodes, Rows
    from graph_migrator.core.inspection.waiting import wait_for
    from graph_migrator.core.reports import HopReport, MigrationReport
    from graph_migrator.core.store.repair import graph_repair
    from graph_migrator.core.store.writers import graph_writer
    from graph_migrator.tasks.celery import app
    from graph_migrator.tasks.current import current
    from graph_migrator.tasks.migrate import migrate_graph
    from graph_migrator.tasks.operate import (
        cancel_migration,
        lock_graph,
        pause_migration,
        release_graph,
        resume_migration,
        retry_migration,
        unlock_graph,
    )
    from graph_migrator.tasks.recover import recover_migrations

_HOMES = {
    "Edge": "core.graph_types.data",
    "Edges": "core.graph_types.selectors",
    "GraphType": "core.graph_types.definition",
    "HopContext": "core.graph_types.context",
    "HopReport": "core.reports",
    "MigrationReport": "core.reports",
    "Node": "core.graph_types.data",
    "Nodes": "core.graph_types.selectors",
    "Rows": "core.graph_types.selectors",
    "app": "tasks.celery",
    "cancel_migration": "tasks.operate",
    "current": "tasks.current",
    "execute_migration": "core.execution.in_process",
    "graph_repair": "core.store.repair",
    "graph_writer": "core.store.writers",
    "lock_graph": "tasks.operate",
    "migrate_graph": "tasks.migrate",
    "pause_migration": "tasks.operate",
    "recover_migrations": "tasks.recover",
    "release_graph": "tasks.operate",
    "resume_migration": "tasks.operate",
    "retry_migration": "tasks.operate",
    "run_graph_migration": "core.execution.in_process",
    "unlock_graph": "tasks.operate",
    "wait_for": "core.inspection.waiting",
}

__all__ = [
    "Edge",
    "Edges",
    "GraphType",
    "HopContext",
    "HopReport",
    "MigrationReport",
    "Node",
    "Nodes",
    "Rows",
    "app",
    "cancel_migration",
    "current",
    "execute_migration",
    "graph_repair",
    "graph_writer",
    "lock_graph",
    "migrate_graph",
    "pause_migration",
    "recover_migrations",
    "release_graph",
    "resume_migration",
    "retry_migration",
    "run_graph_migration",
    "unlock_graph",
    "wait_for",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"graph_migrator.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
