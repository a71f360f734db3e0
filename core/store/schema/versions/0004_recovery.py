"""What recovery reads and writes, and the report that callers get."""

from graph_migrator.core.store.schema.migration import run_sql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Apply it; the SQL stands beside this file."""
    run_sql(__file__)
