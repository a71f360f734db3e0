"""What a rollout over a whole fleet costs the process that moves it on: its start, its turns, and `rollout show`.

The graphs are real rows, a node each; what workers do is written as they would leave it. Turns are timed that have
nothing to do, that take in and send eight chains, and that take in and send packs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from sqlalchemy import Engine

from bench.results import at_most
from graph_migrator.core.rollouts import inspection, operations
from graph_migrator.core.rollouts.controller import turn_of
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
UPDATE packs SET status = 'left', done = size, ended_at = started_at + interval '500 ms' WHERE status = 'running';
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
    assert found.rollout_id is not None
    print(f"fleet: a rollout of {found.graphs:,} graphs started in {seconds:.1f} s")
    chains = _turns(engine, executors, found.rollout_id)
    idle = [_turn(executors, found.rollout_id)[0] for _ in range(TURNS)]
    with executors.borrow() as executor:
        operations.set_knob(executor, TYPE, "packs", "true", Operator("bench"))
    packs = _turns(engine, executors, found.rollout_id)
    shows = [_timed(lambda: _show(executors)) for _ in range(TURNS)]
    print(f"fleet: {len(packs) / TURNS:.1f} turns take in and send {PLACES} packs")
    return [
        at_most(f"start of a rollout of {graphs:,} graphs, s", [seconds], START_S),
        at_most("turn with nothing to do, ms", idle, TURN_MS),
        at_most(f"turn that takes in and sends {PLACES} chains, ms", chains, TURN_MS),
        at_most("turn that takes in or sends packs, ms", packs, TURN_MS),
        at_most("rollout show, ms", shows, SHOW_MS),
    ]


def _turns(engine: Engine, executors: Executors, rollout: UUID) -> list[float]:
    """Milliseconds of each turn that is due after all that was in flight has ended, so many times."""
    times = []
    for _ in range(TURNS):
        with engine.begin() as connection:
            connection.exec_driver_sql(ARRIVE)
        goes_on = True
        while goes_on:
            took, goes_on = _turn(executors, rollout)
            times.append(took)
    return times


def _turn(executors: Executors, rollout: UUID) -> tuple[float, bool]:
    """Milliseconds of one turn, and whether the next one is due at once."""
    with executors.borrow() as executor:
        began = time.perf_counter()
        turn = turn_of(executor, rollout)
        return (time.perf_counter() - began) * 1e3, turn.goes_on


def _show(executors: Executors) -> None:
    with executors.borrow() as executor:
        inspection.show(executor, TYPE)


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3
