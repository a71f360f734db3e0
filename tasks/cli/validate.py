"""`graph-migrator validate`: does the database fit this release?"""

from __future__ import annotations

import click

from graph_migrator.core.audit.validate import Severity
from graph_migrator.core.audit.validate import validate as compare
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection.quantities import count
from graph_migrator.tasks.cli.output import json_option, print_json
from graph_migrator.tasks.runtime import engine


@click.command()
@click.option(
    "--data",
    is_flag=True,
    help="Also hold nodes and edges against the models of their graph's version: reads all rows.",
)
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    metavar="GRAPHS",
    help="With --data: at most this many graphs of each type and version, chosen at random.",
)
@json_option
@click.pass_context
def validate(ctx: click.Context, data: bool, sample: int | None, as_json: bool) -> None:
    """Check that what the database holds fits this release, before or after a deploy. Nothing is changed.

    Finds graphs at versions or of types that are not known here, hops whose code changed since they were applied,
    claims and checkpoints without an owner, partially migrated graphs, versions that contradict the audit, and tables
    without the write guard; with --data, also rows that the models of their version do not take. Exit code 1: something
    is wrong; information alone is exit code 0.
    """
    if sample is not None and not data:
        raise click.UsageError("--sample goes with --data")
    found = compare(engine(), graph_types(), data=data, sample=sample)
    if as_json:
        print_json(found)
    else:
        for each in found.discrepancies:
            mark = "✗" if each.severity is Severity.WRONG else "i"
            names = (
                f": {', '.join(each.examples)}{', …' if each.count > len(each.examples) else ''}"
                if each.examples
                else ""
            )
            click.echo(f"{mark} {each.check}: {each.found} ({each.count:,}{names})")
            if each.remedy:
                click.echo(f"    {each.remedy}")
        click.echo(f"{count(found.graphs, 'graph')} checked: {'valid' if found.is_valid else 'not valid'}.")
    if not found.is_valid:
        ctx.exit(1)
