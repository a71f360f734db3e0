"""`graph-migrator repair`: mending what `validate` found."""

from __future__ import annotations

import click

from graph_migrator.core.audit.repairs import CHECKS, Mending, find_repairs, mend, record_retry
from graph_migrator.core.errors import NothingToRepair
from graph_migrator.core.execution import operations
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.tasks.cli.output import ask, json_option, print_json, user
from graph_migrator.tasks.cli.verbs import carry_out, yes_option
from graph_migrator.tasks.runtime import engine


@click.command()
@click.argument("check", required=False, type=click.Choice(CHECKS))
@click.argument("subject", required=False, metavar="[GRAPH|TABLE]")
@yes_option
@json_option
def repair(check: str | None, subject: str | None, yes: bool, as_json: bool) -> None:
    """Mend one finding of `validate`; without arguments, list those that can be mended without guessing.

    Says what it will do and asks first. Each repair is recorded as a request, with who did it.

    `claims` clears a claim whose migration has ended or is of another graph. `checkpoints` deletes those whose
    migration will not go on. `partially-migrated` finishes the hop of a graph that was released inside of it, where the
    hop's code is unchanged. `guard` restores triggers of the write guard on a table.
    """
    found = find_repairs(engine(), graph_types(), check, subject)
    if subject is None or check is None:
        _list(found, as_json=as_json)
        return
    if not found:
        raise NothingToRepair(check, subject)
    (one,) = found
    ask(f"{one.subject}: {one.does} Do it?", yes=yes)
    if one.check == "partially-migrated":
        carry_out(lambda executor, caller: operations.retry(executor, one.subject, caller))
        record_retry(engine(), one, user())
    else:
        mend(engine(), one, user())
    if as_json:
        print_json([one])
    else:
        click.echo(f"{one.subject}: mended ({one.check})")


def _list(found: list[Mending], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    for each in found:
        click.echo(f"graph-migrator repair {each.check} {each.subject}\n    {each.does}")
    if not found:
        click.echo("Nothing can be mended here. `graph-migrator validate` says whether something is wrong.")
