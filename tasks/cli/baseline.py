"""`graph-migrator baseline`: adopting graphs that were migrated by other means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

import click
from sqlalchemy import text

from graph_migrator.core.audit.baseline import BaselineReport
from graph_migrator.core.audit.baseline import baseline as adopt
from graph_migrator.core.errors import GraphMigratorError, InvalidRequest
from graph_migrator.core.execution.model import Caller
from graph_migrator.core.inspection.quantities import count
from graph_migrator.tasks.cli.output import ask, json_option, print_json, user
from graph_migrator.tasks.cli.verbs import yes_option
from graph_migrator.tasks.runtime import engine, executors

_PREVIEW = 20
"""At most this many graphs are named before the question."""


@click.command()
@click.argument("graphs", nargs=-1, metavar="[GRAPH]...")
@click.option("--version", type=click.IntRange(min=1), help="The version that the data of the GRAPHs is of.")
@click.option(
    "--from",
    "file",
    type=click.File(encoding="utf-8"),
    help="A file with a graph and its version on each line.",
)
@click.option(
    "--detect", is_flag=True, help="Ask the @type.detect function of the graph's type for the version."
)
@click.option("--type", "kind", help="With --detect: all graphs of this type.")
@click.option("--reason", required=True, help="Why; it is recorded in the history of each graph.")
@yes_option
@json_option
def baseline(
    graphs: tuple[str, ...],
    version: int | None,
    file: TextIO | None,
    detect: bool,
    kind: str | None,
    reason: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Record that the data of GRAPH is at a version already: it was migrated by other means.

    No hop runs and no data is changed; only the version moves, and history records who said so and why. Refused for a
    graph that a migration owns or that is partially migrated. Of several graphs each is a transaction of its own; exit
    code 3 where one was refused.
    """
    if sum((version is not None, file is not None, detect)) != 1:
        raise click.UsageError("one of --version, --from and --detect says which version the data is of")
    if (kind is not None and not detect) or (file is not None and graphs) or (kind is not None and graphs):
        raise click.UsageError("--type goes with --detect alone, and --from names the graphs itself")
    named = _from_file(file) if file is not None else [(graph, version) for graph in graphs]
    if kind is not None:
        named = [(slug, None) for slug in _of_type(kind)]
    if not named:
        raise click.UsageError("no graph is named")
    caller = Caller(None, user(), reason)
    planned, refused = _each([(graph, to, None) for graph, to in named], caller, dry_run=True)
    changes = [each for each in planned if each.changes]
    if changes:
        for each in changes[:_PREVIEW]:
            click.echo(f"{each.graph}: v{each.from_version} → v{each.to_version}, data as it is", err=True)
        if len(changes) > _PREVIEW:
            click.echo(f"… and {len(changes) - _PREVIEW:,} more", err=True)
        ask(f"Set the version of {count(len(changes), 'graph')} without running a hop?", yes=yes)
    meant = [(each.graph, each.to_version, each.from_version) for each in planned]
    done, failed = _each(meant, caller, dry_run=False)
    refused |= failed
    _show(done, refused, as_json=as_json)
    if refused:
        raise click.exceptions.Exit(max(error.exit_code for error in refused.values()))


def _show(done: list[BaselineReport], refused: dict[str, GraphMigratorError], *, as_json: bool) -> None:
    if as_json:
        print_json([each.model_dump(mode="json") for each in done])
    for graph, error in refused.items():
        click.echo(f"error: {graph}: {error}" if graph not in str(error) else f"error: {error}", err=True)
    if as_json:
        return
    for each in done:
        if each.changes:
            click.echo(f"{each.graph}: v{each.to_version} (was v{each.from_version})")
        else:
            click.echo(f"{each.graph}: at v{each.to_version} already; nothing to do")


def _each(
    named: Sequence[tuple[str, int | None, int | None]], caller: Caller, *, dry_run: bool
) -> tuple[list[BaselineReport], dict[str, GraphMigratorError]]:
    done: list[BaselineReport] = []
    refused: dict[str, GraphMigratorError] = {}
    for graph, to, before in named:
        try:
            with executors().borrow() as executor:
                done.append(adopt(executor, graph, to, caller, from_version=before, dry_run=dry_run))
        except GraphMigratorError as error:
            refused[graph] = error
    return done, refused


def _from_file(file: TextIO) -> list[tuple[str, int | None]]:
    found: list[tuple[str, int | None]] = []
    for number, line in enumerate(file, start=1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        if len(words) != 2 or not words[1].isdecimal() or int(words[1]) < 1:
            raise InvalidRequest(f"line {number} of {file.name}", "it is not a graph and its version")
        found.append((words[0], int(words[1])))
    return found


def _of_type(kind: str) -> list[str]:
    with engine().connect() as connection:
        rows = connection.execute(
            text("SELECT slug FROM graph_migrator.graphs WHERE graph_type = :kind ORDER BY slug"),
            {"kind": kind},
        )
        return [row.slug for row in rows]
