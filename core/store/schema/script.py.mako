"""${message}."""

from graph_migrator.core.store.schema.migration import run_sql

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Apply it; the SQL stands beside this file."""
    run_sql(__file__)
