"""What the forked processes of a worker's pool take over from its main process, and what they must not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from graph_migrator import migrate_graph
from graph_migrator.core.embedded import Redis
from tests.acceptance.cluster import Cluster
from tests.rows import attempts
from tests.waiting import until

SOON = 40
FIRST_QUESTION = b"pg_catalog.version()"
"""What SQLAlchemy asks the server on an engine's first connection, with the engine locked."""


def test_a_process_forked_while_recovery_connects_runs_hops(
    tmp_path: Path, database_url: str, redis_server: Redis
) -> None:
    """What is locked in the main process at that moment would stay locked in the new one for ever."""
    with Gate(database_url) as gate, Cluster(tmp_path, database_url=gate.url, redis=redis_server) as cluster:
        cluster.add_graph("novel", "trail")
        gate.shut = True  # Postgres is away when the worker starts, so recovery is the first to connect
        worker = cluster.start_worker(concurrency=1)
        with gate.closed_to(FIRST_QUESTION) as met:
            gate.shut = False
            until(met.is_set, "recovery connecting", seconds=SOON)
            (first,) = worker.child_pids()
            cluster.kill_child(first)
            until(lambda: [p for p in worker.child_pids() if p != first], "a new process", seconds=SOON)

        assert migrate_graph.delay("novel", 3).get(timeout=SOON).version == 3


def test_a_forked_process_lets_go_of_the_main_process_session(
    tmp_path: Path, database_url: str, redis_server: Redis
) -> None:
    """It has the socket from the fork. Two processes on one session read each other's results; and while one of
    them holds the socket, the server does not hear that the other one has died, whose locks then live on."""
    with Cluster(tmp_path, database_url=database_url, redis=redis_server) as cluster:
        worker = cluster.start_worker(concurrency=1)
        (sweeping,) = until(lambda: sockets_to_postgres(cluster, worker.pid), "a sweep", seconds=SOON)
        (first,) = worker.child_pids()
        cluster.kill_child(first)  # the next one is forked while that session is open
        (second,) = until(
            lambda: [p for p in worker.child_pids() if p != first], "a new process", seconds=SOON
        )

        cluster.add_graph("novel", "trail")
        assert migrate_graph.delay("novel", 3).get(timeout=SOON).version == 3

        assert sockets_to_postgres(cluster, worker.pid) == {sweeping}, "one session for all sweeps"
        assert sockets_to_postgres(cluster, second).isdisjoint({sweeping})


def sockets_to_postgres(cluster: Cluster, pid: int) -> set[int]:
    """The local ports of a process's connections to the database."""
    server = urlsplit(cluster.database_url).port
    open_now = psutil.Process(pid).net_connections("tcp")
    return {each.laddr.port for each in open_now if each.raddr and each.raddr.port == server}


@pytest.mark.parametrize("pool", [("-P", "solo"), ("-P", "threads", "-c", "2")], ids=["solo", "threads"])
def test_workers_without_processes_take_over_from_one_another(
    tmp_path: Path, database_url: str, redis_server: Redis, pool: tuple[str, ...]
) -> None:
    """Here the process that runs hops is the worker: killed, it takes its message with it."""
    with Cluster(tmp_path, database_url=database_url, redis=redis_server) as cluster:
        cluster.add_graph("novel", "trail")
        hold = cluster.steer("hold", "novel", "second")
        workers = [cluster.start_worker(name, arguments=pool) for name in ("w1", "w2")]
        result = migrate_graph.delay("novel", 3)
        pid = cluster.pid_in("novel", "second")
        (busy,) = [worker for worker in workers if worker.pid == pid]

        busy.kill()
        hold.unlink()

        assert result.get(timeout=SOON).version == 3
        assert cluster.started("novel") == {"first": 1, "second": 2}
        assert attempts(cluster.engine, "novel") == [
            ("first", "succeeded"), ("second", "lost"), ("second", "succeeded"),
        ]  # fmt: skip


def test_threads_run_hops_side_by_side(tmp_path: Path, database_url: str, redis_server: Redis) -> None:
    """Each has a session of its own; while one waits in its hop, the other moves graphs to the end."""
    with Cluster(tmp_path, database_url=database_url, redis=redis_server) as cluster:
        for name in ("held", *(f"free-{n}" for n in range(5))):
            cluster.add_graph(name, "trail")
        hold = cluster.steer("hold", "held", "second")
        worker = cluster.start_worker(arguments=("-P", "threads", "-c", "2"))
        held = migrate_graph.delay("held", 3)
        assert cluster.pid_in("held", "second") == worker.pid
        free = [migrate_graph.delay(f"free-{n}", 3) for n in range(5)]
        assert [each.get(timeout=SOON).version for each in free] == [3] * 5
        assert attempts(cluster.engine, "held")[-1] == ("second", "running")
        hold.unlink()
        assert held.get(timeout=SOON).version == 3


class Gate:
    """Stands between clients and a Postgres: can send clients away, or hold a question back.

    Attributes:
        shut: Whether clients are sent away.
    """

    def __init__(self, database_url: str) -> None:
        self.shut = False
        there = urlsplit(database_url)
        self._there = ("127.0.0.1", there.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        here = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = database_url.replace(f"127.0.0.1:{there.port}", here)
        self._held_back = b""
        self._met = threading.Event()
        self._open = threading.Event()
        self._ends: list[socket.socket] = []

    @contextmanager
    def closed_to(self, question: bytes) -> Iterator[threading.Event]:
        """Hold back whoever asks this; the event says that somebody did."""
        self._held_back = question
        try:
            yield self._met
        finally:
            self._held_back = b""
            self._open.set()

    def __enter__(self) -> Gate:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for end in (self._listener, *self._ends):
            end.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.shut:
                    client.close()
                    continue
                server = socket.create_connection(self._there)
                self._ends += (client, server)
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if self._held_back and self._held_back in data:
                    self._met.set()
                    self._open.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
