"""`graph-migrator failures`: failed graphs by cause."""

from __future__ import annotations

import click
from rich.markup import escape

from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection.failures import FailureGroup, failure_groups
from graph_migrator.core.inspection.quantities import count
from graph_migrator.tasks.cli.output import console, json_option, print_json, table
from graph_migrator.tasks.runtime import engine


@click.command()
@click.option("--type", "graph_type", help="Only graphs of this type.")
@click.option("--hop", help="Only those that failed in this hop.")
@click.option("--error", help="Only those whose error's type or message contains this.")
@json_option
def failures(graph_type: str | None, hop: str | None, error: str | None, as_json: bool) -> None:
    """Group failed graphs by hop and cause, with three examples each.

    Graphs whose type this process does not know, and unreachable ones, are counted apart: a retry from here cannot
    plan a way for them.
    """
    groups = failure_groups(engine(), graph_types(), graph_type=graph_type, hop=hop, error=error)
    if as_json:
        print_json(groups)
        return
    if not groups:
        click.echo("No migration has failed.")
        return
    console().print(
        table(None, ("GRAPHS", "TYPE", "HOP", "ERROR", "MESSAGE", "FOR INSTANCE"), map(_row, groups))
    )
    unknown = sum(group.count for group in groups if not group.is_type_known)
    unreachable = sum(group.unreachable for group in groups)
    if unknown:
        click.echo(
            f"{count(unknown, 'graph')} of a type that is not known here (GRAPH_MIGRATOR_TYPES).", err=True
        )
    if unreachable:
        click.echo(
            f"{count(unreachable, 'graph')} unreachable: `graph-migrator graphs --unreachable`.", err=True
        )


def _row(group: FailureGroup) -> tuple[object, ...]:
    message = (group.error_message or "").partition("\n")[0]
    more = ", …" if group.count > len(group.examples) else ""
    examples = ", ".join(each.graph for each in group.examples) + more
    return group.count, group.graph_type, group.hop, group.error_type, escape(message), escape(examples)
