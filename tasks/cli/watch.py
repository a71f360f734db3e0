"""Following migrations while they run."""

from __future__ import annotations

import time
from dataclasses import dataclass

import click
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from graph_migrator.core.inspection import history as reading
from graph_migrator.core.inspection.history import GraphState
from graph_migrator.core.inspection.quantities import count, pace
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.tasks.cli.output import coloured, console, json_option, table
from graph_migrator.tasks.runtime import engine

_MOVING = frozenset(
    {MigrationStatus.QUEUED, MigrationStatus.RUNNING, MigrationStatus.PAUSING, MigrationStatus.CANCELLING}
)
_MOST = 40


@dataclass
class _Watched:
    """Graphs under watch, and what was last seen of each."""

    named: tuple[str, ...]
    states: dict[str, GraphState]

    def look(self) -> None:
        """Read them again; without names, also what has begun meanwhile."""
        names = dict.fromkeys([*self.states, *(self.named or _moving_now())])
        self.states = {name: reading.graph_state(engine(), name, count_rows=False) for name in names}

    @property
    def is_over(self) -> bool:
        return not any(_status(state) in _MOVING for state in self.states.values())

    @property
    def failed(self) -> bool:
        return any(_status(state) is MigrationStatus.FAILED for state in self.states.values())


@click.command()
@click.argument("graph", nargs=-1)
@click.option(
    "--interval", default=0.5, show_default=True, type=click.FloatRange(0.1), help="Seconds between looks."
)
@click.option("--once", is_flag=True, help="Print once and end.")
@json_option
def watch(graph: tuple[str, ...], interval: float, once: bool, as_json: bool) -> None:
    """Follow migrations until all of them have ended or paused: GRAPHs, or all that are being migrated.

    Everything is read from Postgres, so it goes on when a worker dies and another takes over. In a pipe, a
    line (with --json, a JSON object) for each change. Exit code 1 where one of them failed.
    """
    watched = _Watched(graph, {})
    watched.look()
    if not watched.states:
        if not as_json:
            click.echo("Nothing is being migrated.")
        return
    if as_json or not console().is_terminal:
        _print_changes(watched, interval, once=once, as_json=as_json)
    elif once:
        console().print(_table(watched))
    else:
        with Live(_table(watched), console=console(), refresh_per_second=8) as display:
            while not watched.is_over:
                time.sleep(interval)
                watched.look()
                display.update(_table(watched))
    if watched.failed:
        raise click.exceptions.Exit(1)


def _print_changes(watched: _Watched, interval: float, *, once: bool, as_json: bool) -> None:
    shown: dict[str, tuple[object, ...]] = {}
    while True:
        for name, state in watched.states.items():
            row = _row(state)
            if shown.get(name) == row[:4]:
                continue
            shown[name] = row[:4]
            click.echo(state.model_dump_json() if as_json else "  ".join(str(cell) for cell in row if cell))
        if once or watched.is_over:
            return
        time.sleep(interval)
        watched.look()


def _moving_now() -> list[str]:
    found = [g.slug for s in sorted(_MOVING) for g in reading.list_graphs(engine(), state=s, limit=_MOST)]
    return sorted(found)[:_MOST]


def _status(state: GraphState) -> MigrationStatus | None:
    return state.migration.status if state.migration is not None else None


def _table(watched: _Watched) -> Table:
    rows = []
    for state in watched.states.values():
        name, version, hop, _, done, rest = _row(state)
        run = state.running
        bar = _bar(run.done, run.total) if run is not None and run.total else done
        rows.append((name, version, hop, coloured(_status(state)) or "never migrated", bar, escape(rest)))
    return table(None, ("GRAPH", "VERSION", "HOP", "STATUS", "PROGRESS", ""), rows)


def _row(state: GraphState) -> tuple[str, str, str, str, str, str]:
    """What is shown of one graph; a difference in the first four cells is a change."""
    graph, migration, run = state.graph, state.migration, state.running
    if migration is None:
        return graph.slug, f"v{graph.version}", "", "never migrated", "", ""
    version = f"v{graph.version} → v{migration.to_version}"
    hop = (
        f"{run.hop_name} ({run.attempt}.)" if run is not None else (graph.hop or migration.last_applied or "")
    )
    done = f"{run.done:,} of {count(run.total, 'row')}" if run is not None and run.total else ""
    speed = pace(run.rows_per_second, run.seconds_left) if run is not None else ""
    failed = ""
    if migration.status is MigrationStatus.FAILED:
        error = (graph.error or str(migration.error())).partition("\n")[0]
        what = " ".join(filter(None, (error, migration.error_rows)))
        failed = f"{what}; correct it and `graph-migrator retry {graph.slug}`"
    rest = " ".join(filter(None, (speed, failed)))
    return graph.slug, version, hop, str(migration.status), done, rest


def _bar(done: int, total: int) -> str:
    share = min(1.0, done / total)
    filled = round(share * 24)
    return "█" * filled + "░" * (24 - filled) + f" {share:4.0%}"
