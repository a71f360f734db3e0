"""`graph-migrator cancel`."""

from __future__ import annotations

import click

from graph_migrator.core.execution import operations
from graph_migrator.core.inspection.graph_state import graph_state
from graph_migrator.tasks.cli.output import ask, json_option
from graph_migrator.tasks.cli.verbs import carry_out, show, yes_option
from graph_migrator.tasks.runtime import engine


@click.command()
@click.argument("graph")
@yes_option
@json_option
def cancel(graph: str, yes: bool, as_json: bool) -> None:
    """End GRAPH's migration at the next boundary. It stays at the version it has reached."""
    meant = None
    if not yes:
        state = graph_state(engine(), graph, count_rows=False)
        meant = state.graph.migration_id  # the graph may be under another one by the time of the answer
        ask(
            f"Cancel the migration of {state.graph.slug}? It ends at its next boundary, at v{state.graph.version} "
            "or what it reaches until then; finished hops stay. Half-way through a batched hop it stays read-only "
            "until `retry` finishes the hop",
            yes=yes,
        )
    show(carry_out(lambda e, c: operations.cancel(e, graph, c, migration_id=meant)), as_json=as_json)
