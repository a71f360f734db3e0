"""The console behind a real server on loopback, and readers of its stream."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI

from tests.waiting import until


@contextmanager
def served(app: FastAPI, port: int = 0) -> Iterator[str]:
    """Serve an application in a thread; yields its address."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_level="critical", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started, "the console is served", seconds=20)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(15)
        listener.close()


@dataclass
class Reader:
    """One client of the stream, on a socket of its own."""

    connection: socket.socket
    status: int
    head: str
    rest: bytes = b""
    last_id: str | None = None
    events: list[tuple[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, base: str, query: str = "", *, last_id: str | None = None, headers: str = "") -> Reader:
        host, _, port = base.removeprefix("http://").partition(":")
        connection = socket.create_connection((host, int(port)), timeout=20)
        more = f"Last-Event-ID: {last_id}\r\n" if last_id else ""
        request = f"GET /api/v1/events{query} HTTP/1.1\r\nHost: {host}:{port}\r\n{headers}{more}\r\n"
        connection.sendall(request.encode())
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65_536)
        head, _, rest = received.partition(b"\r\n\r\n")
        return cls(connection, int(head.split()[1]), head.decode(), rest)

    def read(self, name: str | None = None, seconds: float = 20) -> Any:
        """The data of the next event, or of the next one of this name."""
        while True:
            self._parse()  # the first events may have come with the head of the answer
            for place, (found, data) in enumerate(self.events):
                if name in {None, found}:
                    del self.events[: place + 1]
                    return data
            self.events.clear()
            self.connection.settimeout(seconds)
            received = self.connection.recv(65_536)
            assert received, "the stream has ended"
            self.rest += received

    def _parse(self) -> None:
        # Chunked transfer coding: sizes stand on lines of their own, and an event is never cut by a chunk here.
        while b"\n\n" in self.rest:
            block, _, self.rest = self.rest.partition(b"\n\n")
            fields = dict(
                line.split(": ", 1) for line in block.decode().replace("\r", "").split("\n") if ": " in line
            )
            if "id" in fields:
                self.last_id = fields["id"]
            if "event" in fields:
                self.events.append((fields["event"], json.loads(fields["data"])))

    def close(self) -> None:
        self.connection.close()
