"""Operators' verbs, and graphs in every state that a verb can meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine

from graph_migrator import HopContext
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.execution.model import Applied, Caller, Dispatch
from graph_migrator.core.execution.run_hop import run_hop
from graph_migrator.core.store.locks import hold_graph_lock
from graph_migrator.core.store.session import Executor, Executors
from tests.integration.scripted import Script
from tests.rows import add_graph, graph_row, migration_of

Verb = Callable[..., Any]

VERBS: dict[str, Verb] = {
    "pause": operations.pause,
    "cancel": operations.cancel,
    "resume": operations.resume,
    "retry": operations.retry,
    "release": operations.release,
    "release --force": partial(operations.release, force=True),
    "release --whole": partial(operations.release, whole=True),
}

LEGAL: dict[tuple[str, str], str] = {
    ("pause", "queued"): "paused",
    ("pause", "running"): "paused",
    ("cancel", "queued"): "cancelled",
    ("cancel", "running"): "cancelled",
    ("cancel", "pausing"): "cancelling",  # its executor is still there
    ("cancel", "paused"): "cancelled",
    ("resume", "pausing"): "running",
    ("resume", "paused"): "running",
    ("retry", "failed"): "running",
    ("release", "failed"): "released",
    ("release", "paused"): "released",
    ("release --whole", "failed"): "released",
    ("release --whole", "paused"): "released",
    ("release --force", "queued"): "released",
    ("release --force", "running"): "released",
    ("release --force", "failed"): "released",
    ("release --force", "paused"): "released",
}


def begin(executors: Executors, slug: str, target: int | None = None) -> Dispatch:
    with executors.borrow() as executor:
        begun = begin_migration(executor, slug, target)
    assert isinstance(begun, Dispatch)
    return begun


def do(executors: Executors, verb: str, slug: str, task_id: str | None = None, **options: Any) -> Any:
    """Carry a verb out, on a session of its own; of a verb that may send a chain, the report alone."""
    with executors.borrow() as executor:
        done = VERBS[verb](executor, slug, Caller(task_id, requested_by="ann"), **options)
    return done[0] if isinstance(done, tuple) else done


def fail(_: HopContext) -> None:
    raise ValueError("half-way")


@contextmanager
def lock_held(engine: Engine, slug: str) -> Iterator[Executor]:
    """Somebody holds a graph's lock, as an executor does in the middle of a hop."""
    holder = Executor.connect(engine)
    with hold_graph_lock(holder, graph_row(engine, slug).id, seconds=5) as lock:
        assert lock is not None
        try:
            yield holder
        finally:
            holder.close()


@contextmanager
def in_state(
    engine: Engine, executors: Executors, script: Script, state: str, slug: str = "g"
) -> Iterator[None]:
    """A graph v2 of four, one hop of its migration applied, in a state that was reached by the code itself."""
    add_graph(engine, slug, "plain", version=1 if state == "queued" else 2)
    with ExitStack() as stack:
        if state == "free":
            pass
        elif state == "succeeded":
            run_graph_migration(executors, slug, 3)
        elif state == "failed":
            script.on["three"] = fail
            with pytest.raises(ValueError, match="half-way"):
                run_graph_migration(executors, slug, 4)
            script.on.clear()
        else:
            dispatch = begin(executors, slug, 4)
            if state != "queued":
                assert run_hop(executors, dispatch.messages()[0]) == Applied()
            if state in {"pausing", "cancelling"}:
                stack.enter_context(lock_held(engine, slug))
            verb = {"pausing": "pause", "paused": "pause", "cancelling": "cancel", "cancelled": "cancel"}.get(
                state
            )
            if state == "released":
                verb = "release --force"
            if verb:
                do(executors, verb, slug)
        assert state == "free" or migration_of(engine, slug).status == state
        yield


@contextmanager
def half_way(engine: Engine, executors: Executors, script: Script) -> Iterator[None]:
    """A failed migration that stands half-way through a batched hop of 25 rows."""
    add_graph(engine, "g", "batched", nodes=25)
    script.on["visit"] = lambda ctx: len(script.batches) == 2 and fail(ctx)
    with pytest.raises(ValueError, match="half-way"):
        run_graph_migration(executors, "g")
    script.clear()
    yield
