"""The database schema, made by Alembic migrations that ship with the package."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from graph_migrator.core.errors import SchemaOutdated
from graph_migrator.core.store.connections import make_engine

SCHEMA = "graph_migrator"
_UPGRADE_LOCK = 5_716_853_094_183_207_170
"""One upgrade at a time in one database, however many are started together."""


def upgrade(database: str | Engine) -> tuple[str | None, str]:
    """Bring the database's schema to this release. Safe to call again, and from several processes.

    Args:
        database: The database's URL, or an engine on it.

    Returns:
        The revisions before (None where our tables were missing) and after.
    """
    engine = make_engine(database) if isinstance(database, str) else database
    with engine.connect() as connection, connection.begin():
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        before = current_revision(connection)
        if before != head_revision():
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    return before, head_revision()


def head_revision() -> str:
    """The schema revision that this release needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise RuntimeError("no schema migrations are installed with the package")
    return head


def current_revision(connection: Connection) -> str | None:
    """The schema revision of the database, or None where our tables are missing."""
    context = MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA})
    return context.get_current_revision()


def require_current(connection: Connection) -> None:
    """Refuse to work on tables that are not those of this release.

    Raises:
        SchemaOutdated: The tables are missing, older or newer.
    """
    found = current_revision(connection)
    if found != head_revision():
        raise SchemaOutdated(found, head_revision())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
