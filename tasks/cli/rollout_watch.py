"""`graph-migrator rollout watch`: a rollout's stages, failures and pace, until it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from graph_migrator.core.inspection.quantities import time_range
from graph_migrator.core.plural import count
from graph_migrator.core.rollouts import inspection
from graph_migrator.core.rollouts.inspection import GroupOfErrors, RolloutState
from graph_migrator.core.rollouts.statuses import LIVE, RolloutStatus
from graph_migrator.tasks.cli.output import console, json_option, print_json
from graph_migrator.tasks.runtime import executors

_WIDTH = 40
Show = Callable[[RolloutState, list[GroupOfErrors]], None]


@click.command()
@click.argument("which", metavar="ROLLOUT")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 60),
    default=1.0,
    show_default=True,
    help="Seconds between looks.",
)
@click.option("--until-held", is_flag=True, help="End also when it is held; exit code 3.")
@json_option
def watch(which: str, interval: float, until_held: bool, as_json: bool) -> None:
    """Follow a rollout until it has ended: stages as bars, failures by cause, pace and time left.

    In a pipe it prints a line whenever something has changed; with --json an object. It exits with 1 where graphs
    failed for good. Ctrl-C ends the watching, never the rollout.
    """
    out = console()
    ends = {*RolloutStatus} - LIVE | ({RolloutStatus.HELD} if until_held else set())
    state = _look(which)[0]
    which = str(state.rollout.id)  # the type's latest may be another one soon
    if out.is_terminal and not as_json:
        with Live(console=out, auto_refresh=False, transient=False) as live:
            state = _follow(
                which, interval, ends, lambda found, errors: live.update(screen(found, errors), refresh=True)
            )
    elif as_json:
        state = _follow(which, interval, ends, lambda found, _: print_json(found))
    else:
        state = _follow(which, interval, ends, lambda found, errors: _print_line(out, found, errors))
    if state.rollout.status is RolloutStatus.FINISHED_WITH_FAILURES:
        raise click.exceptions.Exit(1)
    if state.rollout.status is RolloutStatus.HELD:
        raise click.exceptions.Exit(3)


def _look(which: str) -> tuple[RolloutState, list[GroupOfErrors]]:
    with executors().borrow() as executor:
        return inspection.show(executor, which), inspection.errors(executor, which)


def _follow(which: str, interval: float, ends: set[RolloutStatus], show: Show) -> RolloutState:
    """Show each state that differs from the one before, until the rollout has one of these statuses."""
    before = None
    while True:
        found, errors = _look(which)
        shown = (
            found.rollout,
            found.hold,
            found.max_in_flight,
            found.pace,
            found.pace_set_by,
            found.paused_graphs,
        )
        if shown != before:
            show(found, errors)
            before = shown
        if found.rollout.status in ends:
            return found
        time.sleep(interval)


def screen(found: RolloutState, errors: list[GroupOfErrors]) -> RenderableType:
    """What stands on the terminal: two lines that say what to do, a bar for each stage, and failures by cause."""
    r = found.rollout
    lines: list[RenderableType] = [
        Text(f"{r.status}: {found.why}", style="bold"),
        Text(f"to do: {found.what_to_do}"),
        Text(f"{r.graph_type} → v{r.to_version}, rollout {str(r.id)[:8]}", style="dim"),
        _bars(found),
        Text(pace_line(found)),
    ]
    lines += [
        Text(f"{each.graphs:,} × {each.title} ({', '.join(each.examples)})", style="red")
        for each in errors[:5]
    ]
    return Group(*lines)


def _bars(found: RolloutState) -> Table:
    table = Table.grid(padding=(0, 2))
    for stage in found.stages:
        counts = stage.counts
        ended = counts.succeeded + counts.skipped + counts.failed
        words = f"{ended:,} of {counts.total:,}"
        words += f", {counts.failed:,} failed" if counts.failed else ""
        words += f", {counts.skipped:,} skipped" if counts.skipped else ""
        style = "red" if counts.failed else "green" if stage.ended_at else "cyan"
        bar = ProgressBar(
            total=max(1, counts.total),
            completed=ended,
            width=_WIDTH,
            complete_style=style,
            finished_style=style,
        )
        table.add_row(f"{stage.number} {stage.kind}", bar, words)
    return table


def pace_line(found: RolloutState) -> str:
    """How many are in flight, what limits that, and how long the rest takes."""
    line = f"in flight: {found.in_flight} of {found.max_in_flight}"
    if found.pace_set_by:
        line += f", at most {found.pace} of them now: {found.pace_set_by}"
    elif found.pace < found.max_in_flight:
        line += f", at most {found.pace} of them now: load was too high, the pace comes back by itself"
    if found.strategy.rate:
        line += f", at most {found.strategy.rate}"
    if found.rollout.counts.pending:
        line += f"; time left: {time_left(found)}"
    return line


def time_left(found: RolloutState) -> str:
    """The range of the time left, and what it rests on."""
    left = found.time_left
    if left is None:
        return "unknown before five graphs have settled"
    return (
        f"{time_range(left.low_seconds, left.high_seconds)} of work, without bakes and gates "
        f"(from {left.graphs} settled graphs)"
    )


def _print_line(out: Console, found: RolloutState, errors: list[GroupOfErrors]) -> None:
    r, c = found.rollout, found.rollout.counts
    causes = f" for {count(len(errors), 'cause')}" if errors else ""
    out.print(
        f"{r.status}: {c.succeeded:,} of {c.total:,} moved, {c.failed:,} failed{causes}, {c.skipped:,} skipped, "
        f"stage {r.stage} of {r.stages}, {pace_line(found)}. {found.why}",
        soft_wrap=True,
    )
