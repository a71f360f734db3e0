"""The write guard: what keeps writers off a graph that a migration owns."""

from graph_migrator.core.store.schema.migration import run_sql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create it; the SQL stands beside this file."""
    run_sql(__file__)
