"""The tables and what Postgres itself holds about them."""

from graph_migrator.core.store.schema.migration import run_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create them; the SQL stands beside this file."""
    run_sql(__file__)
