"""`graph-migrator status`: what state a graph is in, why, and what to do next."""

from __future__ import annotations

import click
from rich.markup import escape

from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.inspection import history as reading
from graph_migrator.core.inspection.diagnosis import Fleet, Reason, explain
from graph_migrator.core.inspection.graph_state import GraphState, ShardState, graph_state
from graph_migrator.core.inspection.graphs import counts
from graph_migrator.core.inspection.history import Attempt
from graph_migrator.core.inspection.quantities import count, duration, pace
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.core.store.lock_sessions import lock_sessions
from graph_migrator.tasks.cli.history import print_refusals
from graph_migrator.tasks.cli.output import coloured, console, json_option, print_json, table
from graph_migrator.tasks.runtime import engine


@click.command()
@click.argument("graph", required=False)
@json_option
def status(graph: str | None, as_json: bool) -> None:
    """Show what state GRAPH is in, why, and what to do next. Without GRAPH: counts of graphs and migrations."""
    if graph is None:
        counted = counts(engine())
        if as_json:
            print_json({name: counted.get(name, 0) for name in ("graphs", *MigrationStatus)})
        else:
            console().print(table(None, ("STATE", "COUNT"), sorted(counted.items())))
        return
    state = graph_state(engine(), graph)
    sessions = lock_sessions(engine(), state.graph.id)
    refused = reading.refusals(engine(), state.graph.id)
    reasons = explain(state, sessions, _ask_workers)
    if as_json:
        shown = {
            **state.model_dump(mode="json"),
            "lock_sessions": [each.model_dump(mode="json") for each in sessions],
            "refusals": [each.model_dump(mode="json") for each in refused],
            "reasons": [each.model_dump(mode="json") for each in reasons],
        }
        print_json(shown)
        return
    _print_state(state, reasons)
    print_refusals(refused)


def _ask_workers() -> Fleet:
    from graph_migrator.tasks.fleet import look_at_fleet  # loads Celery, which most answers do not need

    return look_at_fleet()


def _print_state(state: GraphState, reasons: list[Reason]) -> None:
    out, graph, migration = console(), state.graph, state.migration
    out.print(
        f"[bold]{escape(graph.slug)}[/]  {graph.graph_type} v{graph.version}  "
        f"{count(state.nodes or 0, 'node')}, {count(state.edges or 0, 'edge')}"
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
    if state.shards:
        _print_shards(state.shards)
    if state.rebuild is not None:
        out.print(f"  {state.rebuild.phrase(graph.undoable_to)}")
    for reason in reasons:
        out.print(f"→ {escape(str(reason))}")


def _print_shards(shards: tuple[ShardState, ...]) -> None:
    out = console()
    out.print(f"  {sum(each.is_done for each in shards)} of {count(len(shards), 'shard')} done")
    for each in shards:
        if each.worker is not None:
            rows = f"{each.done:,} of {count(each.total, 'row')}"
            speed = pace(each.rows_per_second, None)
            where = f"on {each.worker} (pid {each.pid})"
            out.print("  " + ", ".join(filter(None, (f"shard {each.number}: {rows}", speed, where))))


def _progress(attempt: Attempt) -> str:
    shown = (
        f"v{attempt.from_version}→v{attempt.to_version} {attempt.hop_name}, attempt {attempt.attempt}, "
        f"on {attempt.worker} (pid {attempt.pid}) for {duration(attempt.seconds)}"
    )
    if attempt.total:
        shown += f", {attempt.done:,} of {count(attempt.total, 'row')}"
    return ", ".join(filter(None, (shown, pace(attempt.rows_per_second, attempt.seconds_left))))
