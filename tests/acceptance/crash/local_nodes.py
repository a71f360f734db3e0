"""pytest-celery's nodes over local processes: what its Docker containers offer, without Docker."""

from __future__ import annotations

import signal
from typing import Any

from graph_migrator.core.embedded import Redis
from tests.acceptance.cluster import Worker
from tests.acceptance.crash.stage import Stage


class LocalRedis:
    """A Redis server as pytest-celery sees a container."""

    id = "localhost"

    def __init__(self, server: Redis, url: str) -> None:
        self._server = server
        self._url = url
        self.name = f"redis-{server.port}"

    @property
    def status(self) -> str:
        return "running" if self._server.pid else "exited"

    @property
    def celeryconfig(self) -> dict[str, str]:
        return {"url": self._url, "host_url": self._url}

    def reload(self) -> None: ...

    def logs(self) -> str:
        return self._server.log.read_text("utf-8", "replace")

    def ready(self) -> bool:
        if self.status == "exited":
            raise RuntimeError(f"{self.name} has exited:\n{self.logs()[-2_000:]}")
        return self._server.ask("PING") != b""

    def kill(self, signal: str | int = "SIGKILL") -> None:
        self._server.stop(as_signal(signal))

    def restart(self, **_: Any) -> None:
        """It comes back empty: it keeps nothing on disk."""
        self._server.restart()

    def teardown(self) -> None:
        """The stage owns the server; leave it running."""
        if self.status == "exited":
            self._server.start()


class LocalWorker:
    """A Celery worker as pytest-celery sees a container: SIGKILL ends all of its processes."""

    id = "localhost"

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._worker = stage.start_another()
        self._environment = stage.environment

    @property
    def worker(self) -> Worker:
        """The processes of today."""
        return self._worker

    @property
    def name(self) -> str:
        return self._worker.name

    def worker_name(self) -> str:
        return self._worker.name

    @property
    def status(self) -> str:
        return "running" if self._worker.is_alive else "exited"

    @property
    def celeryconfig(self) -> dict[str, str]:
        return dict(self._environment)

    def reload(self) -> None: ...

    def logs(self) -> str:
        return self._worker.text()

    def ready(self) -> bool:
        self._worker.wait_until_ready()  # raises where it has exited
        return True

    def kill(self, signal: str | int = "SIGKILL") -> None:
        how = as_signal(signal)
        if how == as_signal("SIGKILL"):
            self._worker.kill()
        else:
            self._worker.signal(how)

    def restart(self, **_: Any) -> None:
        self._worker.kill()
        self._worker = self._stage.start_another()
        self.ready()

    def teardown(self) -> None:
        self._worker.kill()


def as_signal(name: str | int) -> signal.Signals:
    """A signal by the name or number that Docker takes."""
    return signal.Signals[name] if isinstance(name, str) else signal.Signals(name)
