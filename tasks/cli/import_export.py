"""Graphs in and out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from graph_migrator.core.audit.portable import export_with_history, import_with_history
from graph_migrator.core.errors import InvalidRequest, UnknownTarget
from graph_migrator.core.graph_types.registry import graph_type as type_named
from graph_migrator.core.inspection.graphs import find_graph
from graph_migrator.core.inspection.quantities import count, plural
from graph_migrator.core.interchange import (
    CheckReport,
    Dialect,
    Format,
    ImportReport,
    check_graph_file,
    export_graph,
    import_graph,
)
from graph_migrator.tasks.cli.output import ask, json_option, print_json, user
from graph_migrator.tasks.runtime import engine

_WRITTEN = click.Choice(list(map(str, Format)))
_READ = click.Choice(list(map(str, Dialect)))
_PIPE_SECONDS: Final = 5.0
"""How often a count goes to a pipe or a log, in which every line stays."""
_COLUMNS: Final = ("id", "label", "source", "target", "type")


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--slug", required=True, help="What the graph is to be called.")
@click.option("--type", "graph_type", required=True, help="Its graph type.")
@click.option(
    "--version", required=True, type=click.IntRange(1, 2**31 - 1), help="The version that the data has."
)
@click.option("--format", "form", type=_READ, help="By default recognised by the file's content.")
@click.option(
    "--edges", type=click.Path(exists=True, dir_okay=False), help="For CSV: the file with the edges."
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="FIELD=HEADER",
    help="For CSV: the header of id, label, source, target or type.",
)
@click.option(
    "--labels-property", metavar="NAME", help="Keep a node's labels after the first in this property."
)
@click.option("--check", is_flag=True, help="Report all faulty records; import nothing.")
@click.option(
    "--with-history",
    "history",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="FILE is one of `export --with-history`; keep its history in this new folder.",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Replace the data of the graph with this slug; its id and history stay.",
)
@click.option("--yes", "-y", is_flag=True, help="With --replace: do not ask.")
@json_option
def import_(
    file: str,
    slug: str,
    graph_type: str,
    version: int,
    form: str | None,
    edges: str | None,
    columns: tuple[str, ...],
    labels_property: str | None,
    check: bool,
    history: Path | None,
    replace: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Make a new graph from FILE (- for standard input): all of it, or nothing.

    FILE is node-link JSON, JSON Lines, APOC JSON lines, CSV, JSON Graph Format, Cytoscape JSON, GraphML or GEXF, and
    may be gzipped. See docs/formats.md.

    With --replace, the graph gets the nodes, edges, attributes and version of FILE in one transaction; id, slug, type
    and history stay, and the history says who replaced it. Refused while a migration owns it.
    """
    kind = type_named(graph_type)
    if not kind.oldest <= version <= kind.newest:
        raise UnknownTarget(slug, graph_type, version, kind.oldest, kind.newest)
    options: dict[str, Any] = {
        "slug": slug,
        "graph_type": graph_type,
        "version": version,
        "format": form,
        "edges": edges,
        "labels_property": labels_property,
        "columns": dict(map(_column, columns)),
        "replace": replace,
    }
    if history is not None:
        if check or replace or file == "-" or form or edges or columns or labels_property:
            raise click.UsageError("--with-history reads a file of `export --with-history`, whole")
        report = import_with_history(
            engine(), Path(file), history, slug=slug, graph_type=graph_type, version=version
        )
        _print_import(report, as_json=as_json)
        return
    source = sys.stdin.buffer if file == "-" else file
    if check:
        found = check_graph_file(engine(), source, on_progress=_ticker("checked"), **options)
        _print_check(file, found, as_json=as_json)
        raise SystemExit(2 if found.count else 0)
    if replace:
        there = find_graph(engine(), slug)
        ask(f"Replace all data of {slug} ({there.id}, at v{there.version})", yes=yes)
    report = import_graph(engine(), source, requested_by=user(), on_progress=_ticker("read"), **options)
    _print_import(report, as_json=as_json)


def _print_import(report: ImportReport, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    click.echo(f"{report.slug}: {_counts(report.nodes, report.edges)} in {report.seconds:.1f} s")
    _say_negative_zeros(report.negative_zeros)


@click.command()
@click.argument("graph")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@click.option("--format", "form", type=_WRITTEN, default="node-link", show_default=True)
@click.option(
    "--with-history", is_flag=True, help="As one file (zip) with its config and its history; needs FILE."
)
def export(graph: str, file: str, form: str, with_history: bool) -> None:
    """Write GRAPH to FILE (by default standard output), sorted, byte for byte the same each time."""
    if with_history:
        if file == "-" or form != "node-link":
            raise click.UsageError("--with-history writes a zip of its own to FILE")
        with click.open_file(file, "wb", atomic=True) as stream:
            about = export_with_history(engine(), graph, stream)
        counted = f"{count(about.migrations, 'migration')} and {count(about.attempts, 'attempt')}"
        click.echo(f"{about.slug} at v{about.version}, with {counted}", err=True)
        return
    if file == "-":
        export_graph(engine(), graph, sys.stdout.buffer, format=form)
        sys.stdout.buffer.flush()
        return
    try:
        with click.open_file(file, "wb", atomic=True) as stream:
            report = export_graph(engine(), graph, stream, format=form, on_progress=_ticker("written"))
    except OSError as error:  # it names the temporary file beside it
        raise InvalidRequest(file, error.strerror or type(error).__name__) from error
    click.echo(f"{report.slug} at v{report.version}: {_counts(report.nodes, report.edges)}", err=True)


def _column(given: str) -> tuple[str, str]:
    field, equals, header = given.partition("=")
    if not equals or field not in _COLUMNS or not header:
        raise InvalidRequest(
            "--column", f"must be FIELD=HEADER with one of {', '.join(_COLUMNS)}, not {given!r}"
        )
    return field, header


def _print_check(file: str, found: CheckReport, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    for fault in found.faults:
        click.echo(fault)
    if found.count > len(found.faults):
        click.echo(f"… and {found.count - len(found.faults)} more")
    faults = count(found.count, "fault") if found.count else "no faults"
    click.echo(f"{file}: {faults}; {_counts(found.nodes, found.edges)} are sound. Nothing was imported.")
    _say_negative_zeros(found.negative_zeros)


def _say_negative_zeros(zeros: int) -> None:
    if zeros:
        what = plural(zeros, "number is -0.0 and is", "numbers are -0.0 and are")
        click.echo(f"{what} stored as 0.0: Postgres's numeric has no negative zero", err=True)


def _counts(nodes: int, edges: int) -> str:
    return f"{count(nodes, 'node')} and {count(edges, 'edge')}"


def _ticker(what: str) -> Callable[[int, int], None]:
    """The progress callback: a line that is rewritten on a terminal, a line every few seconds elsewhere."""
    is_terminal = sys.stderr.isatty()
    last = time.monotonic()

    def tick(nodes: int, edges: int) -> None:
        nonlocal last
        if is_terminal:
            click.echo(f"\r{what}: {_counts(nodes, edges)} ", nl=False, err=True)
        elif time.monotonic() - last >= _PIPE_SECONDS:
            last = time.monotonic()
            click.echo(f"{what}: {_counts(nodes, edges)}", err=True)

    return tick
