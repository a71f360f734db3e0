"""Which live workers lack the code of a type."""

from __future__ import annotations

from graph_migrator import GraphType, HopContext
from graph_migrator.core.rollouts.workers import ServedType, WorkerState, lacking, served

CODE = ServedType(oldest=1, newest=3, code="abc")


def worker(name: str, *, live: bool = True, error: str | None = None, **types: ServedType) -> WorkerState:
    return WorkerState(name=name, queue="q", types=types, error=error, pool="prefork", processes=4, live=live)


def test_each_live_worker_that_lacks_the_code_is_named_with_what_it_has() -> None:
    found = [
        worker("same", tenant=CODE),
        worker("older", tenant=ServedType(oldest=1, newest=2, code="xyz")),
        worker("other", tenant=ServedType(oldest=1, newest=3, code="xyz")),
        worker("none"),
        worker("broken", error="no module named x"),
        worker("dead", live=False),
    ]
    assert lacking(found, "tenant", CODE) == {
        "older": "serves v2",
        "other": "has other code for its hops",
        "none": "does not serve the type",
        "broken": "no module named x",
    }


def test_the_code_of_a_type_changes_with_a_hop() -> None:
    first, second = GraphType("tenant"), GraphType("tenant")

    @first.hop(1, 2)
    def rename(ctx: HopContext) -> None:
        """One hop."""
        ctx.execute("UPDATE nodes SET label = 'A' WHERE graph_id = :graph_id")

    def other(ctx: HopContext) -> None:
        """Another hop."""
        ctx.execute("UPDATE nodes SET label = 'B' WHERE graph_id = :graph_id")

    second.hop(1, 2)(other)
    assert served(first) == served(first)
    assert served(first) != served(second)
    assert (served(first).oldest, served(first).newest) == (1, 2)
