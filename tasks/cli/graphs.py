"""`graph-migrator graphs`."""

from __future__ import annotations

import click

from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection.graphs import list_graphs
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.tasks.cli.output import (
    coloured,
    console,
    json_option,
    moment,
    print_json,
    table,
)
from graph_migrator.tasks.runtime import engine


@click.command()
@click.option("--type", "graph_type", help="Only graphs of this type.")
@click.option("--version", type=int, help="Only graphs at this version; with --type.")
@click.option("--behind", is_flag=True, help="Only graphs below the newest version of their type.")
@click.option("--unreachable", is_flag=True, help="Only graphs at a version that their type does not know.")
@click.option(
    "--state",
    type=click.Choice([*(status.value for status in MigrationStatus), "idle", "owner", "partially-migrated"]),
    help="Only graphs whose migration is in this state.",
)
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="Graphs per page."
)
@click.option("--after", help="The last slug of the page before.")
@json_option
def graphs(
    graph_type: str | None,
    version: int | None,
    behind: bool,
    unreachable: bool,
    state: str | None,
    limit: int,
    after: str | None,
    as_json: bool,
) -> None:
    """List graphs: version, who owns them, and why they are read-only."""
    if behind and unreachable:
        raise click.UsageError("--behind and --unreachable exclude each other")
    if version is not None and graph_type is None:
        raise click.UsageError("--version needs --type: versions of different types have nothing in common")
    known = graph_types().values()
    newest = {kind.name: kind.newest for kind in known}
    found = list_graphs(
        engine(),
        graph_type=graph_type,
        version=version,
        behind=newest if behind else None,
        oldest={kind.name: kind.oldest for kind in known},
        unreachable={kind.name: (kind.oldest, kind.newest) for kind in known} if unreachable else None,
        state=state,
        after=after,
        limit=limit,
    )
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("No graphs." if after is None else "No more graphs.", err=True)
        return
    rows = [
        (g.slug, g.graph_type, f"v{g.version}" + (f" of {newest[g.graph_type]}" if g.graph_type in newest else ""),
         coloured(g.status) + (f" to v{g.to_version}" if g.to_version else "")
         + (" partially migrated" if g.partially_migrated else ""),
         g.read_only, moment(g.changed_at))
        for g in found
    ]  # fmt: skip
    console().print(
        table(None, ("GRAPH", "TYPE", "VERSION", "MIGRATION", "READ-ONLY FOR", "CHANGED (UTC)"), rows)
    )
    if len(found) == limit:
        click.echo(f"More may follow: --after {found[-1].slug}", err=True)
