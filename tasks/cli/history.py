"""`graph-migrator history`: every migration of a graph, every attempt."""

from __future__ import annotations

import click
from rich.console import Console
from rich.markup import escape

from graph_migrator.core.errors import GraphMigratorError, InvalidRequest
from graph_migrator.core.inspection import history as reading
from graph_migrator.core.inspection.data_changes import data_changes
from graph_migrator.core.inspection.graphs import find_graph
from graph_migrator.core.inspection.history import Attempt, MigrationStory, Refusal
from graph_migrator.core.inspection.quantities import count, duration, pace
from graph_migrator.core.inspection.waiting_calls import waiting_calls
from graph_migrator.core.statuses import AttemptStatus, loss_phrase
from graph_migrator.tasks.cli.output import coloured, console, json_option, moment, print_json, table
from graph_migrator.tasks.runtime import engine


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
    """Show the migrations of GRAPH and their attempts: when, who, hop, status, rows, duration, error."""
    if traceback is not None:
        found = reading.traceback_of(engine(), traceback)
        if found is None:
            raise InvalidRequest(
                "--traceback", f"attempt {traceback} has none; `history` names those that have"
            )
        click.echo(found)
        return
    stories = reading.history(engine(), graph, limit=limit)
    archived = reading.archived_parts(engine(), graph)
    for part in archived:
        click.echo(
            f"{count(part.migrations, 'migration')} that ended before {moment(part.before)} are in {part.location}, "
            f"archived {moment(part.archived_at)}",
            err=as_json,
        )
    if as_json:
        print_json(stories)
        return
    if not stories and not archived:
        click.echo(f"{graph} has never been migrated.")
    for story in stories:
        print_story(story)
    graph_id = stories[-1].report.graph_id if stories else find_graph(engine(), graph).id
    print_refusals(reading.refusals(engine(), graph_id))
    with engine().connect() as connection:
        lines = [f"{moment(each.at)}  {each}" for each in data_changes(connection, graph_id)]
        lines += [f"{moment(each.sent_at)}  {each.fact}" for each in waiting_calls(connection, graph_id)]
    for line in lines:
        console().print(escape(line), soft_wrap=True)


def print_refusals(refused: list[Refusal]) -> None:
    """Print the calls that workers refused."""
    for each in refused:
        by = f" by {each.requested_by}" if each.requested_by else ""
        to = f" to v{each.target}" if each.target is not None else ""
        line = f"{moment(each.refused_at)}  {each.verb}{to}{by} was refused: {each.error}"
        console().print(escape(line), soft_wrap=True)


def named(attempt: Attempt) -> str:
    """A hop's name, and which shard of it."""
    return attempt.hop_name + (f", shard {attempt.shard}" if attempt.shard is not None else "")


def _why(attempt: Attempt) -> str:
    if attempt.error_type:
        rows = f" {attempt.error_rows}" if attempt.error_rows else ""
        return escape(f"#{attempt.id}: {attempt.error_type}: {attempt.error_message}{rows}")
    if attempt.status is AttemptStatus.RUNNING:
        return pace(attempt.rows_per_second, attempt.seconds_left)
    if attempt.status is AttemptStatus.LOST:
        return escape(loss_phrase(attempt.lost_because, attempt.lost_how))
    if attempt.undid is not None and attempt.status is AttemptStatus.SUCCEEDED:
        return "restored the old values that were kept"
    if attempt.status is AttemptStatus.STOPPED:
        return escape(attempt.error_message or attempt.status.phrase)
    return ""


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
        (moment(a.started_at), f"v{a.from_version}→v{a.to_version}", named(a), f"{a.attempt}.", coloured(a.status),
         count(a.rows_changed, 'row') if a.rows_changed else "", duration(a.seconds), a.worker,
         _why(a))
        for a in story.attempts
    ]  # fmt: skip
    if rows:
        out.print(
            table(None, ("  UTC", "HOP", "NAME", "TRY", "STATUS", "CHANGED", "TOOK", "WORKER", "ERROR"), rows)
        )
    for repair in story.repairs:
        written = (
            ", ".join(f"{table}: {count(rows, 'row')}" for table, rows in repair.rows.items()) or "no rows"
        )
        line = f"  {moment(repair.repaired_at)}  data repaired by {repair.requested_by}: {repair.reason} ({written})"
        out.print(escape(line), soft_wrap=True)
    error = report.error()
    if error is not None:
        kind = "" if isinstance(error, GraphMigratorError) else f"{report.error_type}: "  # ours say it all
        where = f" {report.error_rows}" if report.error_rows else ""
        out.print(f"  {coloured(report.status)}: {escape(f'{kind}{error}{where}')}")
    # When one shard fails, the others stop after it.
    ends = [a for a in story.attempts if a.shard is None or a.status is not AttemptStatus.STOPPED]
    failed = ends[-1] if ends else None
    if failed is not None and failed.status is AttemptStatus.FAILED:
        if failed.error_line:
            out.print(f"  {escape(failed.error_line)}", soft_wrap=True)
        out.print(
            f"  [dim]graph-migrator history {escape(report.graph)} --traceback {failed.id}[/]", soft_wrap=True
        )
    out.print()
