"""Durable migrations of versioned graphs in Postgres.

For authors of graph types: `GraphType`, `HopContext`, `Node`, `Edge` and what a batched hop walks (`Nodes`,
`Edges`, `Rows`). For application code: `graph_writer`. To migrate in this process: `run_graph_migration` and
`execute_migration`; as Celery tasks: the package `tasks`.
"""

from core.graph_data import Edge, Node
from core.graph_types import GraphType
from core.hop_context import HopContext
from core.in_process import execute_migration, run_graph_migration
from core.reports import HopReport, MigrationReport
from core.selectors import Edges, Nodes, Rows
from core.writers import graph_writer

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
    "execute_migration",
    "graph_writer",
    "run_graph_migration",
]
