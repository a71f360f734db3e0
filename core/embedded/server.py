"""A server process of ours: how it is started, awaited, and always ended."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

_TEMPORARY = "gm-server-"
_INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)


class EmbeddedUnavailable(RuntimeError):
    """A server's program is missing, or it did not start; says what to do."""


def free_port() -> int:
    """A port on loopback that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def unprivileged_user() -> pwd.struct_passwd | None:
    """Whom to run a server as that refuses root; None where we are not root ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("nobody", "daemon"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise EmbeddedUnavailable("Postgres refuses to run as root, and there is no user `nobody` to run it as")


def start_process(
    command: Sequence[str], how: signal.Signals, user: pwd.struct_passwd | None, **options: Any
) -> subprocess.Popen[bytes]:
    """Start a child that ends with us; Ctrl-C and SIGTERM wait until it is started.

    Python calls hooks of its own around a fork. What a signal's handler raises while one of them runs is lost.

    Args:
        command: The program and its arguments.
        how: The signal that it gets when we are gone.
        user: Whom it runs as; None for ourselves.
        options: Of `subprocess.Popen`.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTIONS)
    started: subprocess.Popen[bytes] | None = None
    try:
        try:
            started = subprocess.Popen(command, preexec_fn=end_with_parent(how, user, mask=mask), **options)
        finally:
            # A handler that has waited runs here, and may raise.
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    except BaseException:
        if started is not None:
            started.kill()
            started.wait()
        raise
    return started


def end_with_parent(
    how: signal.Signals,
    user: pwd.struct_passwd | None,
    parent: int | None = None,
    *,
    mask: Iterable[int] | None = None,
) -> Callable[[], None]:
    """What a child does before it becomes its program: drops root, and asks to be ended when we die.

    Args:
        how: The signal that it gets when the thread that started it is gone, also by SIGKILL. Linux only.
        user: Whom to become; None to stay what we are.
        parent: Our process; by default the one that calls.
        mask: The signals that its program finds blocked; those of the caller by default.
    """
    parent = parent or os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def prepare() -> None:
        if user is not None:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
        if libc is not None:  # PR_SET_PDEATHSIG; after setuid, which clears it
            libc.prctl(1, how, 0, 0, 0)
            if os.getppid() != parent:  # it died before we asked
                os._exit(1)
        if mask is not None:
            for each in _INTERRUPTIONS:  # our handlers are not for it
                signal.signal(each, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return prepare


class Server(ABC):
    """One server process. A context manager: started on entry, stopped on exit.

    Start it from the main thread: where the system ends a server with its parent, the parent is the
    thread that started it.
    """

    stop_signal = signal.SIGTERM
    death_signal = signal.SIGQUIT
    """What the server gets when we die without stopping it."""

    def __init__(self, folder: Path | None = None) -> None:
        self._own_folder = folder is None
        self._in_use = -1
        self.folder = folder or self._temporary_folder()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process is not None else None

    @property
    @abstractmethod
    def url(self) -> str:
        """How to reach it, password included."""

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _is_ready(self) -> bool: ...

    def _user(self) -> pwd.struct_passwd | None:
        return None

    def _environment(self) -> dict[str, str] | None:
        return None  # ours

    def _folder_to_run_in(self) -> Path:
        return self.folder

    def _prepare(self) -> None:  # noqa: B027 - most servers need nothing before their first start
        """Make what has to be there before the first start."""

    def _inherited(self) -> tuple[int, ...]:
        return ()  # file descriptors

    @property
    def log(self) -> Path:
        """What the server printed."""
        return self.folder / f"{type(self).__name__.lower()}.log"

    def start(self) -> Self:
        """Start the server and wait until it answers. Keeps its port when it is started again.

        Raises:
            EmbeddedUnavailable: It did not start.
        """
        self._prepare()
        keep = self.port
        # A port of ours that another program has taken meanwhile costs another try. A port that our clients
        # know stays: what still holds it (children of a killed server, for a moment) has to go first.
        deadline, tries = time.monotonic() + 10, 0
        while tries < 5 or (keep and time.monotonic() < deadline):
            tries += 1
            self.port = keep or free_port()
            if self._try_start():
                return self
            time.sleep(0.1)
        port, self.port = self.port, keep
        tail = self.log.read_text("utf-8", "replace")[-2_000:] if self.log.exists() else ""
        raise EmbeddedUnavailable(f"{type(self).__name__} did not start on port {port}:\n{tail}")

    def _try_start(self) -> bool:
        with self.log.open("ab") as log:
            self._process = start_process(
                self._command(),
                self.death_signal,
                self._user(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder_to_run_in(),
                env=self._environment(),
                # Away from our terminal: Ctrl-C reaches us, and we stop the servers in order.
                start_new_session=True,
                pass_fds=self._inherited(),
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            # Looked at again: an answer may come from the program that took our port.
            if self._is_ready() and self._process.poll() is None:
                return True
            time.sleep(0.02)
        self.stop(signal.SIGKILL)
        return False

    def stop(self, how: signal.Signals | None = None) -> None:
        """End the server's process and wait for it; no harm where it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if process.poll() is None:
                process.send_signal(how or self.stop_signal)
                process.wait(15)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also where Ctrl-C ends our patience
            if process.poll() is None:
                process.kill()
            process.wait()

    def kill(self) -> None:
        """SIGKILL, as a machine that loses its power would."""
        self.stop(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start again, on the same port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the server, and remove its folder where it was made for it."""
        self.stop()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._in_use >= 0:
            os.close(self._in_use)
            self._in_use = -1

    def _temporary_folder(self) -> Path:
        """A folder that is locked while we live, so that the next one to come knows when it is left over."""
        _remove_leftovers()
        folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
        self._in_use = os.open(folder, os.O_RDONLY)
        fcntl.flock(self._in_use, fcntl.LOCK_SH)
        return folder

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


def _remove_leftovers() -> None:
    """Remove the temporary folders of processes that were killed before they could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        try:
            # A young one may not be locked yet. Age and lock are looked at where links do not lead astray.
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # another user's, or gone
        try:
            if time.time() - os.fstat(descriptor).st_mtime > 60:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # somebody lives there
        finally:
            os.close(descriptor)
