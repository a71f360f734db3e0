"""Graphs moved by `run_together` in this process, and what must be so of them afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine

from graph_migrator import HopContext
from graph_migrator.core.audit.verify import verify_chains
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.execution.model import Applied, Caller, HopOutcome, Worker
from graph_migrator.core.execution.run_hop import run_hop
from graph_migrator.core.execution.straight import FreeGraph, Straight
from graph_migrator.core.execution.together import run_together
from graph_migrator.core.graph_types import registry
from graph_migrator.core.planning import make_plan
from graph_migrator.core.store.protocol import BeginAndOpen, BeginTogether
from graph_migrator.core.store.session import Executors
from tests.rows import add_graph, advisory_locks, graph_row, rows
from tests.waiting import until

WORKER = Worker("w")
Act = Callable[[HopContext], Any]


def run(
    executors: Executors,
    engine: Engine,
    slugs: Sequence[str],
    target: int,
    *,
    begin: Callable[[Sequence[BeginAndOpen]], BeginTogether] = BeginTogether.of,
) -> list[Straight | None]:
    """Together alone: what has parted is left where it is."""
    graphs = [graph_row(engine, slug) for slug in slugs]
    kind = registry.graph_type(graphs[0].graph_type)
    return run_together(
        executors,
        kind,
        [(FreeGraph(each.id, each.slug, each.version), Caller(str(uuid4()))) for each in graphs],
        make_plan(slugs[0], kind, graphs[0].version, target),
        worker=WORKER,
        begin=begin,
    )


def move(executors: Executors, engine: Engine, slugs: Sequence[str], target: int) -> dict[str, HopOutcome]:
    """As a pack does: what has parted goes on by itself, in order."""
    outcomes: dict[str, HopOutcome] = {}
    came = run(executors, engine, slugs, target)
    if any(straight is not None and straight.outcome is None for straight in came):
        until(lambda: not advisory_locks(engine), "the session of those that have parted has ended")
    for slug, straight in zip(slugs, came, strict=True):
        if straight is None:
            continue
        outcome = straight.outcome
        for message in straight.begun.messages()[straight.applied :] if outcome is None else ():
            outcome = run_hop(executors, message, worker=WORKER)
            if not isinstance(outcome, Applied) or outcome.report is not None:
                break
        assert outcome is not None
        outcomes[slug] = outcome
    return outcomes


def on(**acts: Act) -> Act:
    """What each graph's hop does, by its slug."""
    return lambda ctx: acts.get(ctx.graph.slug, lambda _: None)(ctx)


def have_parted(engine: Engine) -> bool:
    """Whether a transaction that graphs shared was not committed."""
    return bool(rows(engine, "SELECT FROM hop_attempts WHERE status IN ('stopped', 'lost')"))


def assert_sound(engine: Engine, executors: Executors) -> None:
    """Nothing is held, the proof chain is whole, and the session is as good as new."""
    until(lambda: not advisory_locks(engine), "sessions that were closed have ended")
    assert verify_chains(engine).count == 0
    assert not rows(engine, "SELECT FROM hop_attempts WHERE status = 'running'")
    slug = f"after-{uuid4()}"
    add_graph(engine, slug, "next")
    assert run_graph_migration(executors, slug, 2).version == 2
    assert not advisory_locks(engine)
