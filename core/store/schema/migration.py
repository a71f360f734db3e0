"""How a schema migration runs the SQL file that stands beside it."""

from __future__ import annotations

from pathlib import Path

from alembic import op


def run_sql(migration_file: str) -> None:
    """Run the ``.sql`` file of the same name, inside our schema."""
    connection = op.get_bind()
    # No parameters: a per cent sign in a function body is no placeholder.
    connection = connection.execution_options(no_parameters=True)
    connection.exec_driver_sql("SET LOCAL search_path = graph_migrator, pg_temp")
    connection.exec_driver_sql(Path(migration_file).with_suffix(".sql").read_text("utf-8"))
