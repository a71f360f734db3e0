"""A Postgres, a Redis and real Celery workers, as processes that can be killed one by one.

    with Cluster(tmp_path) as cluster:
        worker = cluster.start_worker()
        cluster.add_graph("g", "trail")
        result = migrate_graph.delay("g", 3)
        cluster.kill_child(worker.child_pids()[0])
        result.get(timeout=30)

Every process that was started is ended with the block, whatever happens in it, and by its own pid.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import psutil
import redis as redis_client
from celery.backends.redis import RedisBackend
from celery.backends.rpc import RPCBackend
from kombu import pools
from sqlalchemy import Engine

from graph_migrator.core.embedded import Postgres, Redis
from graph_migrator.core.graph_types import registry
from graph_migrator.core.settings import settings
from graph_migrator.core.store.schema import upgrade
from tests.acceptance.crash.nursery import Nursery, Nursling
from tests.databases import FAST, connect
from tests.rows import add_graph
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
TYPES = "tests.acceptance.types_for_tests:ALL"
QUEUE = "migrations"


class Worker:
    """One Celery worker: a main process and its pool, in a process group of their own."""

    def __init__(self, name: str, process: Nursling, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        """The main process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the main process runs."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How the main process ended; None while it runs."""
        return self._process.poll()

    def text(self) -> str:
        """What the worker has logged."""
        return self.log.read_text("utf-8", "replace")

    def child_pids(self) -> list[int]:
        """The pool's processes."""
        return [child.pid for child in psutil.Process(self.pid).children()]

    def wait_until_ready(self, seconds: float = 60) -> None:
        """Wait until it takes messages.

        Raises:
            AssertionError: It ended, or was not ready in time; shows the end of its log.
        """

        def ready() -> bool:
            if not self.is_alive:
                raise AssertionError(
                    f"worker {self.name} ended with {self.exit_code}:\n{self.text()[-4_000:]}"
                )
            return f"{self.name}@localhost ready." in self.text()

        try:
            until(ready, f"worker {self.name} ready", seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text()[-4_000:]}") from None

    def signal(self, how: signal.Signals) -> None:
        """Send a signal to the main process alone, as an orchestrator does."""
        if self.is_alive:
            self._process.send_signal(how)

    def wait(self, seconds: float = 30) -> int:
        """Wait for the main process to end; its exit code."""
        return self._process.wait(seconds)

    def kill(self) -> None:
        """SIGKILL for the whole group, as a machine that loses its power would."""
        # The group outlives its leader as long as a child lives; without children there is none any more.
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(10)


class Cluster:
    """Servers and workers of one test.

    Args:
        folder: For logs, and for what tests ask of hops (see `tests.acceptance.types_for_tests`).
        database_url: A database with our schema; by default a Postgres of the cluster's own.
        redis: A running Redis; by default one of the cluster's own. It is emptied at the start.
        types: What ``GRAPH_MIGRATOR_TYPES`` names.
        env: More environment for every worker.
    """

    def __init__(
        self,
        folder: Path,
        *,
        database_url: str | None = None,
        redis: Redis | None = None,
        types: str = TYPES,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.postgres: Postgres | None = None
        self.workers: list[Worker] = []
        self._nurseries: dict[tuple[tuple[str, str], ...], Nursery] = {}
        self._database_url = database_url
        self._redis = redis
        self._types = types
        self._env = dict(env or {})
        self._stack = ExitStack()
        self.engine: Engine

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._database_url is None:
                self.postgres = self._stack.enter_context(Postgres(durable=False, settings=FAST))
                self._database_url = self.postgres.url
                upgrade(self._database_url)
            if self._redis is None:
                self._redis = self._stack.enter_context(Redis())
            self._redis.flush()
            self.engine = connect(self.database_url, application_name="test")
            self._stack.callback(self.engine.dispose)
            self._stack.callback(self.stop_workers)
            self.connect_this_process()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ── services ────────────────────────────────────────────────────────────────────────────────────

    @property
    def database_url(self) -> str:
        """The database of graphs."""
        assert self._database_url is not None
        return self._database_url

    @property
    def redis(self) -> Redis:
        """The broker and result backend."""
        assert self._redis is not None
        return self._redis

    @property
    def broker_url(self) -> str:
        """Database 0 of Redis."""
        return self.redis.url

    @property
    def result_backend(self) -> str:
        """Database 1 of Redis."""
        return self.redis.url.removesuffix("/0") + "/1"

    @property
    def environment(self) -> dict[str, str]:
        """The settings of every process of ours, apart from this process's own."""
        return {
            "DATABASE_URL": self.database_url,
            "CELERY_BROKER_URL": self.broker_url,
            "CELERY_RESULT_BACKEND": self.result_backend,
            "GRAPH_MIGRATOR_TYPES": self._types,
            "GRAPH_MIGRATOR_TEST_FOLDER": str(self.folder),
            "PYTHONPATH": str(ROOT),
        } | self._env

    def connect_this_process(self) -> None:
        """Let this process reach the cluster: `.delay()`, commands, and whatever reads the settings."""
        from graph_migrator import app
        from graph_migrator.tasks import answers, runtime

        before, make_engine = dict(os.environ), runtime.make_engine
        os.environ.update(self.environment)

        def forget() -> None:
            settings.cache_clear()
            registry.reset()
            runtime.engine.cache_clear()
            runtime.executors.cache_clear()
            answers.backend_answers.cache_clear()
            app._backend_cache = app._pool = app.amqp._producer_pool = None
            app._local.__dict__.clear()

        def disconnect() -> None:
            runtime.executors().close()
            runtime.engine().dispose()
            runtime.make_engine = make_engine
            if isinstance(app.backend, RPCBackend) and app.backend.result_consumer._connection is not None:
                app.backend.result_consumer.stop()
            if isinstance(
                app.backend, RedisBackend
            ):  # else its sockets are left to the garbage collector, which warns
                app.backend.result_consumer.stop()
                app.backend.client.connection_pool.disconnect()
            pools.reset()
            os.environ.clear()
            os.environ.update(before)
            forget()

        forget()
        runtime.make_engine = connect
        app.conf.update(
            broker_url=self.environment["CELERY_BROKER_URL"],
            broker_read_url=self.environment["CELERY_BROKER_URL"],
            broker_write_url=self.environment["CELERY_BROKER_URL"],
            result_backend=self.environment["CELERY_RESULT_BACKEND"],
        )
        self._stack.callback(disconnect)

    def client(self, database: int = 0) -> Any:
        """A Redis client on one of the cluster's databases."""
        return redis_client.Redis.from_url(self.broker_url.removesuffix("/0") + f"/{database}")

    def queue_length(self) -> int:
        """How many messages wait in our queue, those in a worker's hands not counted."""
        with self.client() as client:
            return int(client.llen(QUEUE))

    # ── workers ─────────────────────────────────────────────────────────────────────────────────────

    def start_worker(
        self,
        name: str = "w1",
        *,
        concurrency: int = 2,
        env: Mapping[str, str] | None = None,
        arguments: tuple[str, ...] = (),
        wait: bool = True,
    ) -> Worker:
        """Start a worker, and wait until it takes messages unless `wait` is false."""
        log = self.folder / f"{name}.log"
        environment = {**_inherited(), **self.environment, **(env or {})}
        process = self._nursery_with(environment).start(
            log,
            [
                "worker", "-Q", QUEUE, "-c", str(concurrency), "-n", f"{name}@localhost",
                "--loglevel", "INFO", "--without-gossip", "--without-mingle", *arguments,
            ],
        )  # fmt: skip
        worker = Worker(name, process, log)
        self.workers.append(worker)
        if wait:
            worker.wait_until_ready()
        return worker

    def _nursery_with(self, environment: dict[str, str]) -> Nursery:
        """The process that forks workers with this environment; settings are read when it imports us."""
        key = tuple(sorted(environment.items()))
        if key not in self._nurseries:
            self._nurseries[key] = self._stack.enter_context(Nursery(environment, ROOT))
        return self._nurseries[key]

    def kill_child(self, pid: int) -> None:
        """SIGKILL for one process of a pool, as the kernel does when memory runs out."""
        assert any(w.is_alive and pid in w.child_pids() for w in self.workers), (
            f"{pid} is no pool process of ours"
        )
        os.kill(pid, signal.SIGKILL)

    def kill_worker(self, worker: Worker) -> None:
        """SIGKILL for a worker's main process and its whole pool."""
        worker.kill()

    def terminate(self, worker: Worker, how: signal.Signals = signal.SIGTERM, *, seconds: float = 30) -> int:
        """Ask a worker to end and wait for it; its exit code."""
        worker.signal(how)
        return worker.wait(seconds)

    def stop_workers(self) -> None:
        """End every worker at once."""
        for worker in self.workers:
            worker.kill()

    # ── what tests ask of hops, and read ────────────────────────────────────────────────────────────

    def add_graph(self, slug: str, graph_type: str, version: int = 1, **options: Any) -> UUID:
        """Insert a graph; see `tests.rows.add_graph`."""
        return add_graph(self.engine, slug, graph_type, version, **options)

    def steer(self, what: str, slug: str, hop: str, text: str = "") -> Path:
        """Make a hop hold, fail or kill its process; undone by removing the file."""
        path = self.folder / f"{what}-{slug}-{hop}"
        path.write_text(text)
        return path

    def invocations(self, slug: str) -> list[tuple[str, int]]:
        """(hop, pid) of every start of a hop's code on a graph, whatever became of it."""
        path = self.folder / "invocations"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(hop, int(pid)) for graph, hop, pid in map(str.split, lines) if graph == slug]

    def started(self, slug: str) -> Counter[str]:
        """How often each hop's code was started on a graph."""
        return Counter(hop for hop, _ in self.invocations(slug))

    def pid_in(self, slug: str, hop: str, *, seconds: float = 30) -> int:
        """Wait until a hop's code runs, and return the process that runs it."""

        def running() -> list[int]:
            return [pid for name, pid in self.invocations(slug) if name == hop and psutil.pid_exists(pid)]

        return until(running, f"{hop} of {slug} started", seconds=seconds)[-1]


def _inherited() -> dict[str, str]:
    """This process's environment without any setting of ours: a worker has the cluster's settings alone."""
    ours = {"DATABASE_URL", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"}
    return {k: v for k, v in os.environ.items() if k not in ours and not k.startswith("GRAPH_MIGRATOR_")}
