"""`ledger` as another release ships it: its first hop is written differently, so its fingerprint differs."""

from __future__ import annotations

from graph_migrator import GraphType, HopContext, Node, Nodes
from tests.acceptance.crash.ledger import _enter_all

ledger = GraphType("ledger")


@ledger.hop(1, 2)
def open_account(ctx: HopContext) -> None:
    ctx.execute("SELECT 1")
    _enter_all(ctx)


@ledger.hop(2, 3, over=Nodes(), batch_size=2)
def visit_accounts(ctx: HopContext, nodes: list[Node]) -> None:
    for node in nodes:
        node.properties.setdefault("entries", []).append(ctx.hop)


@ledger.hop(3, 4)
def close_account(ctx: HopContext) -> None:
    _enter_all(ctx)


ALL = [ledger]
