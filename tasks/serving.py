"""Worker and Flower as processes of ours, for `graph-migrator dev`, the demo and the tests."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from graph_migrator.core.embedded import Postgres, Redis, Server
from graph_migrator.core.settings import settings


def environment(postgres: Postgres, redis: Redis) -> dict[str, str]:
    """The variables that let a process use these servers."""
    found = {
        # With the driver's name: SQLAlchemy 2.1 reads a bare postgresql:// as psycopg 3.
        "DATABASE_URL": postgres.url.replace("postgresql://", "postgresql+psycopg2://", 1),
        "CELERY_BROKER_URL": redis.url,
        "CELERY_RESULT_BACKEND": redis.url.removesuffix("/0") + "/1",
    }
    if settings().types:
        found["GRAPH_MIGRATOR_TYPES"] = settings().types
    return found


class Worker(Server):
    """One Celery worker. It is ready when it has said so in its log; SIGTERM lets hops finish."""

    death_signal = signal.SIGKILL
    """Its database and broker end with us, and a Celery that shuts down waits for them."""

    def __init__(
        self,
        folder: Path | None,
        name: str,
        variables: dict[str, str],
        *,
        concurrency: int = 2,
        pool: str = "prefork",
    ) -> None:
        super().__init__(folder)
        self.name = name
        self._variables = variables
        self._options = ["--concurrency", str(concurrency), "--pool", pool]
        self._skip = 0

    @property
    def url(self) -> str:
        """Its node name in Celery."""
        return f"{self.name}@{socket.gethostname()}"

    @property
    def exit_code(self) -> int | None:
        """How its main process ended, negative for a signal; None while it runs. To read it reaps the process."""
        return self._process.poll() if self._process is not None else None

    def replace(self) -> None:
        """Start it again after it died, when what it left of its pool is ended.

        Raises:
            EmbeddedUnavailable: It did not start.
        """
        if self.pid is not None:
            # The pool outlives a main process that was killed. It takes no messages any more, and would hold its
            # sessions until the end of its hop; recovery runs that hop again.
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.stop()
        self.start()

    def _command(self) -> list[str]:
        self._skip = self.log.stat().st_size if self.log.exists() else 0
        return [
            sys.executable, "-W", "ignore::celery.platforms.SecurityWarning", "-m", "celery", "-A", "graph_migrator",
            "worker", "-Q", settings().queue, "-n", self.url, "-l", "INFO", *self._options,
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self._variables}

    def _folder_to_run_in(self) -> Path:
        return Path.cwd()  # graph types may be named by modules of the current folder

    def _is_ready(self) -> bool:
        if not self.log.exists():
            return False
        with self.log.open("rb") as log:
            log.seek(self._skip)
            return b" ready." in log.read()


FLOWER_COLUMNS = "name,args,state,result,exception,received,runtime,worker"
"""Flower's own choice leaves out the arguments, which name the graph and its versions."""


class Flower(Server):
    """Flower on loopback, behind a password made for this run."""

    def __init__(self, folder: Path | None, variables: dict[str, str]) -> None:
        super().__init__(folder)
        self.user, self.password = "operator", secrets.token_urlsafe(12)
        self._variables = variables

    @property
    def url(self) -> str:
        """Where to look, without the password."""
        return f"http://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        return [
            sys.executable, "-m", "celery", "-A", "graph_migrator", "flower",
            "--address=127.0.0.1", f"--port={self.port}",
            "--persistent=False", f"--tasks-columns={FLOWER_COLUMNS}",
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        # The password goes through the environment: the process list is for everybody.
        return {**os.environ, **self._variables, "FLOWER_BASIC_AUTH": f"{self.user}:{self.password}"}

    def _folder_to_run_in(self) -> Path:
        return Path.cwd()

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False


class Console(Server):
    """The console on loopback, for whoever is on this machine."""

    def __init__(self, folder: Path | None, variables: dict[str, str]) -> None:
        super().__init__(folder)
        self._variables = variables

    @property
    def url(self) -> str:
        """Where to look."""
        return f"http://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "graph_migrator", "console", "--auth", "none", "--port", str(self.port)]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self._variables}

    def _folder_to_run_in(self) -> Path:
        return Path.cwd()  # graph types may be named by modules of the current folder

    def _is_ready(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False
