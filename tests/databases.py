"""Servers and databases for the tests of one process: each test gets a database as it was made."""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy import Engine, QueuePool

from graph_migrator.core.embedded import Postgres
from graph_migrator.core.store.connections import make_engine
from tests.waiting import until

OURS = "graph_migrator"
FAST = {
    "autovacuum": "off",
    "full_page_writes": "off",
    "jit": "off",
    "update_process_title": "off",
    "checkpoint_timeout": "1h",
    "max_wal_size": "1GB",
}
"""Settings of a server that lives for some minutes and need not survive the machine."""


def copy_instead_of_initdb(template: Path) -> Callable[[Postgres], None]:
    """What `Postgres` may do before the first start of a temporary server: copy one that was made before.

    initdb takes a second of CPU time. Servers that are durable, or have a folder of their own, are made as ever.

    Args:
        template: Where the copied server is; made at the first call, by one process for all.
    """
    make = Postgres._prepare

    def prepare(server: Postgres) -> None:
        if not server._own_folder or server._settings["fsync"] == "on":
            make(server)
            return
        with template.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (template / "made").exists():
                made = Postgres(template, durable=False)
                make(made)
                made.close()
                (template / "programs").write_text(str(made._programs))
        if (template / "programs").read_text() != str(server._programs):  # of another major version
            make(server)
            return
        for name in ("password", "data", "made"):
            subprocess.run(["cp", "-a", template / name, server.folder / name], check=True)
        owner = template.stat()  # as root, we run Postgres as somebody else
        os.chown(server.folder, owner.st_uid, owner.st_gid)
        server._password = (template / "password").read_text().strip()

    return prepare


class Databases:
    """Hands out one database again and again, and empties it in between.

    Emptying takes a tenth of the time that a copy of the template takes. A test may change more than rows: what it has
    added to the schema is dropped, the catalogues are compared with how they were, and a database that differs is
    replaced by a new copy. So no test has to announce what it changes.

    Args:
        server: The server that they are on.
        template: A database with our schema, which nobody is connected to.
        prepare: What else each database gets when it is made; given its URL.
    """

    def __init__(
        self, server: Postgres, template: str, prepare: Callable[[str], object] | None = None
    ) -> None:
        self._server = server
        self._template = template
        self._prepare = prepare
        self._ready: _Emptied | None = None
        self.copies = 0
        """How many databases were made."""

    def prepared(self, prepare: Callable[[str], object]) -> Databases:
        """Databases that have more, for tests that would each add the same to a copy of their own."""
        return Databases(self._server, self._template, prepare)

    @contextmanager
    def borrow(self) -> Iterator[str]:
        """A database as the template has it; yields its URL. Its sessions end with the block."""
        database = self._ready or self._copy()
        self._ready = None
        try:
            yield self._server.url_of(database.name)
        finally:
            if database.empty():
                self._ready = database
            else:
                administer(self._server, f"DROP DATABASE {database.name} WITH (FORCE)")

    def _copy(self) -> _Emptied:
        name = f"test_{uuid.uuid4().hex[:12]}"
        administer(self._server, f"CREATE DATABASE {name} TEMPLATE {self._template} STRATEGY file_copy")
        self.copies += 1
        if self._prepare is not None:
            self._prepare(self._server.url_of(name))
        return _Emptied(name, self._server.url_of(name))


class _Emptied:
    """A copy of the template that knows how it was.

    It keeps a session of its own: what costs most is a new session's first look at everything.
    """

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self._url = url
        self._session: Any = None
        cursor = self._cursor()
        self._catalogues = _catalogues(cursor)
        cursor.execute(_OBJECTS)
        self._objects = set(cursor.fetchall())
        cursor.execute(
            "SELECT oid::regclass::text, reltuples FROM pg_class "
            "WHERE relnamespace = %s::regnamespace AND relkind = 'r'",
            (OURS,),
        )
        self._estimates = dict(cursor.fetchall())
        self._rows = {table: _copy_out(cursor, table) for table in self._estimates}
        cursor.execute(
            "SELECT tgrelid::regclass::text, tgname FROM pg_trigger "
            "WHERE tgenabled = 'A' AND tgtype & (8 | 32) <> 0"  # at DELETE or TRUNCATE
        )
        self._guards = cursor.fetchall()
        cursor.execute(
            "SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint WHERE contype = 'f'"
        )
        self._references = cursor.fetchall()
        cursor.execute("SELECT oid::regclass::text FROM pg_class WHERE relkind = 'S'")
        positions = []
        for (name,) in cursor.fetchall():
            cursor.execute(
                f"SELECT format('setval(%%L, %%s, %%L)', %s, last_value, is_called) FROM {name}", (name,)
            )
            positions.append(cursor.fetchone()[0])
        self._restart_sequences = f"SELECT {', '.join(positions)}"

    def empty(self) -> bool:
        """Bring it back to how it was; False where that takes more than emptying tables."""
        cursor = self._cursor()
        end_others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE " + _OTHERS
        until(lambda: cursor.execute(end_others) or not cursor.fetchall(), "sessions ended", pause=0.001)
        cursor.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
        for (gid,) in cursor.fetchall():
            cursor.execute("ROLLBACK PREPARED %s", (gid,))
        if _catalogues(cursor) != self._catalogues:
            self._drop_what_was_added(cursor)
            if _catalogues(cursor) != self._catalogues:
                self._session.close()
                return False
        self._empty_tables(cursor)
        return True

    def _drop_what_was_added(self, cursor: Any) -> None:
        """Drop schemas, tables, views and functions that the template has not."""
        cursor.execute(_OBJECTS)
        added = [(kind, name) for kind, name in cursor.fetchall() if (kind, name) not in self._objects]
        with suppress(psycopg2.Error):  # what refuses to go needs another copy
            for kind, name in added:
                cursor.execute(f"DROP {kind} IF EXISTS {name} CASCADE")

    def _empty_tables(self, cursor: Any) -> None:
        """Delete rows; truncate tables that have grown or that have statistics, and so remove these as well."""
        cursor.execute(
            # What belongs to a table is looked up file by file: only where it has rows.
            "SELECT c.oid::regclass::text, c.reltuples, CASE s.main WHEN 0 THEN 0 ELSE pg_table_size(c.oid) END, "
            "s.main FROM pg_class c, LATERAL (SELECT pg_relation_size(c.oid) AS main) s "
            "WHERE c.relnamespace = %s::regnamespace AND c.relkind = 'r'",
            (OURS,),
        )
        found = cursor.fetchall()
        truncated = {
            table for table, estimate, size, _ in found if estimate != self._estimates[table] or size > _SMALL
        }
        while more := {referrer for referrer, table in self._references if table in truncated} - truncated:
            truncated |= more
        changed = truncated | {
            table for table, *_, size in found if size and self._holds_other_rows(cursor, table)
        }
        if changed:
            guards = [(table, name) for table, name in self._guards if table in changed]
            cursor.execute(
                "BEGIN; SET LOCAL session_replication_role = replica;"
                + "".join(f"ALTER TABLE {table} DISABLE TRIGGER {name};" for table, name in guards)
                + (f"TRUNCATE {', '.join(sorted(truncated))};" if truncated else "")
                + "".join(f"DELETE FROM {table};" for table in sorted(changed - truncated))
                + "".join(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name};" for table, name in guards)
            )
            for table in changed:
                if self._rows[table]:
                    cursor.copy_expert(f"COPY {table} FROM STDIN", io.StringIO(self._rows[table]))
            cursor.execute("COMMIT")
        cursor.execute(self._restart_sequences)

    def _holds_other_rows(self, cursor: Any, table: str) -> bool:
        if self._rows[table]:
            return _copy_out(cursor, table) != self._rows[table]
        cursor.execute(f"SELECT FROM {table} LIMIT 1")
        return bool(cursor.rowcount)

    def _cursor(self) -> Any:
        """A cursor of the session, which is begun again where a test has ended it."""
        try:
            cursor = self._session.cursor()
            cursor.execute("SELECT 1")
        except (AttributeError, psycopg2.Error):
            self._session = psycopg2.connect(self._url)
            self._session.autocommit = True
            cursor = self._session.cursor()
        return cursor


_OTHERS = "datname = current_database() AND pid <> pg_backend_pid()"
_SMALL = 64 * 1024
"""Up to so many bytes of a table its rows are deleted, which costs a tenth of truncating it."""

# Objects that came with the server have lower numbers. Of a table only what TRUNCATE leaves alone is compared.
_CATALOGUES = """
SELECT md5(string_agg(object, E'\\n' ORDER BY object)) FROM (
    SELECT concat_ws(' ', 'class', oid, relname, relowner, relacl, reloptions, relrowsecurity) FROM pg_class
        WHERE oid >= 16384 AND relpersistence <> 't'
    UNION ALL SELECT concat_ws(' ', 'column', attrelid, attnum, xmin) FROM pg_attribute
        WHERE attrelid >= 16384
    UNION ALL SELECT concat_ws(' ', 'function', oid, xmin) FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT concat_ws(' ', 'trigger', oid, tgname, tgenabled) FROM pg_trigger
    UNION ALL SELECT concat_ws(' ', 'event trigger', oid, xmin) FROM pg_event_trigger
    UNION ALL SELECT concat_ws(' ', 'constraint', oid, xmin) FROM pg_constraint WHERE oid >= 16384
    UNION ALL SELECT concat_ws(' ', 'schema', oid, xmin) FROM pg_namespace
        WHERE nspname NOT LIKE 'pg\\_%temp\\_%'
    UNION ALL SELECT concat_ws(' ', 'type', oid) FROM pg_type WHERE oid >= 16384
    UNION ALL SELECT concat_ws(' ', 'policy', oid, xmin) FROM pg_policy
    UNION ALL SELECT concat_ws(' ', 'rule', oid, xmin) FROM pg_rewrite WHERE oid >= 16384
    UNION ALL SELECT concat_ws(' ', 'default', oid, xmin) FROM pg_attrdef
    UNION ALL SELECT concat_ws(' ', 'privileges', oid, xmin) FROM pg_default_acl
    UNION ALL SELECT concat_ws(' ', 'extension', oid, xmin) FROM pg_extension
    UNION ALL SELECT concat_ws(' ', 'publication', oid, xmin) FROM pg_publication
    UNION ALL SELECT concat_ws(' ', 'large object', oid) FROM pg_largeobject_metadata
    UNION ALL SELECT concat_ws(' ', 'database', datacl, datallowconn, datconnlimit) FROM pg_database
        WHERE datname = current_database()
    UNION ALL SELECT concat_ws(' ', 'settings', setrole, setconfig) FROM pg_db_role_setting
        WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
) AS objects (object)
"""


# The first to be dropped first: with a schema or table most of the rest is gone.
_OBJECTS = r"""
SELECT 'SCHEMA', oid::regnamespace::text FROM pg_namespace WHERE oid >= 16384 AND nspname NOT LIKE 'pg\_%temp\_%'
UNION ALL SELECT CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'TABLE' END,
    oid::regclass::text FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'p', 'v', 'm') AND relpersistence <> 't'
UNION ALL SELECT 'ROUTINE', oid::regprocedure::text FROM pg_proc WHERE oid >= 16384
"""


def _catalogues(cursor: Any) -> str:
    """What the database consists of and how it is set, rows and statistics apart, as one short text."""
    cursor.execute(_CATALOGUES)
    return str(cursor.fetchone()[0])


def _copy_out(cursor: Any, table: str) -> str:
    out = io.StringIO()
    cursor.copy_expert(f"COPY {table} TO STDOUT", out)
    return out.getvalue()


def connect(url: str, **options: Any) -> Engine:
    """An engine that keeps one connection open: a new one would cost ten times what most statements cost."""
    return make_engine(url, poolclass=QueuePool, pool_size=1, max_overflow=-1, pool_pre_ping=True, **options)


def administer(server: Postgres, statement: str) -> None:
    """Run one statement outside of a transaction, in the server's own database."""
    with closing(psycopg2.connect(server.url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)


def answers(url: str) -> bool:
    """Whether a server can be connected to."""
    try:
        psycopg2.connect(url, connect_timeout=2).close()
    except psycopg2.OperationalError:
        return False
    return True
