"""What `migrate` does beside sending a call: refuse what cannot be, and name code that differs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import click

from graph_migrator.core.errors import (
    OpenWriteTransactions,
    UnknownTarget,
)
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection.graphs import GraphSummary, require_free
from graph_migrator.core.planning import make_plan
from graph_migrator.core.settings import settings
from graph_migrator.core.store.lock_sessions import lock_sessions
from graph_migrator.tasks.runtime import engine

_ASK_SECONDS: Final = 0.5


def refuse_target(found: GraphSummary, target: int | None) -> None:
    """Refuse a target or way that the graph's type, if it is known here, does not have.

    Raises:
        GraphMigratorError: The target is not known here, no hop leads from the graph's version, or one has no reverse.
    """
    kind = graph_types().get(found.graph_type)
    if kind is None:
        return
    try:
        make_plan(found.slug, kind, found.version, target, undoable_to=found.undoable_to)
    except UnknownTarget:
        click.echo("Where a worker with newer code is expected: --wait-for-deploy sends it.", err=True)
        raise


def refuse_state(found: GraphSummary) -> None:
    """Refuse what a worker would refuse in the graph's present state, unseen by a caller that does not wait.

    Raises:
        MigrationInFlight: Another migration owns the graph.
        GraphPartiallyMigrated: It was released in the middle of a hop.
        OpenWriteTransactions: Writers hold it for longer already than a worker would wait for them.
    """
    require_free(engine(), found)
    patience = settings().writer_drain_seconds
    before = datetime.now(UTC) - timedelta(seconds=patience)
    writers = [each for each in lock_sessions(engine(), found.id) if each.holds and not each.exclusive]
    old = [each.describe() for each in writers if each.since is not None and each.since < before]
    if old:
        raise OpenWriteTransactions(found.slug, patience, old)


def name_other_code(graph_type: str) -> None:
    """Name the workers whose code for a type differs from the code here; the workers' code is what runs."""
    from graph_migrator.tasks.fleet import code_digests, look_at_fleet

    kind = graph_types().get(graph_type)
    if kind is None:
        return
    here = code_digests()[kind.name]
    fleet = look_at_fleet(_ASK_SECONDS)
    for worker, types in sorted(fleet.workers.items()):
        there = types.get(kind.name)
        if there in {None, here}:
            continue
        oldest, newest = fleet.versions[worker][kind.name]
        click.echo(
            f"Worker {worker} has other code for {kind.name!r}: versions {oldest} to {newest}, fingerprint {there}. "
            f"Here: versions {kind.oldest} to {kind.newest}, fingerprint {here}. The worker's code runs. "
            "Restart the workers with the code that is here, or finish the deploy.",
            err=True,
        )
