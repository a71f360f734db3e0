"""A cluster whose workers can be held at a failpoint, and killed there in every way a machine knows."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import psutil
from celery.result import AsyncResult

from graph_migrator import app, migrate_graph
from graph_migrator.core.embedded import Redis
from graph_migrator.core.store.lock_sessions import lock_holders
from tests.acceptance.cluster import QUEUE, ROOT, Cluster, Worker
from tests.acceptance.crash import ledger
from tests.acceptance.crash.nursery import Nursery
from tests.rows import add_graph, attempts, graph_row, properties, rows
from tests.waiting import until

PATIENT = 60.0  # seconds, on a machine that does other things as well


class Stage(Cluster):
    """A `Cluster` for crashes: short deadlines, and at most one process held at a point.

    Args:
        folder: For logs, and for the file that arms a point.
        results: A running Redis for results; by default they lie in the broker's.
        env: More environment for every worker.
        options: As for `Cluster`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        results: Redis | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.results = results
        self.hold = folder / "hold"
        ours = {
            "GRAPH_MIGRATOR_TEST_HOLD": str(self.hold),
            # A chain whose message went with the broker has no running row: its deadline brings it back.
            "GRAPH_MIGRATOR_DEADLINE_SECONDS": "1",
        }
        options.setdefault("types", "tests.acceptance.crash.ledger:ALL")
        super().__init__(folder, env=ours | dict(env or {}), **options)
        self.hold.mkdir(parents=True)
        self._started = 0
        self._nursery: Nursery

    def __enter__(self) -> Self:
        super().__enter__()
        self._nursery = self._stack.enter_context(self.nursery())
        return self

    def nursery(self, **environment: str) -> Nursery:
        """A process to fork workers from, with more environment from before its first import."""
        return Nursery({**os.environ, **self.environment, **environment}, ROOT)

    @property
    def result_backend(self) -> str:
        """Where results lie."""
        return self.results.url if self.results is not None else super().result_backend

    # ── workers ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def alive(self) -> list[Worker]:
        """The workers that run."""
        return [worker for worker in self.workers if worker.is_alive]

    def start_another(
        self,
        *,
        concurrency: int = 1,
        environment: Mapping[str, str] | None = None,
        configuration: Mapping[str, Any] | None = None,
        nursery: Nursery | None = None,
        pool: str = "prefork",
    ) -> Worker:
        """Start a worker under a name of its own, and do not wait for it.

        By default it has one pool process: with two, the next hop could begin in the worker that is about
        to be killed.
        """
        self._started += 1
        name = f"w{self._started}"
        log = self.folder / f"{name}.log"
        log.touch()
        arguments = ["worker", "-Q", QUEUE, "-P", pool, "-c", str(concurrency), "-n", f"{name}@localhost"]
        arguments += ["--loglevel", "INFO", "--without-gossip", "--without-mingle"]
        process = (nursery or self._nursery).start(log, arguments, environment, configuration)
        self.workers.append(Worker(name, process, log))
        return self.workers[-1]

    def keep(self, count: int) -> None:
        """See to it that exactly so many workers run and take messages."""
        for worker in self.alive[count:]:
            worker.kill()
        for _ in range(count - len(self.alive)):
            self.start_another()
        for worker in self.alive:
            worker.wait_until_ready()

    def worker_of(self, pid: int) -> Worker:
        """The worker that a process belongs to."""
        return next(w for w in self.alive if pid == w.pid or pid in w.child_pids())

    # ── points ──────────────────────────────────────────────────────────────────────────────────────

    def arm(self, place: str) -> None:
        """The next process that gets to this place (``point`` or ``point:nth``) is held there."""
        beside = self.hold / "arming"
        beside.write_text(place)
        beside.rename(self.hold / "armed")

    def held(self) -> int:
        """Wait until a process is held; its pid."""
        found = until(lambda: [*self.hold.glob("held.*")], "a process at its failpoint", seconds=PATIENT)
        return int(found[0].suffix[1:])

    def let_go(self, pid: int | None = None) -> None:
        """Let whoever is held go on, or only one process: another may have reached its place meanwhile."""
        for mark in self.hold.glob(f"held.{pid or '*'}"):
            mark.unlink()

    # ── deaths ──────────────────────────────────────────────────────────────────────────────────────

    def kill_process(self, pid: int) -> None:
        """SIGKILL for one process and nobody else."""
        os.kill(pid, signal.SIGKILL)
        self.let_go(pid)

    def kill_group(self, pid: int) -> None:
        """SIGKILL for the whole worker that a process belongs to."""
        self.worker_of(pid).kill()
        self.let_go(pid)

    def terminate_sessions(self, pid: int) -> int:
        """End every Postgres session of a process, as an administrator or a failing network does."""
        ports = [c.laddr.port for c in psutil.Process(pid).net_connections("tcp") if c.raddr]
        found = rows(
            self.engine,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE client_port = ANY (:ports) AND datname = current_database()",
            ports=ports,
        )
        self.let_go(pid)
        return len(found)

    def an_hour_passes(self) -> None:
        """What Redis' transport does when the visibility timeout is over: unacknowledged messages come back."""
        with app.connection_for_write() as connection:
            channel = connection.default_channel
            channel.visibility_timeout = -1
            channel.qos.restore_visible(num=1_000)

    # ── graphs ──────────────────────────────────────────────────────────────────────────────────────

    def migrate(self, slug: str, graph_type: str = "ledger", **config: Any) -> AsyncResult:
        """Make a graph and ask for its migration to the newest version."""
        self.make(slug, graph_type, **config)
        return self.ask(slug)

    def make(self, slug: str, graph_type: str = "ledger", **config: Any) -> None:
        """Make a graph."""
        add_graph(self.engine, slug, graph_type, nodes=ledger.NODES, config=config)

    def ask(self, slug: str) -> AsyncResult:
        """Ask for a graph's migration to the newest version."""
        return migrate_graph.delay(slug)

    def assert_exactly_once(self, slug: str, stumbles: Mapping[str, set[str]] | None = None) -> None:
        """Every hop took effect once, and nothing is left over.

        Args:
            slug: The graph, of type `ledger`, migrated from v1 to v4.
            stumbles: For each hop that was hit while it ran, what its first attempt may have become.
        """
        seen = attempts(self.engine, slug)
        ends = [(stumbles or {}).get(hop) for hop in ledger.HOPS]
        expected = [
            (hop, end)
            for hop, stumble in zip(ledger.HOPS, ends, strict=True)
            for end in (stumble, {"succeeded"})
            if end
        ]
        assert len(seen) == len(expected), seen
        for (hop, status), (wanted, ends_) in zip(seen, expected, strict=True):
            assert hop == wanted, seen
            assert status in ends_, seen
        self.assert_entered_once(slug)
        self.assert_at_rest(slug, 4, "succeeded")

    def assert_entered_once(self, slug: str) -> None:
        """Each hop of `ledger` has written each node once."""
        written = properties(self.engine, slug)
        assert written == {f"n{i:04}": {"entries": ledger.HOPS} for i in range(ledger.NODES)}

    def assert_at_rest(self, slug: str, version: int, status: str) -> None:
        """One migration, ended; no claim where it succeeded, no checkpoint, no lock."""
        graph = graph_row(self.engine, slug)
        assert graph.version == version
        assert (graph.migration_id is None) == (status == "succeeded")
        assert rows(self.engine, "SELECT status FROM migrations WHERE graph_id = :id", id=graph.id) == [
            (status,)
        ]
        assert not rows(
            self.engine,
            "SELECT c FROM checkpoints c JOIN migrations m ON m.id = c.migration_id WHERE m.graph_id = :id",
            id=graph.id,
        )
        until(lambda: not self.locks_on(slug), "the graph's lock free", seconds=PATIENT)

    def assert_nothing_left(self) -> None:
        """After all cases: every message is gone, every caller answered, every change dated, and still once."""
        self.keep(1)
        until(
            lambda: not rows(self.engine, "SELECT task_id FROM requests WHERE answered_at IS NULL"),
            "every request answered",
            seconds=PATIENT,
        )
        until(
            lambda: not rows(self.engine, "SELECT slug FROM graphs WHERE changed_at IS NULL"),
            "every change dated",
        )
        self.an_hour_passes()  # late duplicates of everything that a dead worker had in hand
        until(lambda: not self.unsettled_messages(), "no message left", seconds=PATIENT)
        for (slug,) in rows(self.engine, "SELECT slug FROM graphs WHERE graph_type = 'ledger'"):
            self.assert_entered_once(slug)

    def unsettled_messages(self) -> int:
        """Messages that wait, or that a worker has in hand."""
        with self.client() as client:
            return int(client.llen(QUEUE)) + int(client.hlen("unacked"))

    def locks_on(self, slug: str) -> list[str]:
        """Who holds a graph's advisory lock."""
        return lock_holders(self.engine, slug)
