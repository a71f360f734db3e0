"""Graphs in and out, and the write guard on tables of your own."""

from __future__ import annotations

import sys

import click

from graph_migrator.core.errors import InvalidRequest, UnknownTarget
from graph_migrator.core.graph_types.registry import graph_type as type_named
from graph_migrator.core.inspection.phrases import count
from graph_migrator.core.interchange import export_graph, import_graph
from graph_migrator.tasks.cli.output import json_option, print_json
from graph_migrator.tasks.runtime import engine

_FORMATS = click.Choice(["node-link", "jsonl"])


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--slug", required=True, help="What the graph is to be called.")
@click.option("--type", "graph_type", required=True, help="Its graph type.")
@click.option(
    "--version", required=True, type=click.IntRange(1, 2**31 - 1), help="The version that the data has."
)
@click.option("--format", "form", type=_FORMATS, help="By default told from the file's name or beginning.")
@json_option
def import_(file: str, slug: str, graph_type: str, version: int, form: str | None, as_json: bool) -> None:
    """Make a new graph from FILE (- for standard input): all of it, or nothing.

    FILE is node-link JSON as NetworkX writes it, or JSON Lines; both may be gzipped. See docs/formats.md.
    """
    kind = type_named(graph_type)
    if not kind.oldest <= version <= kind.newest:
        raise UnknownTarget(slug, graph_type, version, kind.oldest, kind.newest)
    source = sys.stdin.buffer if file == "-" else file
    report = import_graph(
        engine(),
        source,
        slug=slug,
        graph_type=graph_type,
        version=version,
        format=form,
        on_progress=_ticker("read"),
    )
    if as_json:
        print_json(report)
    else:
        click.echo(
            f"{report.slug}: {count(report.nodes, 'node')} and {count(report.edges, 'edge')} in {report.seconds:.1f} s"
        )


@click.command()
@click.argument("graph")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@click.option("--format", "form", type=_FORMATS, default="node-link", show_default=True)
def export(graph: str, file: str, form: str) -> None:
    """Write GRAPH to FILE (by default standard output), sorted, byte for byte the same each time."""
    if file == "-":
        export_graph(engine(), graph, sys.stdout.buffer, format=form)
        sys.stdout.buffer.flush()
        return
    try:
        with click.open_file(file, "wb", atomic=True) as stream:
            report = export_graph(engine(), graph, stream, format=form, on_progress=_ticker("written"))
    except OSError as error:  # it names the temporary file beside it
        raise InvalidRequest(file, error.strerror or type(error).__name__) from error
    click.echo(
        f"{report.slug} at v{report.version}: {count(report.nodes, 'node')} and {count(report.edges, 'edge')}",
        err=True,
    )


def _ticker(what: str):  # type: ignore[no-untyped-def] # the progress callback of core.interchange
    if not sys.stderr.isatty():
        return None

    def tick(*counts: object) -> None:
        click.echo(f"\r{what}: {' '.join(map(str, counts))} ", nl=False, err=True)

    return tick
