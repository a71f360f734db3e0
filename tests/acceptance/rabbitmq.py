"""A private RabbitMQ node, where the system has the program: Debian's and Ubuntu's package `rabbitmq-server`."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from pathlib import Path
from typing import Any

from graph_migrator.core.embedded import EmbeddedUnavailable, Server, free_port

_DEBIAN = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""What PATH has there is a wrapper that changes the user, and wants the system's own node."""


def rabbitmq_program() -> str | None:
    """The server's program; None where there is none."""
    return str(_DEBIAN) if os.access(_DEBIAN, os.X_OK) else shutil.which("rabbitmq-server")


class RabbitMQ(Server):
    """One node on loopback, in a folder of its own, which is shut down by its own pid.

    Erlang finds nodes through a program `epmd`, which would outlive the node and serve the whole machine. The node
    has one of its own, on a port of its own.

    Args:
        folder: Where it lives; a temporary folder by default.
        settings: Settings of the application `rabbit`, as Erlang terms.
    """

    def __init__(self, folder: Path | None = None, *, settings: dict[str, str] | None = None) -> None:
        program = rabbitmq_program()
        if program is None:
            raise EmbeddedUnavailable("no rabbitmq-server: apt-get install rabbitmq-server")
        self._program = program
        super().__init__(folder)
        self._password = secrets.token_hex(12)
        self._settings = settings or {}
        self._epmd: _Epmd | None = None

    @property
    def url(self) -> str:
        """``amqp://…``."""
        return f"amqp://tests:{self._password}@127.0.0.1:{self.port}//"

    def _prepare(self) -> None:
        if self._epmd is None:
            self._epmd = _Epmd(self.folder)
            self._epmd.start()

    def _command(self) -> list[str]:
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.default = 127.0.0.1:{self.port}\n"
            f"default_user = tests\ndefault_pass = {self._password}\n"
        )
        pairs = ", ".join(f"{{{name}, {value}}}" for name, value in self._settings.items())
        (self.folder / "advanced.config").write_text(f"[{{rabbit, [{pairs}]}}].\n")
        (self.folder / "plugins").write_text("[].\n")
        return [self._program]

    def _environment(self) -> dict[str, str]:
        assert self._epmd is not None
        return {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.folder),  # where Erlang keeps the cookie
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd.port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"tests{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _is_ready(self) -> bool:
        return b"Starting broker... completed" in self.log.read_bytes() and _answers(self.port)

    def text(self) -> str:
        """What the node has logged."""
        return "".join(path.read_text("utf-8", "replace") for path in (self.folder / "log").glob("*.log"))

    def close(self) -> None:
        """Shut the node down, then its name server."""
        self.stop()
        if self._epmd is not None:
            self._epmd.stop()
        super().close()


class _Epmd(Server):
    """Erlang's name server, in the foreground."""

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        return [shutil.which("epmd") or "epmd", "-port", str(self.port), "-address", "127.0.0.1"]

    def _is_ready(self) -> bool:
        return _answers(self.port)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False


def waiting_messages(connection: Any, queue: str) -> int:
    """How many messages wait in a queue, those in a worker's hands not counted."""
    return int(connection.default_channel.queue_declare(queue, passive=True).message_count)
