"""Shards: a batched hop of one graph in several processes at a time."""

from graph_migrator.core.store.schema.migration import run_sql

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Apply it; the SQL stands beside this file."""
    run_sql(__file__)
