"""Commands that only read: types, graphs, plan, status, history."""

from __future__ import annotations

import click
from rich.console import Console
from rich.markup import escape

from graph_migrator.core.errors import GraphMigratorError, InvalidRequest
from graph_migrator.core.graph_types.registry import graph_type as type_named
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection import history as reading
from graph_migrator.core.inspection.history import Attempt, GraphState, MigrationStory
from graph_migrator.core.inspection.lock_sessions import lock_sessions
from graph_migrator.core.planning import make_plan
from graph_migrator.core.statuses import AttemptStatus, MigrationStatus
from graph_migrator.tasks.cli.explaining import Reason, explain
from graph_migrator.tasks.cli.output import (
    coloured,
    console,
    duration,
    json_option,
    moment,
    print_json,
    row_count,
    table,
)
from graph_migrator.tasks.runtime import engine


@click.command()
@json_option
def types(as_json: bool) -> None:
    """Graph types that this process knows, and their hops."""
    known = graph_types()
    hops = [
        {
            "graph_type": kind.name,
            "from_version": hop.from_version,
            "to_version": hop.to_version,
            "name": hop.name,
            "batched": hop.forward.is_batched,
            "reversible": hop.is_reversible,
            "description": hop.description,
            "fingerprint": hop.forward.fingerprint,
        }
        for kind in known.values()
        for hop in kind.hops
    ]
    if as_json:
        print_json(hops)
        return
    if not known:
        click.echo("No graph types. Name one in GRAPH_MIGRATOR_TYPES as module:attribute.", err=True)
        return
    rows = [
        (h["graph_type"], f"v{h['from_version']}→v{h['to_version']}", h["name"], "batched" if h["batched"] else "",
         "" if h["reversible"] else "no way back", h["description"], str(h["fingerprint"])[:12])
        for h in hops
    ]  # fmt: skip
    console().print(table(None, ("TYPE", "HOP", "NAME", "", "", "WHAT IT DOES", "FINGERPRINT"), rows))


@click.command()
@click.option("--type", "graph_type", help="Only graphs of this type.")
@click.option("--behind", is_flag=True, help="Only graphs below the newest version of their type.")
@click.option(
    "--state",
    type=click.Choice([*(status.value for status in MigrationStatus), "idle", "owner", "half-done"]),
    help="Only graphs whose migration is in this state.",
)
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="Graphs per page."
)
@click.option("--after", help="The last slug of the page before.")
@json_option
def graphs(
    graph_type: str | None, behind: bool, state: str | None, limit: int, after: str | None, as_json: bool
) -> None:
    """List graphs: version, who owns them, and why they are read-only."""
    newest = {kind.name: kind.newest for kind in graph_types().values()}
    found = reading.list_graphs(
        engine(),
        graph_type=graph_type,
        behind=newest if behind else None,
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
         + (" half done" if g.partially_migrated else ""),
         g.read_only, moment(g.changed_at))
        for g in found
    ]  # fmt: skip
    console().print(
        table(None, ("GRAPH", "TYPE", "VERSION", "MIGRATION", "READ-ONLY FOR", "CHANGED (UTC)"), rows)
    )
    if len(found) == limit:
        click.echo(f"More may follow: --after {found[-1].slug}", err=True)


@click.command()
@click.argument("graph")
@click.option(
    "--to", "target", type=click.IntRange(1, 2**31 - 1), help="The version to reach; by default the newest."
)
@json_option
def plan(graph: str, target: int | None, as_json: bool) -> None:
    """The hops from where GRAPH is to a version. Nothing is run."""
    found = reading.find_graph(engine(), graph)
    made = make_plan(found.slug, type_named(found.graph_type), found.version, target)
    if as_json:
        print_json([step.to_json() for step in made.steps])
        return
    if not made.steps:
        click.echo(f"{found.slug} is at v{found.version} already.")
        return
    rows = [
        (
            f"v{s.from_version}→v{s.to_version}",
            s.name,
            s.direction,
            "batched" if s.batched else "",
            s.fingerprint[:12],
        )
        for s in made.steps
    ]
    console().print(table(None, ("HOP", "NAME", "DIRECTION", "", "FINGERPRINT"), rows))


@click.command()
@click.argument("graph", required=False)
@json_option
def status(graph: str | None, as_json: bool) -> None:
    """What state GRAPH is in, why, and what to do next. Without GRAPH: how many of what."""
    if graph is None:
        counted = reading.counts(engine())
        if as_json:
            print_json({name: counted.get(name, 0) for name in ("graphs", *MigrationStatus)})
        else:
            console().print(table(None, ("STATE", "COUNT"), sorted(counted.items())))
        return
    state = reading.graph_state(engine(), graph)
    sessions = lock_sessions(engine(), state.graph.id)
    reasons = explain(state, sessions)
    if as_json:
        told = {
            **state.model_dump(mode="json"),
            "lock_sessions": [each.model_dump(mode="json") for each in sessions],
            "reasons": [each.model_dump(mode="json") for each in reasons],
        }
        print_json(told)
        return
    _print_state(state, reasons)


def _print_state(state: GraphState, reasons: list[Reason]) -> None:
    out, graph, migration = console(), state.graph, state.migration
    out.print(
        f"[bold]{escape(graph.slug)}[/]  {graph.graph_type} v{graph.version}  {state.nodes} nodes, {state.edges} edges"
    )
    if graph.read_only:
        out.print(f"read-only: {graph.read_only}")
    if migration is not None:
        out.print(
            f"migration {migration.migration_id}  v{migration.from_version}→v{migration.to_version}  "
            f"{coloured(migration.status)}: {migration.status.phrase}"
        )
        if migration.error_type:
            error = migration.error()
            kind = (
                "" if isinstance(error, GraphMigratorError) else f"{migration.error_type}: "
            )  # ours say it all
            out.print(f"  {escape(kind)}{escape(str(error or migration.error_message))}")
            if migration.error_rows:
                out.print(f"  {escape(migration.error_rows)}")
    if state.running is not None:
        out.print("  " + _progress(state.running))
    for reason in reasons:
        out.print(f"→ {escape(str(reason))}")


def _progress(attempt: Attempt) -> str:
    told = (
        f"v{attempt.from_version}→v{attempt.to_version} {attempt.hop_name}, attempt {attempt.attempt}, "
        f"on {attempt.worker} (pid {attempt.pid}) for {duration(attempt.seconds)}"
    )
    if attempt.total:
        told += f", {attempt.done} of {attempt.total} rows"
    if attempt.rows_per_second:
        told += f", {attempt.rows_per_second:,.0f} rows/s"
    if attempt.seconds_left is not None:
        told += f", about {duration(attempt.seconds_left)} left"
    return told


@click.command()
@click.argument("graph")
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(1, 10_000), help="How many migrations."
)
@click.option(
    "--traceback",
    type=click.IntRange(1, 2**63 - 1),
    metavar="ATTEMPT",
    help="Print the traceback of this attempt id.",
)
@json_option
def history(graph: str, limit: int, traceback: int | None, as_json: bool) -> None:
    """The story of GRAPH: when, who, hop, attempt, status, rows, duration, error."""
    if traceback is not None:
        found = reading.traceback_of(engine(), traceback)
        if found is None:
            raise InvalidRequest(
                "--traceback", f"attempt {traceback} has none; `history` names those that have"
            )
        click.echo(found)
        return
    stories = reading.history(engine(), graph, limit=limit)
    if as_json:
        print_json(stories)
        return
    if not stories:
        click.echo(f"{graph} has never been migrated.")
    for story in stories:
        print_story(story)


def _why(attempt: Attempt) -> str:
    if attempt.error_type:
        rows = f" {attempt.error_rows}" if attempt.error_rows else ""
        return escape(f"#{attempt.id}: {attempt.error_type}: {attempt.error_message}{rows}")
    return attempt.status.phrase if attempt.status in {AttemptStatus.LOST, AttemptStatus.STOPPED} else ""


def print_story(story: MigrationStory, to: Console | None = None) -> None:
    """Print one migration as a story; by default to standard output."""
    out, report = to or console(), story.report
    by = f" for {escape(report.requested_by)}" if report.requested_by else ""
    why = f" ({escape(report.reason)})" if report.reason else ""
    out.print(
        f"[bold]{moment(report.created_at)}[/]  v{report.from_version}→v{report.to_version}{by}{why}  "
        f"{coloured(report.status)}"
        + (f" after {duration(report.seconds)}" if report.seconds is not None else "")
        + f"  [dim]{report.migration_id}[/]"
    )
    rows = [
        (moment(a.started_at), f"v{a.from_version}→v{a.to_version}", a.hop_name, f"{a.attempt}.", coloured(a.status),
         row_count(a.rows_changed) if a.rows_changed else "", duration(a.seconds), a.worker,
         _why(a))
        for a in story.attempts
    ]  # fmt: skip
    if rows:
        out.print(
            table(None, ("  UTC", "HOP", "NAME", "TRY", "STATUS", "CHANGED", "TOOK", "WORKER", ""), rows)
        )
    error = report.error()
    if error is not None:
        kind = "" if isinstance(error, GraphMigratorError) else f"{report.error_type}: "  # ours say it all
        where = f" {report.error_rows}" if report.error_rows else ""
        out.print(f"  {coloured(report.status)}: {escape(f'{kind}{error}{where}')}")
    failed = story.attempts[-1] if story.attempts else None
    if failed is not None and failed.status is AttemptStatus.FAILED:
        if failed.error_line:
            out.print(f"  {escape(failed.error_line)}", soft_wrap=True)
        out.print(
            f"  [dim]graph-migrator history {escape(report.graph)} --traceback {failed.id}[/]", soft_wrap=True
        )
    out.print()


COMMANDS = (types, graphs, plan, status, history)
