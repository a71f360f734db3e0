"""`graph-migrator lock` and `unlock`: read-only on the owner's behalf."""

from __future__ import annotations

import click

from graph_migrator.core.execution import operations
from graph_migrator.tasks.cli.output import json_option
from graph_migrator.tasks.cli.verbs import carry_out, show


@click.command()
@click.argument("graph")
@json_option
def lock(graph: str, as_json: bool) -> None:
    """Make GRAPH read-only for its owner. Migrations still run."""
    show(carry_out(lambda e, c: operations.set_read_only(e, graph, c, on=True)), as_json=as_json)


@click.command()
@click.argument("graph")
@json_option
def unlock(graph: str, as_json: bool) -> None:
    """Remove the owner's lock from GRAPH."""
    show(carry_out(lambda e, c: operations.set_read_only(e, graph, c, on=False)), as_json=as_json)
