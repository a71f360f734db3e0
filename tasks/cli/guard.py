"""The write guard on tables of one's own."""

from __future__ import annotations

import click

from graph_migrator.core.store.guard import GuardedTable, install_guard, list_guards, remove_guard
from graph_migrator.tasks.cli.group import Group
from graph_migrator.tasks.cli.output import ask, console, json_option, print_json, table
from graph_migrator.tasks.runtime import engine


@click.group(cls=Group)
def guard() -> None:
    """Manage the write guard, which keeps writers off the rows of a graph that is being migrated."""


@guard.command()
@click.argument("table_name", metavar="TABLE")
@click.option("--column", default="graph_id", show_default=True, help="The uuid column that names the graph.")
@json_option
def install(table_name: str, column: str, as_json: bool) -> None:
    """Put the guard on TABLE, its partitions and its children. Run it again to repair it or cover new ones."""
    with engine().begin() as connection:
        install_guard(connection, table_name, column)
        guarded = [_plain(each) for each in list_guards(connection)]
    if as_json:
        print_json(guarded)
    else:
        click.echo(f"{table_name}: guarded by {column}")


@guard.command()
@click.argument("table_name", metavar="TABLE")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def remove(table_name: str, yes: bool) -> None:
    """Take the guard off TABLE, its partitions and its children."""
    ask(f"Remove the guard from {table_name}? Writers then change its rows while hops run", yes=yes)
    with engine().begin() as connection:
        remove_guard(connection, table_name)
    click.echo(f"{table_name}: no longer guarded")


@guard.command("list")
@json_option
def list_(as_json: bool) -> None:
    """Guarded tables, our own among them, and what is missing on each."""
    with engine().connect() as connection:
        found = list_guards(connection)
    if as_json:
        print_json([_plain(each) for each in found])
        return
    rows = [(g.table, g.column, "yes" if g.complete else "no", "; ".join(gaps(g))) for g in found]
    console().print(table(None, ("TABLE", "GRAPH IN", "COMPLETE", ""), rows))


def gaps(guarded: GuardedTable) -> list[str]:
    """What lets a statement past the guard, each in one phrase."""
    return [f"no guard on {name}" for name in guarded.unguarded] + [
        f"does not always fire: {name}" for name in guarded.disabled
    ]


def _plain(guarded: GuardedTable) -> dict[str, object]:
    return {
        "table": guarded.table,
        "column": guarded.column,
        "complete": guarded.complete,
        "unguarded": list(guarded.unguarded),
        "disabled": list(guarded.disabled),
    }
