"""`ledger` as the release before shipped it: its last hop is not there yet."""

from __future__ import annotations

from graph_migrator import GraphType, HopContext, Node, Nodes
from tests.acceptance.crash.ledger import _enter_all

ledger = GraphType("ledger")


@ledger.hop(1, 2)
def open_account(ctx: HopContext) -> None:
    _enter_all(ctx)


@ledger.hop(2, 3, over=Nodes(), batch_size=2)
def walk_accounts(ctx: HopContext, nodes: list[Node]) -> None:
    for node in nodes:
        node.properties.setdefault("entries", []).append(ctx.hop)


ALL = [ledger]
