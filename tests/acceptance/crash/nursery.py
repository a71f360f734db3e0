"""Forks Celery workers from a process that has imported everything already: a start costs a third.

Reads one JSON object a line (log, arguments, environment, configuration), starts a worker in a process
group of its own and prints its pid. When its input ends, so do the workers.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
from celery.bin.celery import celery

from graph_migrator.core.settings import settings
from tests.fork_server import fork
from tests.waiting import until


class Nursery:
    """The forking process, seen from a test."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        (stdin, ours), (theirs, stdout) = os.pipe(), os.pipe()
        self._process = fork(
            "tests.acceptance.crash.nursery", env=environment, cwd=folder, stdin=stdin, stdout=stdout
        )
        os.close(stdin)
        os.close(stdout)
        self._wanted, self._pids = os.fdopen(ours, "w"), os.fdopen(theirs)

    def start(
        self,
        log: Path,
        arguments: list[str],
        environment: Mapping[str, str] | None = None,
        configuration: Mapping[str, Any] | None = None,
    ) -> Nursling:
        """Start a worker; its process.

        Args:
            log: Where it writes.
            arguments: Celery's command line, from ``worker`` on.
            environment: What our own settings are to be, where they differ.
            configuration: Celery settings, where they differ.
        """
        wanted = {
            "log": str(log),
            "arguments": arguments,
            "environment": dict(environment or {}),
            "configuration": dict(configuration or {}),
        }
        _exit_file(log).unlink(missing_ok=True)  # of an earlier worker of the same name
        log.write_bytes(b"")  # whoever waits for the worker reads it from now on
        print(json.dumps(wanted), file=self._wanted, flush=True)
        return Nursling(int(self._pids.readline()), _exit_file(log))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._wanted.close()
        self._process.wait(30)
        self._pids.close()


class Nursling:
    """A worker's main process, as `subprocess.Popen` would show it."""

    def __init__(self, pid: int, exit_file: Path) -> None:
        self._process = psutil.Process(pid)
        self._exit_file = exit_file
        self.pid = pid

    def poll(self) -> int | None:
        """None while it runs; then its exit code, or the signal that ended it as a negative number."""
        return int(self._exit_file.read_text()) if self._exit_file.exists() else None

    def wait(self, seconds: float) -> int:
        """Wait for its end; its exit code."""
        until(self._exit_file.exists, f"process {self.pid} ended", seconds=seconds)
        return int(self._exit_file.read_text())

    def send_signal(self, how: signal.Signals) -> None:
        """Signal it alone."""
        self._process.send_signal(how)


def _exit_file(log: Path) -> Path:
    return log.with_suffix(".exit")


def _raise_workers() -> None:
    from graph_migrator import app

    app.loader.import_default_modules()
    app.finalize()
    running: dict[int, Path] = {}
    signal.signal(signal.SIGCHLD, lambda *_: _record_ends(running))
    for how in (signal.SIGTERM, signal.SIGINT):
        signal.signal(how, signal.SIG_IGN)  # it ends with its input, so that it always ends its workers too
    started = []
    for line in sys.stdin:
        wanted = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_worker(app, wanted)
        started.append(pid)
        running[pid] = _exit_file(Path(wanted["log"]))
        _record_ends(running)  # of one that ended before it was noted
        print(pid, flush=True)
    for pid in started:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _record_ends(running, 0)


def _record_ends(running: dict[int, Path], options: int = os.WNOHANG) -> None:
    for pid, file in list(running.items()):
        try:
            ended, status = os.waitpid(pid, options)
        except ChildProcessError:  # the handler of SIGCHLD came in between, and has recorded it
            continue
        if ended:
            del running[pid]
            part = file.with_suffix(".part")
            part.write_text(str(os.waitstatus_to_exitcode(status)))
            part.rename(file)


def _become_worker(app: Any, wanted: dict[str, Any]) -> None:
    os.setsid()
    for how in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(how, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["celery", *wanted["arguments"]]
    os.environ.update(wanted["environment"])
    settings.cache_clear()
    app.conf.update(wanted["configuration"])
    code: Any = 1
    try:
        celery.params[0].default = app  # as `app.worker_main` does, which loses the exit code
        code = celery.main(args=wanted["arguments"], standalone_mode=False)
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr, flush=True)
    finally:
        os._exit(code if isinstance(code, int) else code is not None)


if __name__ == "__main__":
    _raise_workers()
