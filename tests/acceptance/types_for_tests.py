"""Graph types for tests with real workers. What a hop does is controlled from outside, by files.

The folder is named by ``GRAPH_MIGRATOR_TEST_FOLDER``. Each start of a hop's code adds a line to
``invocations`` there, which no rollback takes back. Before a hop touches data it looks for

    hold-SLUG-HOP   waits until the file is gone
    fail-SLUG-HOP   raises `DeliberateError` with the file's text
    clash-SLUG-HOP  fails once as after a conflict with another transaction, which is worth another try
    kill-SLUG-HOP   kills its own process with SIGKILL
    spin-SLUG-HOP   runs Python for ever, and no statement

Each hop adds its name to the list ``trail`` of every node, so that one that took effect twice shows.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from graph_migrator import GraphType, HopContext, Node, Nodes


class DeliberateError(Exception):
    """Raised by a hop because a test asked for it."""


def control_folder() -> Path:
    """Where tests say what hops are to do."""
    return Path(os.environ["GRAPH_MIGRATOR_TEST_FOLDER"])


def obey(ctx: HopContext) -> None:
    """Note the start of a hop's code, and do what a test has asked of it."""
    folder = control_folder()
    with (folder / "invocations").open("a") as log:  # one short write in append mode: never torn
        log.write(f"{ctx.graph.slug} {ctx.hop} {os.getpid()}\n")
    name = f"{ctx.graph.slug}-{ctx.hop}"
    deadline = time.monotonic() + 90
    while (folder / f"hold-{name}").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody removed hold-{name}")
        time.sleep(0.02)
    if (folder / f"kill-{name}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    while (folder / f"spin-{name}").exists():
        pass
    clash = folder / f"clash-{name}"
    if clash.exists():
        clash.unlink()
        ctx.execute("DO $$ BEGIN RAISE EXCEPTION 'clash' USING ERRCODE = 'serialization_failure'; END $$")
    if (folder / f"fail-{name}").exists():
        raise DeliberateError((folder / f"fail-{name}").read_text())


def _append(ctx: HopContext) -> None:
    obey(ctx)
    ctx.execute(
        "UPDATE nodes SET properties = jsonb_set(properties, '{trail}', "
        "coalesce(properties->'trail', '[]') || to_jsonb(CAST(:hop AS text))) WHERE graph_id = :graph_id",
        {"hop": ctx.hop},
    )


trail = GraphType("trail")
"""v1 to v5, each hop one transaction; the last one has no reverse."""


@trail.hop(1, 2)
def first(ctx: HopContext) -> None:
    """Leave the first mark."""
    _append(ctx)


@first.reverse
def first_back(ctx: HopContext) -> None:
    _append(ctx)


@trail.hop(2, 3)
def second(ctx: HopContext) -> None:
    """Leave the second mark."""
    _append(ctx)


@second.reverse
def second_back(ctx: HopContext) -> None:
    _append(ctx)


@trail.hop(3, 4)
def third(ctx: HopContext) -> None:
    """Leave the third mark."""
    _append(ctx)


@third.reverse
def third_back(ctx: HopContext) -> None:
    _append(ctx)


@trail.hop(4, 5)
def fourth(ctx: HopContext) -> None:
    """Leave the fourth mark; there is no way back."""
    _append(ctx)


batched_trail = GraphType("batched_trail")
"""v1 to v3: a hop in batches of ten, then one in one transaction."""


@batched_trail.hop(1, 2, over=Nodes(), batch_size=10)
def visit(ctx: HopContext, nodes: list[Node]) -> None:
    """Mark the nodes, ten at a time."""
    obey(ctx)
    for node in nodes:
        node.properties.setdefault("trail", []).append(ctx.hop)


@batched_trail.hop(2, 3)
def arrive(ctx: HopContext) -> None:
    """Leave the last mark."""
    _append(ctx)


ALL = [trail, batched_trail]
