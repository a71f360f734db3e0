"""The live stream: one reader of Postgres for all clients of this process.

A thread looks a few times a second for what has changed, formats each change once for all that follow the same, and
hands it over to the event loop. A client has a queue with an end; one that does not read is dropped, and nobody waits
for it. Clients that come are let in by the same thread between two looks, so that what a client begins with and what
it gets next come from consecutive snapshots: nothing is missing, nothing is twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from fastapi.sse import format_sse_event
from sqlalchemy import Connection, Engine
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from graph_migrator.console.followed import Topic, events, has_ended, snapshot
from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.events import tail
from graph_migrator.core.events.tail import Change, Position

_log = logging.getLogger("graph_migrator.console")

POLL_SECONDS: Final = 0.25
COMMENT_SECONDS: Final = 15.0
SEND_SECONDS: Final = 10.0
"""A client that takes nothing for so long is dropped."""
RETRY_MILLISECONDS: Final = 2_000
LONGEST_SECONDS: Final = 300.0
"""A stream ends after so long, and its client comes again where it was: with rights that still hold."""
_FOLLOW_SECONDS: Final = 60.0
_QUEUE: Final = 64
_END: Final = b""


@dataclass(eq=False)
class Client:
    """One open stream."""

    topic: Topic
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(_QUEUE))
    is_dropped: bool = False

    def offer(self, chunk: bytes) -> None:
        """Hand over a chunk, in the event loop. The chunk is shared by all that follow the same."""
        try:
            self.queue.put_nowait(chunk)
        except asyncio.QueueFull:
            self.is_dropped = True


@dataclass(eq=False)
class _Joining:
    """A client that waits to be let in."""

    client: Client
    last_id: str | None
    answer: asyncio.Future[bool]


class Stream:
    """All clients of this process, and the thread that reads for them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine.execution_options(isolation_level="REPEATABLE READ")
        self._clients: set[Client] = set()
        self._joining: list[_Joining] = []
        self._mutex = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._position: Position | None = None
        self._follow_at = 0.0
        self._open_at_start: set[int] = set()
        self._snapshots: dict[Topic, bytes] = {}

    # ── in the event loop ───────────────────────────────────────────────────────────────────────────

    async def join(self, topic: Topic, last_id: str | None) -> Client | None:
        """Let a client in.

        Args:
            topic: What it follows.
            last_id: The id of the last event that it has, from its ``Last-Event-ID``.

        Returns:
            The client; None where it has everything of what it follows, and that has ended.

        Raises:
            GraphMigratorError: What it wants to follow is not there.
        """
        loop = asyncio.get_running_loop()
        joining = _Joining(Client(topic, loop), last_id, loop.create_future())
        with self._mutex:
            self._joining.append(joining)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="console-stream", daemon=True)
                self._thread.start()
        self._wake.set()
        return joining.client if await joining.answer else None

    def leave(self, client: Client) -> None:
        """A client has gone."""
        with self._mutex:
            self._clients.discard(client)

    @property
    def clients(self) -> int:
        """How many follow."""
        return len(self._clients)

    def close(self) -> None:
        """End the thread and all streams; clients come again by themselves."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(5)

    # ── in the thread ───────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        while not self._stopping:
            try:
                with self._engine.connect() as connection:
                    while not self._stopping:
                        self._look(connection)
                        self._wake.wait(POLL_SECONDS)
                        self._wake.clear()
            except Exception as error:  # noqa: BLE001 - the database is away, or anything: clients keep their place
                _log.warning("the stream cannot read: %s; again in a second", type(error).__name__)
                time.sleep(1)
        with self._mutex:
            clients = list(self._clients)
        self._hand_over([(client, _END) for client in clients])

    def _look(self, connection: Connection) -> None:
        self._follow(connection)
        with connection.begin():
            now = tail.position(connection)
            self._snapshots.clear()
            with self._mutex:
                clients, joining, self._joining = list(self._clients), self._joining, []
            try:
                self._send_changes(connection, clients, now)
                self._position = now
                for each in joining:
                    self._let_in(connection, each, now)
            except BaseException:
                with self._mutex:  # let in when the database is back
                    self._joining = [each for each in joining if not each.answer.done()] + self._joining
                raise

    def _follow(self, connection: Connection) -> None:
        if time.monotonic() < self._follow_at:
            return
        with connection.begin():
            was_followed = tail.follow(connection)
        if not was_followed:
            # After the commit: whoever had begun before it may have seen nobody follow.
            with connection.begin():
                self._open_at_start = set(tail.position(connection).open)
        self._follow_at = time.monotonic() + _FOLLOW_SECONDS

    def _send_changes(self, connection: Connection, clients: list[Client], now: Position) -> None:
        changes: list[Change] | None = []
        if self._position is not None and clients:
            changes = tail.changes_since(connection, self._position)
        if self._open_at_start and (ended := self._open_at_start - set(now.open)):
            self._open_at_start -= ended  # they had begun before changes were recorded
            changes = None
        if changes == []:
            return
        chunks: dict[Topic, bytes] = {}
        for topic in {client.topic for client in clients}:
            chunk = (
                self._reset(connection, topic, now)
                if changes is None
                else self._chunk(connection, topic, changes, now)
            )
            if chunk:
                chunks[topic] = chunk
        self._hand_over([(client, chunks[client.topic]) for client in clients if client.topic in chunks])

    def _let_in(self, connection: Connection, joining: _Joining, now: Position) -> None:
        topic, client = joining.client.topic, joining.client
        try:
            chunk = self._beginning(connection, topic, joining.last_id, now)
        except GraphMigratorError as error:
            client.loop.call_soon_threadsafe(_answer, joining.answer, error)
            return
        if chunk is None:
            client.loop.call_soon_threadsafe(_answer, joining.answer, False)
            return
        with self._mutex:
            self._clients.add(client)
        self._hand_over([(client, chunk)])
        client.loop.call_soon_threadsafe(_answer, joining.answer, True)

    def _beginning(
        self, connection: Connection, topic: Topic, last_id: str | None, now: Position
    ) -> bytes | None:
        retry = format_sse_event(retry=RETRY_MILLISECONDS)
        if not last_id:
            return retry + self._snapshot(connection, topic, now)
        since = Position.parse(last_id)
        changes = None
        if since is not None and tail.is_known(connection, since):
            changes = tail.changes_since(connection, since)
        if changes is None:
            return retry + self._reset(connection, topic, now)
        chunk = self._chunk(connection, topic, changes, now)
        if not chunk and has_ended(connection, topic):
            return None
        return retry + chunk

    def _reset(self, connection: Connection, topic: Topic, now: Position) -> bytes:
        try:
            return _event("reset", {}, None) + self._snapshot(connection, topic, now)
        except GraphMigratorError:  # deleted meanwhile
            return _event("end", {}, str(now))

    def _snapshot(self, connection: Connection, topic: Topic, now: Position) -> bytes:
        """The state, read once in a look: after a restart all clients come at the same time."""
        if topic not in self._snapshots:
            self._snapshots[topic] = _event("snapshot", snapshot(connection, topic), str(now))
        return self._snapshots[topic]

    def _chunk(self, connection: Connection, topic: Topic, changes: list[Change], now: Position) -> bytes:
        found = events(connection, topic, changes)
        last = len(found) - 1
        return b"".join(
            _event(name, data, str(now) if place == last else None)
            for place, (name, data) in enumerate(found)
        )

    def _hand_over(self, chunks: list[tuple[Client, bytes]]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Client, bytes]]] = {}
        for client, chunk in chunks:
            by_loop.setdefault(client.loop, []).append((client, chunk))
        for loop, mine in by_loop.items():
            with suppress(RuntimeError):  # that loop is closed
                loop.call_soon_threadsafe(_offer_all, mine)


def _offer_all(chunks: list[tuple[Client, bytes]]) -> None:
    for client, chunk in chunks:
        client.offer(chunk)


def _answer(answer: asyncio.Future[bool], value: bool | Exception) -> None:
    if answer.done():
        return
    if isinstance(value, Exception):
        answer.set_exception(value)
    else:
        answer.set_result(value)


def _event(name: str, data: dict[str, Any], position: str | None) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps(data, separators=(",", ":")), id=position)


class EventStream(Response):
    """The answer to a client of the stream. It ends when the client goes, or does not read."""

    media_type = "text/event-stream"

    def __init__(self, stream: Stream, client: Client) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        self._stream, self._client = stream, client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what comes, and a comment where nothing comes."""
        try:
            async with anyio.create_task_group() as group:

                async def watch() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    group.cancel_scope.cancel()

                group.start_soon(watch)
                with suppress(TimeoutError, ClientDisconnect, OSError):
                    await self._pump(send)
                group.cancel_scope.cancel()
        finally:
            self._stream.leave(self._client)

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        ends = time.monotonic() + LONGEST_SECONDS * random.uniform(0.8, 1.0)  # noqa: S311 - not all at once
        while not self._client.is_dropped and time.monotonic() < ends:
            # Not anyio's limits, which cost a fan-out to many clients a quarter of its time.
            try:
                async with asyncio.timeout(COMMENT_SECONDS):
                    chunk = await self._client.queue.get()
            except TimeoutError:
                chunk = b": still here\n\n"
            if chunk == _END:
                break
            message: Message = {"type": "http.response.body", "body": chunk, "more_body": True}
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)
        if not self._client.is_dropped:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
