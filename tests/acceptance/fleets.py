"""A whole deployment as pytest-celery's nodes: of local processes, or of containers where an engine answers."""

from __future__ import annotations

import os
import secrets
import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
import yaml
from celery import Celery
from pytest_celery import CeleryTestBroker, CeleryTestContainer, CeleryTestWorker
from sqlalchemy import Engine

from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.schema import upgrade
from tests.acceptance.cluster import ROOT, Cluster, Worker
from tests.acceptance.crash.local_nodes import LocalRedis, LocalWorker
from tests.databases import answers
from tests.waiting import until

TYPES = "examples.knowledge:knowledge"
# Batches stay small, so that a hop over some thousand nodes can be met half-way.
SETTINGS = {"GRAPH_MIGRATOR_TYPES": TYPES, "GRAPH_MIGRATOR_BATCH_TARGET_SECONDS": "0.000001"}


@dataclass(frozen=True)
class Fleet:
    """A database, a broker, two workers, and an application of somebody else's that sends messages."""

    engine: Engine
    app: Celery
    broker: CeleryTestBroker
    workers: tuple[CeleryTestWorker, CeleryTestWorker]


@cache
def kinds() -> list[str]:
    """What nodes can be made of here: local processes always, containers where an engine answers."""
    address = urlsplit(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    try:  # by hand: docker's own client leaves its socket open where nobody answers
        if address.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as engine:
                engine.settimeout(5)
                engine.connect(address.path)
        else:
            socket.create_connection((address.hostname, address.port or 2375), timeout=5).close()
    except OSError:
        return ["local"]
    return ["local", "docker"]


@contextmanager
def fleet(kind: str, folder: Path, database_url: str) -> Iterator[Fleet]:
    """A fleet of that kind, ready; nothing of it is left afterwards. One in containers has its own database."""
    with _local(folder, database_url) if kind == "local" else _docker(folder) as made:
        assert all(node.ready() for node in (made.broker, *made.workers))
        yield made


class _Starts:
    """What `LocalWorker` asks for its processes."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.environment = cluster.environment

    def start_another(self) -> Worker:
        return self._cluster.start_worker(f"w{len(self._cluster.workers) + 1}", wait=False)


@contextmanager
def _local(folder: Path, database_url: str) -> Iterator[Fleet]:
    with Cluster(folder, database_url=database_url, types=TYPES, env=SETTINGS) as cluster:
        app = Celery("somebody-else", broker=cluster.broker_url, backend=cluster.result_backend)
        starts: Any = _Starts(cluster)
        first, second = (CeleryTestWorker(LocalWorker(starts), app) for _ in range(2))
        broker = CeleryTestBroker(LocalRedis(cluster.redis, cluster.broker_url))
        yield Fleet(cluster.engine, app, broker, (first, second))


class _Container(CeleryTestContainer):
    """One container of ours."""

    prompt = "ready."

    @property
    def ready_prompt(self) -> str:
        return self.prompt

    @property
    def celeryconfig(self) -> dict[str, str]:
        return {}

    def worker_name(self) -> str:
        return "worker"


class _RedisContainer(_Container):
    prompt = "Ready to accept connections"


@contextmanager
def _docker(folder: Path) -> Iterator[Fleet]:
    """Images of docker-compose.yml, and the one that the Dockerfile makes."""
    images = {
        name: service["image"]
        for name, service in yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].items()
    }
    password, run = secrets.token_hex(12), uuid.uuid4().hex[:8]
    with ExitStack() as stack:
        client = docker.from_env(timeout=300)
        stack.callback(client.close)
        client.images.build(path=str(ROOT), tag=images["worker"], rm=True)
        network = client.networks.create(f"gm-{run}")
        stack.callback(network.remove)

        def start(name: str, image: str, port: int | None = None, **options: Any) -> Any:
            container = client.containers.run(
                image,
                name=f"gm-{run}-{name}",
                detach=True,
                network=network.name,
                ports={f"{port}/tcp": ("127.0.0.1", None)} if port else None,
                **options,
            )
            stack.callback(container.remove, force=True, v=True)
            until(lambda: container.reload() or container.status == "running", f"{name} runs", seconds=60)
            return container

        def port_of(container: Any, port: int) -> int:
            return int(container.attrs["NetworkSettings"]["Ports"][f"{port}/tcp"][0]["HostPort"])

        postgres = start(
            "postgres", images["postgres"], 5432,
            environment={"POSTGRES_PASSWORD": password, "POSTGRES_USER": "migrator", "POSTGRES_DB": "graphs"},
        )  # fmt: skip
        redis = start(
            "redis", images["redis"], 6379,
            command=["redis-server", "--requirepass", password, "--save", "", "--appendonly", "no"],
        )  # fmt: skip
        database = f"postgresql://migrator:{password}@127.0.0.1:{port_of(postgres, 5432)}/graphs"
        until(lambda: answers(database), "Postgres answers", seconds=90, pause=0.3)
        upgrade(database)
        environment = SETTINGS | {
            "DATABASE_URL": f"postgresql://migrator:{password}@gm-{run}-postgres:5432/graphs",
            "CELERY_BROKER_URL": f"redis://:{password}@gm-{run}-redis:6379/0",
            "CELERY_RESULT_BACKEND": f"redis://:{password}@gm-{run}-redis:6379/1",
        }
        from_here = f"redis://:{password}@127.0.0.1:{port_of(redis, 6379)}"
        app = Celery("somebody-else", broker=f"{from_here}/0", backend=f"{from_here}/1")
        first, second = (
            CeleryTestWorker(_Container(start(f"worker-{n}", images["worker"], environment=environment)), app)
            for n in (1, 2)
        )
        engine = make_engine(database)
        stack.callback(engine.dispose)
        yield Fleet(engine, app, CeleryTestBroker(_RedisContainer(redis)), (first, second))
