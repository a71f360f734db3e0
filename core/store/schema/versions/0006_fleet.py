"""The fleet around rollouts: live workers, and policies of graph types."""

from graph_migrator.core.store.schema.migration import run_sql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Apply it; the SQL stands beside this file."""
    run_sql(__file__)
