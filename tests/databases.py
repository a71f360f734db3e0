"""Servers and databases for the tests of one process: each test gets a database as it was made."""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2

from graph_migrator.core.embedded import Postgres

OURS = "graph_migrator"
FAST = {
    "autovacuum": "off",
    "full_page_writes": "off",
    "jit": "off",
    "update_process_title": "off",
    "checkpoint_timeout": "1h",
    "max_wal_size": "4GB",
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

    Emptying takes a tenth of the time that a copy of the template takes. A test may change more than rows: the
    catalogues are compared with how they were, and a database whose schema or settings differ is dropped. The
    next test gets a new copy. So no test has to announce what it changes.

    Args:
        server: The server that they are on.
        template: A database with our schema, which nobody is connected to.
    """

    def __init__(self, server: Postgres, template: str) -> None:
        self._server = server
        self._template = template
        self._ready: _Emptied | None = None
        self.copies = 0
        """How many databases were made."""

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
        return _Emptied(name, self._server.url_of(name))


class _Emptied:
    """A copy of the template that knows how it was."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self._url = url
        with self._cursor() as cursor:
            self._catalogues = _catalogues(cursor)
            cursor.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'r'",
                (OURS,),
            )
            self._tables = [table for (table,) in cursor.fetchall()]
            self._rows = {table: found for table in self._tables if (found := _copy_out(cursor, table))}
            cursor.execute(
                "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE tgenabled = 'A' AND tgtype & 32 <> 0"
            )
            self._guards = cursor.fetchall()
            cursor.execute(
                "SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint WHERE contype = 'f'"
            )
            self._references = cursor.fetchall()

    def empty(self) -> bool:
        """Bring it back to how it was; False where that takes more than emptying tables."""
        with self._cursor() as cursor:
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            cursor.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
            for (gid,) in cursor.fetchall():
                cursor.execute("ROLLBACK PREPARED %s", (gid,))
            if _catalogues(cursor) != self._catalogues:
                return False
            self._empty_tables(cursor)
            return True

    def _empty_tables(self, cursor: Any) -> None:
        """TRUNCATE what holds or held rows; a truncated table has no statistics and no dead rows either."""
        used = ", ".join(
            f"pg_relation_size('{OURS}.{table}') > {'8192' if table in self._rows else '0'}"
            for table in self._tables
        )
        cursor.execute(f"SELECT ARRAY[{used}]")
        (found,) = cursor.fetchone()
        changed = {f"{OURS}.{table}" for table, is_used in zip(self._tables, found, strict=True) if is_used}
        for table, rows in self._rows.items():
            if _copy_out(cursor, table) != rows:
                changed.add(f"{OURS}.{table}")
        if not changed:
            return
        while more := {referrer for referrer, table in self._references if table in changed} - changed:
            changed |= more
        guards = [(table, name) for table, name in self._guards if table in changed]
        cursor.execute(
            "BEGIN; SET LOCAL session_replication_role = replica; "
            + "".join(f"ALTER TABLE {table} DISABLE TRIGGER {name};" for table, name in guards)
            + f"TRUNCATE {', '.join(sorted(changed))} RESTART IDENTITY;"
            + "".join(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name};" for table, name in guards)
        )
        for table, rows in self._rows.items():
            if f"{OURS}.{table}" in changed:
                cursor.copy_expert(f"COPY {OURS}.{table} FROM STDIN", io.StringIO(rows))
        cursor.execute("COMMIT")

    @contextmanager
    def _cursor(self) -> Iterator[Any]:
        with closing(psycopg2.connect(self._url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                yield cursor


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


def _catalogues(cursor: Any) -> str:
    """What the database consists of and how it is set, rows and statistics apart, as one short text."""
    cursor.execute(_CATALOGUES)
    return str(cursor.fetchone()[0])


def _copy_out(cursor: Any, table: str) -> str:
    out = io.StringIO()
    cursor.copy_expert(f"COPY {OURS}.{table} TO STDOUT", out)
    return out.getvalue()


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
