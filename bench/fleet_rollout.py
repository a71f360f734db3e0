"""What a rollout over a whole fleet costs the process that moves it on: its start, its turns, and `rollout show`.

The graphs are real rows, a node each; what workers do is written as they would leave it. Turns are timed that have
nothing to do, that take in and send eight chains, and that take in and send packs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

from bench.results import at_most
from graph_migrator.core.rollouts import inspection, operations
from graph_migrator.core.rollouts.controller import move_rollouts_on
from graph_migrator.core.rollouts.operations import Operator
from graph_migrator.core.rollouts.request import RolloutRequest
from graph_migrator.core.rollouts.start import start
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.store.session import Executors

TYPE, TURNS, PLACES = "bench-small", 30, 8
TURN_MS, START_S, SHOW_MS = 20.0, 60.0, 50.0

PREPARE = """
SET search_path = graph_migrator;
ALTER TABLE graphs DISABLE TRIGGER USER; ALTER TABLE nodes DISABLE TRIGGER USER;
UPDATE graphs SET version = 1 WHERE migration_id IS NULL;
INSERT INTO nodes (graph_id, id, label) SELECT id, 'n', 'Person' FROM graphs ON CONFLICT DO NOTHING;
ALTER TABLE graphs ENABLE TRIGGER USER; ALTER TABLE nodes ENABLE TRIGGER USER;
"""
ARRIVE = """
SET search_path = graph_migrator;
INSERT INTO requests (task_id, verb, graph_id, target, outcome, settled_at, answered_at)
    SELECT request_id::text, 'migrate', graph_id, 4, '{"report": {}}', now(), now()
    FROM rollout_members WHERE status = 'dispatched';
UPDATE packs SET status = 'running', worker = 'w', started_at = sent_at WHERE status = 'sent';
UPDATE packs SET status = 'left', done = size, ended_at = started_at + interval '5 s' WHERE status = 'running';
"""
"""All that is in flight has ended. A no-op's report stands for a migration, which a turn reads by the same keys."""


def lines(engine: Engine, executors: Executors, graphs: int) -> list[dict[str, Any]]:
    """Start a rollout over all graphs of a filled database, and time it."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT", no_parameters=True) as connection:
        connection.exec_driver_sql(PREPARE)
        connection.exec_driver_sql("VACUUM ANALYZE graph_migrator.graphs, graph_migrator.nodes")
    strategy = Strategy(canaries=0, waves=(100,), max_in_flight=PLACES, packs=False, health=False)
    began = time.perf_counter()
    with executors.borrow() as executor:
        found = start(executor, RolloutRequest(graph_type=TYPE, strategy=strategy))
    seconds = time.perf_counter() - began
    print(f"fleet: a rollout of {found.graphs:,} graphs started in {seconds:.1f} s")
    chains = [_turn(engine, executors, idle=False) for _ in range(TURNS)]
    idle = [_turn(engine, executors, idle=True) for _ in range(TURNS)]
    with executors.borrow() as executor:
        operations.set_knob(executor, TYPE, "packs", "true", Operator("bench"))
    sizes: list[int] = []
    packs = [_turn(engine, executors, idle=False, sizes=sizes) for _ in range(TURNS)]
    shows = [_timed(lambda: _show(executors)) for _ in range(TURNS)]
    print(
        f"fleet: turns with packs take in {statistics.median(sizes):.0f} graphs each (median), {max(sizes)} at most"
    )
    return [
        at_most(f"start of a rollout of {graphs:,} graphs, s", [seconds], START_S),
        at_most("turn with nothing to do, ms", idle, TURN_MS),
        at_most(f"turn that takes in and sends {PLACES} chains, ms", chains, TURN_MS),
        at_most(
            f"turn that takes in and sends {PLACES} packs, ms for 100 graphs",
            _per_hundred(packs, sizes),
            TURN_MS,
        ),
        at_most("rollout show, ms", shows, SHOW_MS),
    ]


def _per_hundred(times: list[float], sizes: list[int]) -> list[float]:
    return [took * 100 / max(size, 100) for took, size in zip(times, sizes, strict=True)]


def _turn(engine: Engine, executors: Executors, *, idle: bool, sizes: list[int] | None = None) -> float:
    """Milliseconds of one turn, before which all that was in flight has ended unless nothing is to be done."""
    if not idle:
        with engine.begin() as connection:
            waiting = "SELECT count(*) FROM graph_migrator.rollout_members WHERE status = 'dispatched'"
            if sizes is not None:
                sizes.append(connection.exec_driver_sql(waiting).scalar_one())
            connection.exec_driver_sql(ARRIVE)
    with executors.borrow() as executor:
        return _timed(lambda: move_rollouts_on(executor))


def _show(executors: Executors) -> None:
    with executors.borrow() as executor:
        inspection.show(executor, TYPE)


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3
