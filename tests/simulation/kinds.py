"""The graph types of the simulation. Every hop writes its name to each node's trail, so that a second run shows.

There are two releases of each type, "A" and "B", with different fingerprints and the same effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from graph_migrator import GraphType, HopContext, Node, Nodes

NODES: Final = ("n1", "n2", "n3", "n4", "n5")
BATCH: Final = 2
NEWEST: Final = {"plain": 4, "batched": 3, "sharded": 3, "rebuilt": 3}
SHARDS: Final = 2


class Shaky(Exception):
    """An error that the hops name in ``retry_on``."""


meddle: Callable[[HopContext], Callable[[HopContext], None] | None] | None = None
"""Set by the simulation; called inside every hop, where it may raise. Returns what a whole hop does at its end."""


def releases() -> dict[str, dict[str, GraphType]]:
    """Both releases: types by name."""
    makers = (_plain, _batched, _sharded, _rebuilt)
    return {code: {kind.name: kind for kind in (make(code) for make in makers)} for code in "AB"}


def _plain(code: str) -> GraphType:
    kind = GraphType("plain")
    for version in (1, 2, 3):
        _declare(kind, code, version, batched=False)
    return kind


def _batched(code: str) -> GraphType:
    kind = GraphType("batched")
    _declare(kind, code, 1, batched=True)
    _declare(kind, code, 2, batched=False)
    return kind


def _sharded(code: str) -> GraphType:
    kind = GraphType("sharded")
    _declare(kind, code, 1, batched=True, shards=SHARDS)
    _declare(kind, code, 2, batched=False)
    return kind


def _rebuilt(code: str) -> GraphType:
    kind = GraphType("rebuilt")
    _declare(kind, code, 1, batched=True, shards=SHARDS, rebuild=True)
    _declare(kind, code, 2, batched=True, rebuild=True)
    return kind


def _declare(
    kind: GraphType,
    code: str,
    version: int,
    *,
    batched: bool,
    shards: int | None = None,
    rebuild: bool = False,
) -> None:
    def whole(entry: str) -> Callable[[HopContext], None]:
        def hop(ctx: HopContext) -> None:
            assert code
            at_its_end = _meddle(ctx)
            ctx.execute(
                "UPDATE nodes SET properties = jsonb_set(properties, '{trail}', properties->'trail' || "
                "to_jsonb(CAST(:entry AS text))) WHERE graph_id = :graph_id",
                {"entry": entry},
            )
            if at_its_end is not None:
                at_its_end(ctx)

        return hop

    def in_batches(entry: str) -> Callable[[HopContext, list[Node]], None]:
        def hop(ctx: HopContext, nodes: list[Node]) -> None:
            assert code
            _meddle(ctx)
            for node in nodes:
                node.properties["trail"].append(entry)

        return hop

    make: Any = in_batches if batched else whole
    forward, back = make(f"{version}>{version + 1}"), make(f"{version + 1}>{version}")
    forward.__name__ = f"step_{version}"
    over = Nodes() if batched else None
    declared = kind.hop(
        version, version + 1, over=over, batch_size=BATCH, retry_on=Shaky, shards=shards, rebuild=rebuild
    )
    declared(forward).reverse(back)


def _meddle(ctx: HopContext) -> Callable[[HopContext], None] | None:
    return None if meddle is None else meddle(ctx)
