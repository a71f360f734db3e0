"""A relay between libpq and Postgres that counts the messages which a client sends, whoever sends them."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from urllib.parse import parse_qs, urlsplit

from sqlalchemy import make_url


class Wire:
    """What clients have sent: the text of each query message, in order."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def take(self) -> list[str]:
        """What was sent since the last look."""
        sent, self.sent = self.sent, []
        return sent


@contextmanager
def counting(url: str) -> Iterator[tuple[str, Wire]]:
    """Yields a URL that leads to the same database through the relay, and what passes there."""
    wire = Wire()
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        threading.Thread(target=_accept, args=(listener, url, wire), daemon=True).start()
        through = make_url(url).set(host="127.0.0.1", port=listener.getsockname()[1])
        query = {"sslmode": "disable", "gssencmode": "disable"}
        yield through.set(query=query).render_as_string(hide_password=False), wire


def _accept(listener: socket.socket, url: str, wire: Wire) -> None:
    with suppress(OSError):  # the listener is closed
        while True:
            client, _ = listener.accept()
            server = _connect(url)
            threading.Thread(target=_pass_on, args=(server, client), daemon=True).start()
            threading.Thread(target=_read, args=(client, server, wire), daemon=True).start()


def _connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    folder = parse_qs(parts.query).get("host")
    if folder is None:
        return socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 5432))
    server = socket.socket(socket.AF_UNIX)
    server.connect(f"{folder[0]}/.s.PGSQL.{parts.port or 5432}")
    return server


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with closing(source), closing(target), suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)


def _read(client: socket.socket, server: socket.socket, wire: Wire) -> None:
    """Pass on message by message; the first one, of the session's start, has no type."""
    with closing(client), closing(server), suppress(OSError, EOFError):
        size = _exactly(client, 4)
        server.sendall(size + _exactly(client, struct.unpack("!i", size)[0] - 4))
        while True:
            head = _exactly(client, 5)
            kind, length = struct.unpack("!ci", head)
            body = _exactly(client, length - 4)
            if kind == b"Q":
                wire.sent.append(body.rstrip(b"\0").decode())
            server.sendall(head + body)


def _exactly(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = source.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data
