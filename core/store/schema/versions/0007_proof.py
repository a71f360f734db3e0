"""Proof: the hash chain of finished attempts, content digests, and what is recorded of adopted graphs."""

from graph_migrator.core.store.schema.migration import run_sql

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Apply it; the SQL stands beside this file."""
    run_sql(__file__)
