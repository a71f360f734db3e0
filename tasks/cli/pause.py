"""`graph-migrator pause` and `resume`."""

from __future__ import annotations

import click

from graph_migrator.core.execution import operations
from graph_migrator.tasks.cli.output import json_option
from graph_migrator.tasks.cli.verbs import carry_out, show


@click.command()
@click.argument("graph")
@json_option
def pause(graph: str, as_json: bool) -> None:
    """Stop GRAPH's migration at the next hop or batch boundary, until it is resumed."""
    show(carry_out(lambda e, c: operations.pause(e, graph, c)), as_json=as_json)


@click.command()
@click.argument("graph")
@json_option
def resume(graph: str, as_json: bool) -> None:
    """Let GRAPH's paused migration go on."""
    show(carry_out(lambda e, c: operations.resume(e, graph, c)), as_json=as_json)
