"""The steps of the protocol that must be one round trip."""

from graph_migrator.core.store.schema.migration import run_sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create them; the SQL stands beside this file."""
    run_sql(__file__)
