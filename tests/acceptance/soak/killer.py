"""What happens to the servers and workers of a soak, drawn by a seed."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import suppress
from random import Random

import psutil

from graph_migrator import migrate_graph
from graph_migrator.tasks.migrate import run_hop
from tests.acceptance.cluster import Worker
from tests.acceptance.crash.stage import Stage
from tests.rows import rows

# How often each of these is drawn, in a hundred.
KINDS = {
    "child": 35,
    "worker": 20,
    "main process": 10,
    "broker flush": 6,
    "Postgres restart": 4,
    "redelivery of all": 10,
    "old hop message": 8,
    "old call": 7,
}


class Killer:
    """Strikes a stage again and again, and remembers what it did and when."""

    def __init__(self, stage: Stage, random: Random) -> None:
        self.stage = stage
        self.random = random
        self.tally: Counter[str] = Counter()
        self.killed: list[tuple[int, float]] = []
        """(pid, time) of every process that was killed."""

    def strike(self) -> str:
        """Do one thing; its kind."""
        (kind,) = self.random.choices(list(KINDS), weights=list(KINDS.values()))
        self.hit(kind)
        return kind

    def hit(self, kind: str) -> None:
        """Do this thing; it counts unless what was to be hit has just ended by itself."""
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it ended by itself meanwhile
            getattr(self, "_" + kind.replace(" ", "_").lower())()
            self.tally[kind] += 1

    def pause(self) -> float:
        """Seconds until the next strike."""
        return self.random.uniform(0.2, 1.6)

    def _note(self, *pids: int) -> None:
        self.killed += [(pid, time.time()) for pid in pids]

    def _child(self) -> None:
        pid = self.random.choice(self._ready().child_pids() or [0])
        if pid:
            self._note(pid)
            os.kill(pid, signal.SIGKILL)

    def _ready(self) -> Worker:
        """A worker that takes messages; a kill among those that only start would prove nothing.

        Raises:
            ProcessLookupError: There is none at this moment.
        """
        ready = [worker for worker in self.stage.alive if f"{worker.name}@localhost ready." in worker.text()]
        if not ready:
            raise ProcessLookupError
        return self.random.choice(ready)

    def _worker(self) -> None:
        worker = self._ready()
        self._note(*worker.child_pids())
        worker.kill()
        self.stage.start_another(concurrency=2)

    def _main_process(self) -> None:
        """The pool's processes live on for a moment: a hop may still commit, while its parent is gone."""
        worker = self._ready()
        self._note(*worker.child_pids())
        os.kill(worker.pid, signal.SIGKILL)
        self.stage.start_another(concurrency=2)

    def _broker_flush(self) -> None:
        self.stage.redis.flush()

    def _postgres_restart(self) -> None:
        assert self.stage.postgres is not None
        self.stage.postgres.restart()

    def _redelivery_of_all(self) -> None:
        self.stage.an_hour_passes()

    def _old_hop_message(self) -> None:
        found = rows(
            self.stage.engine,
            "SELECT migration_id::text, from_version, to_version, dispatch FROM hop_attempts "
            "ORDER BY id DESC LIMIT 60",
        )
        if found:
            run_hop.si(*self.random.choice(found)).apply_async()

    def _old_call(self) -> None:
        found = rows(
            self.stage.engine,
            "SELECT r.task_id, g.slug, r.target FROM requests r JOIN graphs g ON g.id = r.graph_id "
            "ORDER BY r.created_at DESC LIMIT 60",
        )
        if found:
            task_id, slug, target = self.random.choice(found)
            migrate_graph.apply_async((slug, target), task_id=task_id)
