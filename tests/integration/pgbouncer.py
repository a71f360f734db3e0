"""A private PgBouncer before a private Postgres."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import make_url

from graph_migrator.core.embedded import free_port
from tests.databases import answers
from tests.waiting import until

_DEBIAN = Path("/usr/sbin/pgbouncer")

_SETTINGS = """
[databases]
{database} = host={host} port={port} dbname={database}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users
pool_mode = {mode}
server_reset_query = DISCARD ALL
ignore_startup_parameters = options, extra_float_digits
"""


def pgbouncer_program() -> str | None:
    """Where Debian's package puts it, or what is on the path; None where it is not installed."""
    return shutil.which("pgbouncer") or (str(_DEBIAN) if os.access(_DEBIAN, os.X_OK) else None)


@contextmanager
def pgbouncer(url: str, mode: str) -> Iterator[str]:
    """Run one in front of a database; yields the URL that leads through it."""
    program = pgbouncer_program()
    assert program is not None
    there, own_port = make_url(url), free_port()
    folder = Path(tempfile.mkdtemp(prefix="gm-pgbouncer-"))
    (folder / "users").write_text(f'"{there.username}" "{there.password}"\n')
    (folder / "settings").write_text(
        _SETTINGS.format(
            database=there.database,
            host=there.host,
            port=there.port,
            own_port=own_port,
            folder=folder,
            mode=mode,
        )
        + ("user = nobody\n" if os.geteuid() == 0 else "")  # it refuses to run as root
    )
    for path in (folder, folder / "users", folder / "settings"):
        path.chmod(0o755)
    through = there.set(port=own_port).render_as_string(hide_password=False)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "settings")], stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is None and answers(through), f"{folder}/log: pgbouncer answers")
        yield through
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder)
