"""`graph-migrator db`: the tables."""

from __future__ import annotations

import click

from graph_migrator.core.store import schema
from graph_migrator.tasks.cli.group import Group
from graph_migrator.tasks.cli.output import json_option, print_json
from graph_migrator.tasks.runtime import engine


@click.group(cls=Group)
def db() -> None:
    """Manage the tables in the database."""


@db.command()
@json_option
def upgrade(as_json: bool) -> None:
    """Bring the tables to this release. Safe to run again, and from several places at once."""
    before, after = schema.upgrade(engine())
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        click.echo(f"The schema is at {after} already.")
    else:
        click.echo(f"The schema went from {before or 'nothing'} to {after}.")
