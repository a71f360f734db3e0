"""Rollouts: one run that moves many graphs of a type to one version."""

from graph_migrator.core.store.schema.migration import run_sql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Apply it; the SQL stands beside this file."""
    run_sql(__file__)
