"""`graph-migrator recover`."""

from __future__ import annotations

import click

from graph_migrator.tasks.cli.output import json_option, print_json


@click.command()
@json_option
def recover(as_json: bool) -> None:
    """Run one recovery sweep, as every worker does twice a second."""
    from graph_migrator.tasks.recover import sweep_once

    done = sweep_once()
    if as_json:
        print_json(dict(done))
    elif not done:
        click.echo("a worker is sweeping at this moment")
    else:
        click.echo(", ".join(f"{number} {name}" for name, number in done.items()))
