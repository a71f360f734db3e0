"""`graph-migrator plan`."""

from __future__ import annotations

import click

from graph_migrator.core.graph_types.registry import graph_type as type_named
from graph_migrator.core.inspection.graphs import find_graph
from graph_migrator.core.planning import make_plan
from graph_migrator.tasks.cli.output import (
    console,
    json_option,
    print_json,
    table,
)
from graph_migrator.tasks.runtime import engine


@click.command()
@click.argument("graph")
@click.option(
    "--to", "target", type=click.IntRange(1, 2**31 - 1), help="The version to reach; by default the newest."
)
@json_option
def plan(graph: str, target: int | None, as_json: bool) -> None:
    """List the hops from where GRAPH is to a version. Nothing is run."""
    found = find_graph(engine(), graph)
    kind = type_named(found.graph_type)
    made = make_plan(found.slug, kind, found.version, target, undoable_to=found.undoable_to)
    if as_json:
        print_json([step.to_json() for step in made.steps])
        return
    if not made.steps:
        click.echo(f"{found.slug} is at v{found.version} already.")
        return
    rows = [
        (
            f"v{s.from_version}→v{s.to_version}",
            s.name,
            s.direction,
            "batched" if s.batched else "",
            s.fingerprint[:12],
        )
        for s in made.steps
    ]
    console().print(table(None, ("HOP", "NAME", "DIRECTION", "", "FINGERPRINT"), rows))
