"""`graph-migrator release`."""

from __future__ import annotations

import click

from graph_migrator.core.execution import operations
from graph_migrator.core.inspection.graph_state import graph_state
from graph_migrator.core.inspection.quantities import count
from graph_migrator.tasks.cli.output import ask, json_option
from graph_migrator.tasks.cli.verbs import carry_out, show, yes_option
from graph_migrator.tasks.runtime import engine


@click.command()
@click.argument("graph")
@click.option("--force", is_flag=True, help="Also if it is live, or in the middle of a batched hop.")
@click.option("--terminate", is_flag=True, help="With --force: end the session that holds the graph's lock.")
@click.option(
    "--whole", is_flag=True, help="Its rows were mended by hand: declare a partially migrated graph whole."
)
@yes_option
@json_option
def release(graph: str, force: bool, terminate: bool, whole: bool, yes: bool, as_json: bool) -> None:
    """End GRAPH's migration and let writers in, at the version it has."""
    if terminate and not force:
        raise click.UsageError("--terminate goes with --force")
    meant = None
    if not yes:
        state = graph_state(engine(), graph, count_rows=False)
        meant = state.graph.migration_id
        half = (
            f", half-way through a hop after {count(state.checkpoint_done, 'row')}"
            if state.checkpoint_done
            else ""
        )
        ended = " The session that holds its lock is ended." if terminate else ""
        ask(
            f"Release {state.graph.slug} at v{state.graph.version}{half}? Its migration "
            f"({state.graph.status or 'none'}) is abandoned and writers get in.{ended}",
            yes=yes,
        )
    report = carry_out(
        lambda e, c: operations.release(
            e, graph, c, force=force, terminate=terminate, whole=whole, migration_id=meant
        )
    )
    show(report, as_json=as_json)
