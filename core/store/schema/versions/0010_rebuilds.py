"""Rebuild hops: a batched hop that readers see in one commit."""

from graph_migrator.core.store.schema.migration import run_sql

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Apply it; the SQL stands beside this file."""
    run_sql(__file__)
