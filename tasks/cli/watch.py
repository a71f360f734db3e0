"""Following migrations while they run."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field

import click
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from graph_migrator.core.inspection.graph_state import GraphState, graph_state
from graph_migrator.core.inspection.graphs import list_graphs
from graph_migrator.core.inspection.listener import Listener
from graph_migrator.core.inspection.quantities import count, pace
from graph_migrator.core.inspection.waiting_calls import waiting_calls
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
    listener: Listener
    states: dict[str, GraphState] = field(default_factory=dict)

    def look(self) -> None:
        """Read them again; without names, also what has begun meanwhile."""
        names = dict.fromkeys([*self.states, *(self.named or _moving_now())])
        self._read(names)
        moving = [state.migration for state in self.states.values() if _status(state) in _MOVING]
        if self.listener.follow(each.migration_id for each in moving if each and each.migration_id):
            self._read(names)  # what has changed before it was followed

    def _read(self, names: Iterable[str]) -> None:
        self.states = {name: graph_state(engine(), name, count_rows=False) for name in names}

    @property
    def is_over(self) -> bool:
        return not any(_status(state) in _MOVING or state.waiting_calls for state in self.states.values())

    @property
    def failed(self) -> bool:
        return any(_status(state) is MigrationStatus.FAILED for state in self.states.values())


@click.command()
@click.argument("graph", nargs=-1)
@click.option(
    "--interval",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="Seconds between looks at most; the end of a hop is announced.",
)
@click.option("--once", is_flag=True, help="Print once and end.")
@json_option
def watch(graph: tuple[str, ...], interval: float, once: bool, as_json: bool) -> None:
    """Follow migrations until all of them have ended or paused: GRAPHs, or all that are being migrated.

    Everything is read from Postgres, so it goes on when a worker dies and another takes over. In a pipe, a
    line (with --json, a JSON object) for each change. Exit code 1 where one of them failed.
    """
    with closing(Listener(engine())) as listener:
        watched = _Watched(graph, listener)
        watched.look()
        if not watched.states:
            if not as_json:
                click.echo("Nothing is being migrated.")
            return
        _follow(watched, interval, once=once, as_json=as_json)
    if watched.failed:
        raise click.exceptions.Exit(1)


def _follow(watched: _Watched, interval: float, *, once: bool, as_json: bool) -> None:
    if as_json or not console().is_terminal:
        _print_changes(watched, interval, once=once, as_json=as_json)
    elif once:
        console().print(_table(watched))
    else:
        with Live(_table(watched), console=console(), refresh_per_second=8) as display:
            while not watched.is_over:
                watched.listener.wait(interval)
                watched.look()
                display.update(_table(watched))


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
        watched.listener.wait(interval)
        watched.look()


def _moving_now() -> list[str]:
    found = {g.slug for s in sorted(_MOVING) for g in list_graphs(engine(), state=s, limit=_MOST)}
    with engine().connect() as connection:
        found |= {each.graph for each in waiting_calls(connection, limit=_MOST)}
    return sorted(found)[:_MOST]


def _status(state: GraphState) -> MigrationStatus | None:
    return state.migration.status if state.migration is not None else None


def _table(watched: _Watched) -> Table:
    rows = []
    for state in watched.states.values():
        name, version, hop, status, done, rest = _row(state)
        run = state.running
        bar = _bar(run.done, run.total) if run is not None and run.total else done
        shown = coloured(_status(state)) if status == _status(state) else status
        rows.append((name, version, hop, shown, bar, escape(rest)))
    return table(None, ("GRAPH", "VERSION", "HOP", "STATUS", "PROGRESS", ""), rows)


def _row(state: GraphState) -> tuple[str, str, str, str, str, str]:
    """What is shown of one graph; a difference in the first four cells is a change."""
    graph, migration, run = state.graph, state.migration, state.running
    if state.waiting_calls and _status(state) not in _MOVING:
        call = state.waiting_calls[0]
        to = f" → v{call.target}" if call.target is not None else ""
        return graph.slug, f"v{graph.version}{to}", "", "requeued" if call.because else "sent", "", call.fact
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
