"""`graph-migrator delete`."""

from __future__ import annotations

import click

from graph_migrator.core.inspection.graphs import find_graph
from graph_migrator.core.inspection.quantities import count
from graph_migrator.core.store.deleting import delete_graph
from graph_migrator.tasks.cli.output import ask, json_option, print_json
from graph_migrator.tasks.runtime import engine


@click.command()
@click.argument("graph")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def delete(graph: str, yes: bool, as_json: bool) -> None:
    """Delete GRAPH with its nodes and edges. Its history stays, under its id."""
    found = find_graph(engine(), graph)
    ask(f"Delete {found.slug} ({found.id}) with all its nodes and edges", yes=yes)
    with engine().begin() as connection:
        deleted = delete_graph(connection, str(found.id))
    if as_json:
        print_json(deleted)
    else:
        click.echo(
            f"{deleted.slug}: deleted, {count(deleted.nodes, 'node')} and {count(deleted.edges, 'edge')}"
        )
