"""Python processes for the tests, forked from one that has imported what they need.

Importing Celery, SQLAlchemy and pydantic takes longer than most of what a test asks of a process. So each process that
runs tests has a fork server. It has imported all that does not read the environment; the process that it forks reads
its own environment, as a fresh interpreter does, and ends as one.

    process = fork("graph_migrator", "status", "g", env={...}, stdout=write_end)
    process.wait(30)
"""

from __future__ import annotations

import array
import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]

_THIRD_PARTY = (
    "alembic.command", "celery.apps.worker", "celery.backends.database", "celery.backends.redis",
    "celery.bin.celery", "celery.concurrency.prefork", "celery.worker.consumer", "kombu.transport.redis",
    "orjson", "psutil", "psycopg2.extras", "pydantic_settings", "rich.live", "rich.progress",
    "sqlalchemy.dialects.postgresql.psycopg2", "sqlalchemy.orm",
)  # fmt: skip
_READ_AT_IMPORT = ("REMAP_SIGTERM",)
"""Variables that one of these reads when it is imported. A process that has one is forked from a server that has it."""
_OURS = ("graph_types", "store", "interchange", "inspection", "events", "rollouts", "execution")
"""Packages of `graph_migrator.core`. None of their modules reads the environment when imported, but `failpoints`."""


class Forked:
    """A forked process, as `subprocess.Popen` would show it."""

    def __init__(self, pid: int, status: IO[bytes]) -> None:
        self.pid = pid
        self._status = status
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """None while it runs; then its exit code, or the signal that ended it as a negative number."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = int(self._status.read())
            self._status.close()
        return self.returncode

    def wait(self, seconds: float) -> int:
        """Wait for its end; its exit code.

        Raises:
            TimeoutError: It did not end in time.
        """
        if self.returncode is None:
            select.select([self._status], [], [], seconds)
        if self.poll() is None:
            raise TimeoutError(f"process {self.pid} did not end within {seconds:g} s")
        assert self.returncode is not None
        return self.returncode


def fork(
    module: str,
    *arguments: str,
    env: Mapping[str, str],
    cwd: Path = ROOT,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> Forked:
    """Run a module as ``python -m module arguments`` does.

    Args:
        module: What to run.
        arguments: Its command line.
        env: Its whole environment. What the interpreter itself reads, but for PYTHONPATH, is without effect.
        cwd: Its working directory.
        stdin: A descriptor; by default there is nothing to read.
        stdout: A descriptor; by default this process's.
        stderr: A descriptor; by default this process's.
    """
    at_import = tuple((name, env[name]) for name in _READ_AT_IMPORT if name in env)
    return _server(at_import).fork(
        {"module": module, "arguments": arguments, "env": dict(env), "cwd": str(cwd)}, stdin, stdout, stderr
    )


@dataclass
class Outcome:
    """How a command ended."""

    exit_code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def fork_and_wait(
    module: str, *arguments: str, env: Mapping[str, str], cwd: Path = ROOT, seconds: float = 60
) -> Outcome:
    """Run a module to its end, with nothing to read and its output in two pipes; see `fork`."""
    (out, stdout), (err, stderr) = os.pipe(), os.pipe()
    with ThreadPoolExecutor(2) as readers:
        texts = [readers.submit(_text, descriptor) for descriptor in (out, err)]
        try:
            process = fork(module, *arguments, env=env, cwd=cwd, stdout=stdout, stderr=stderr)
        finally:
            os.close(stdout)
            os.close(stderr)
        try:
            exit_code = process.wait(seconds)
        except TimeoutError:
            os.kill(process.pid, signal.SIGKILL)
            raise
    return Outcome(exit_code, *(text.result() for text in texts))


def _text(descriptor: int) -> str:
    with open(descriptor, encoding="utf-8") as stream:
        return stream.read()


@cache
def _server(at_import: tuple[tuple[str, str], ...]) -> _Server:
    return _Server(dict(at_import))


class _Server:
    """The fork server, seen from the process that runs the tests. It ends with that process."""

    def __init__(self, at_import: dict[str, str]) -> None:
        self._socket, theirs = socket.socketpair()
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("GRAPH_MIGRATOR_")}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                env=inherited | at_import,
            )
        atexit.register(self.close)

    def close(self) -> None:
        """End it. What it has forked goes on."""
        self._socket.close()
        self._process.wait(30)

    def fork(
        self, wanted: dict[str, Any], stdin: int | None, stdout: int | None, stderr: int | None
    ) -> Forked:
        read, write = os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        try:
            streams = [nothing if stdin is None else stdin, stdout or 1, stderr or 2, write]
            message = json.dumps(wanted).encode()
            header = len(message).to_bytes(4, "big")
            self._socket.sendmsg(
                [header], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))]
            )
            self._socket.sendall(message)
            pid = int.from_bytes(_exactly(self._socket, 4), "big")
        finally:
            os.close(write)
            os.close(nothing)
        return Forked(pid, os.fdopen(read, "rb"))


def _exactly(source: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = source.recv(size - len(found))
        if not more:
            raise EOFError("the fork server has ended")
        found += more
    return found


# ── the server's side ───────────────────────────────────────────────────────────────────────────────


def _serve(source: socket.socket) -> dict[str, Any] | None:
    """Fork a process for each request. Returns in a forked process what it is to run, and None at the end."""
    running: dict[int, int] = {}
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, with which this process ends
    while True:
        ready, _, _ = select.select([source, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            _report_ends(running)
        if source not in ready:
            continue
        try:
            header, streams, _, _ = socket.recv_fds(source, 4, 4)
            if not header:
                return None
            wanted: dict[str, Any] = json.loads(_exactly(source, int.from_bytes(header, "big")))
        except ConnectionError:
            return None
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            source.close()
            for descriptor in (wake, waker, *running.values()):
                os.close(descriptor)
            return wanted | {"streams": streams}
        *streams, status = streams
        for descriptor in streams:
            os.close(descriptor)
        running[pid] = status
        source.sendall(pid.to_bytes(4, "big"))


def _report_ends(running: dict[int, int]) -> None:
    for pid, descriptor in list(running.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            del running[pid]
            with suppress(BrokenPipeError):  # nobody waits for it any more
                os.write(descriptor, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(descriptor)


def _become(wanted: dict[str, Any]) -> None:
    """Be what ``python -m`` is: streams, environment, working directory, path and arguments."""
    *streams, status = wanted["streams"]
    os.close(status)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = os.fdopen(number, "w", 1 if number == 2 or os.isatty(number) else -1, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.environ.clear()
    os.environ.update(wanted["env"])
    os.chdir(wanted["cwd"])
    time.tzset()
    failpoints = importlib.import_module("graph_migrator.core.execution.failpoints")
    mine = [each for each in wanted["env"].get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.path[:] = dict.fromkeys([wanted["cwd"], *mine, *sys.path])
    importlib.invalidate_caches()
    failpoints.hold_folder = os.environ.get("GRAPH_MIGRATOR_TEST_HOLD")
    sys.argv = ["", *wanted["arguments"]]
    runpy.run_module(wanted["module"], run_name="__main__", alter_sys=True)


def _import_ahead() -> None:
    for name in _THIRD_PARTY:
        importlib.import_module(name)
    for package in _OURS:
        found = importlib.import_module(f"graph_migrator.core.{package}")
        for module in pkgutil.iter_modules(found.__path__, f"{found.__name__}."):
            importlib.import_module(module.name)


if __name__ == "__main__":
    _import_ahead()
    gc.freeze()  # or the first collection of each process would copy every page
    found = _serve(socket.socket(fileno=int(sys.argv[1])))
    if found is not None:
        _become(found)
