"""What the console works with: Postgres, the broker, and answers that take too long for a page."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Generic, Protocol, TypeVar

from sqlalchemy import Engine, QueuePool

from graph_migrator.core.execution.model import Caller, Dispatch
from graph_migrator.core.inspection.diagnosis import Fleet
from graph_migrator.core.inspection.doctor import Finding
from graph_migrator.core.inspection.graphs import GraphSummary
from graph_migrator.core.settings import settings
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.session import Executors

T = TypeVar("T")


class Broker(Protocol):
    """What needs Celery."""

    def send(self, dispatch: Dispatch) -> None:
        """Publish the rest of a migration's chain."""

    def migrate(self, executors: Executors, found: GraphSummary, target: int | None, caller: Caller) -> None:
        """Publish a `migrate_graph` call with the caller's task id, and record that it waits."""

    def ask_workers(self) -> Fleet:
        """Ask the broker and all workers; takes a second."""

    def examine(self) -> list[Finding]:
        """Check the deployment, as `doctor` does; takes some seconds."""


class CeleryBroker:
    """The broker of this process's settings. Celery is loaded when it is first used."""

    def send(self, dispatch: Dispatch) -> None:
        """Publish the rest of a migration's chain."""
        from graph_migrator.tasks.migrate import send

        send(dispatch)

    def migrate(self, executors: Executors, found: GraphSummary, target: int | None, caller: Caller) -> None:
        """Publish a `migrate_graph` call with the caller's task id, and record that it waits."""
        from graph_migrator.tasks.calls import send_call

        send_call(executors, found, target, caller.requested_by, caller.reason, task_id=caller.task_id)

    def ask_workers(self) -> Fleet:
        """Ask the broker and all workers; takes a second."""
        from graph_migrator.tasks.fleet import look_at_fleet

        return look_at_fleet()

    def examine(self) -> list[Finding]:
        """Check the deployment, as `doctor` does; takes some seconds."""
        from graph_migrator.tasks.cli.doctor import examine

        return list(examine())


@dataclass(frozen=True)
class Seen(Generic[T]):
    """An answer and its age."""

    value: T
    at: datetime

    @property
    def seconds(self) -> float:
        """How old it is."""
        return (datetime.now(UTC) - self.at).total_seconds()


class Background(Generic[T]):
    """An answer that is looked up beside the requests: a page shows the last one with its age.

    Args:
        ask: Takes its time.
        fresh_seconds: An answer that is older is asked for again when somebody looks.
    """

    def __init__(self, ask: Callable[[], T], fresh_seconds: float) -> None:
        self._ask = ask
        self._fresh_seconds = fresh_seconds
        self._seen: Seen[T] | None = None
        self._asking: threading.Thread | None = None
        self._mutex = threading.Lock()

    def look(self, *, wait_seconds: float = 0) -> Seen[T] | None:
        """The last answer; None where there is none yet. Asks again, beside this call, where it is old."""
        with self._mutex:
            if self._asking is None and (self._seen is None or self._seen.seconds > self._fresh_seconds):
                self._asking = threading.Thread(target=self._look, name="console-background", daemon=True)
                self._asking.start()
            asking = self._asking
        if asking is not None and wait_seconds:
            asking.join(wait_seconds)
        return self._seen

    def forget(self) -> None:
        """Ask again at the next look."""
        self._seen = None

    def _look(self) -> None:
        try:
            self._seen = Seen(self._ask(), datetime.now(UTC))
        finally:
            self._asking = None


def _read_engine() -> Engine:
    # Reading holds no lock and no token, so its connections may be shared, unlike an executor's.
    return make_engine(
        settings().database_url,
        application_name="graph-migrator console",
        poolclass=QueuePool,
        pool_size=4,
        max_overflow=12,
        pool_timeout=10,
        pool_pre_ping=True,
        pool_recycle=600,
    )


@dataclass
class Services:
    """Everything outside of this process that a request may need."""

    broker: Broker = field(default_factory=CeleryBroker)
    engine: Engine = field(default_factory=_read_engine)
    executors: Executors = field(
        default_factory=lambda: Executors(
            make_engine(settings().database_url, application_name="graph-migrator console verbs")
        )
    )
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.fleet: Background[Fleet] = Background(self.broker.ask_workers, 5)
        self.findings: Background[list[Finding]] = Background(self.broker.examine, 30)

    def close(self) -> None:
        """Close every connection."""
        self.executors.close()
        self.engine.dispose()
