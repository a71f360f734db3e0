"""The console: its tokens and sessions, what it was asked for, and the changes that its stream sends on."""

from graph_migrator.core.store.schema.migration import run_sql

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Apply it; the SQL stands beside this file."""
    run_sql(__file__)
