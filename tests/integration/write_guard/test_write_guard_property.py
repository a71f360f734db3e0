"""Random writers against a random run of migrations: no write of one shape ever lands in another version.

A writer reads the graph's version, as applications do, waits a little, and writes rows of that shape. Each hop
rewrites the rows that have the shape it expects. A write that slips in, before or behind a hop, leaves a row
whose shape is not the graph's version; nothing mends it, so it is found.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any
from uuid import UUID

import psycopg2
import pytest

from tests.integration.hand_driven import (
    ISOLATIONS,
    REPEATABLE_READ,
    Client,
    HandDriven,
    add_graph,
    sqlstate_of,
)

WRITERS = 6
MIGRATIONS = 12
MISFITS = "SELECT count(*) FROM nodes n JOIN graphs g ON g.id = n.graph_id WHERE n.label <> 'v' || g.version"


class Course:
    """How many migrations have ended, for writers that sleep through one."""

    def __init__(self) -> None:
        self.ended = 0
        self.stop = threading.Event()
        self._changed = threading.Condition()

    def one_more(self) -> None:
        with self._changed:
            self.ended += 1
            self._changed.notify_all()

    def sleep_through_one(self) -> None:
        with self._changed:
            seen = self.ended
            self._changed.wait_for(lambda: self.ended > seen or self.stop.is_set(), timeout=5)


class Writer(threading.Thread):
    """Writes rows of the shape that it saw when its transaction began, again and again."""

    def __init__(self, url: str, graph: UUID, seed: int, course: Course) -> None:
        super().__init__(daemon=True)
        self.url, self.graph, self.seed, self.course = url, graph, seed, course
        self.stop = course.stop
        self.random = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                client = Client(self.url, self.random.choice(ISOLATIONS))
                for _ in range(self.random.randint(1, 8)):
                    code = sqlstate_of(self._write, client)
                    self.outcomes[code or "written"] += 1
                    client.rollback()
                client.close()
        except BaseException as error:
            self.error = error

    def _write(self, client: Client) -> None:
        choose = self.random.choice
        version = client.one("SELECT version FROM graphs WHERE id = %s", self.graph)
        shape = f"v{version}"
        if choose((True, False, False, False)):
            self.course.sleep_through_one()
        self._linger()
        if choose((True, False, False)):
            client.run("SELECT * FROM write_guard(%s::text, %s)", self.graph, choose((version, None)))
            self._linger()
        if choose((True, False)):
            client.run("SAVEPOINT s")
            client.run("UPDATE nodes SET label = %s WHERE graph_id = %s AND id = 'n1'", shape, self.graph)
            if choose((True, False)):
                client.run("ROLLBACK TO SAVEPOINT s")
        for _ in range(self.random.randint(1, 3)):
            self._linger()
            values: dict[str, Any] = {
                "g": self.graph, "shape": shape, "id": f"w{self.seed}-{self.random.random()}",
                "old": f"n{self.random.randint(1, 20)}",
            }  # fmt: skip
            statement = choose(
                (
                    "INSERT INTO nodes VALUES (%(g)s, %(id)s, %(shape)s)",
                    "UPDATE nodes SET label = %(shape)s WHERE graph_id = %(g)s AND id = %(old)s",
                    "INSERT INTO nodes VALUES (%(g)s, %(old)s, %(shape)s) "
                    "ON CONFLICT (graph_id, id) DO UPDATE SET label = excluded.label",
                    "DELETE FROM nodes WHERE graph_id = %(g)s AND id = %(old)s",
                )
            )
            with client.raw.cursor() as cursor:
                cursor.execute(statement, values)
        self._linger()
        client.commit()

    def _linger(self) -> None:
        if self.random.random() < 0.4:
            self.stop.wait(self.random.random() * 0.03)


class Reader(threading.Thread):
    """Looks at version and rows in one snapshot, again and again: they match, whatever goes on."""

    def __init__(self, url: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.url, self.stop = url, stop
        self.looks = 0
        self.misfits = 0

    def run(self) -> None:
        client = Client(self.url, REPEATABLE_READ)
        while not self.stop.is_set():
            self.misfits += client.one(MISFITS)
            client.rollback()
            self.looks += 1
        client.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_write_of_the_old_shape_lands_after_begin_and_none_of_before_after_the_end(
    database_url: str, seed: int
) -> None:
    app = Client(database_url)
    graph = add_graph(app, "people", nodes=20)
    course = Course()
    writers = [Writer(database_url, graph, 100 * seed + n, course) for n in range(WRITERS)]
    reader = Reader(database_url, course.stop)
    chance = random.Random(seed)
    try:
        for thread in (*writers, reader):
            thread.start()
        for _ in range(MIGRATIONS):
            _migrate(database_url, graph, chance)
            course.one_more()
    finally:
        course.stop.set()
        course.one_more()
        for thread in (*writers, reader):
            thread.join(30)
    assert [writer.error for writer in writers if writer.error] == []
    assert app.one(MISFITS) == 0
    assert reader.misfits == 0
    assert reader.looks > MIGRATIONS
    outcomes = sum((writer.outcomes for writer in writers), Counter())
    # All of it happened: writes went through, were refused, and had to be repeated.
    assert min(outcomes["written"], outcomes["55006"], outcomes["40001"]) > 5, outcomes
    assert set(outcomes) <= {"written", "55006", "40001", "40P01"}, outcomes
    app.close()


def _migrate(url: str, graph: UUID, chance: random.Random) -> None:
    migration = HandDriven(url, graph, hops=chance.randint(1, 3))
    while True:
        with suppress(psycopg2.errors.LockNotAvailable, psycopg2.errors.DeadlockDetected):
            migration.lock_and_load()
            break
    _linger(chance)
    migration.claim()
    _linger(chance)
    migration.release_lock()
    while migration.version < migration.target:
        _linger(chance)
        last = migration.is_last
        migration.open_hop()
        with migration.data() as run:
            expected, becomes = f"v{migration.version}", f"v{migration.version + 1}"
            _linger(chance)
            # The hop knows one shape, and leaves what it does not know.
            run("UPDATE nodes SET label = %s WHERE graph_id = %s AND label = %s", becomes, graph, expected)
            _linger(chance)
        _linger(chance)
        migration.release_lock(stamp=last)
    _linger(chance)
    migration.close()


def _linger(chance: random.Random) -> None:
    """Leave room for others at this point, or not."""
    if chance.random() < 0.6:
        time.sleep(chance.random() * 0.03)
