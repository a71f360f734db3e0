"""`graph-migrator health`: what load slows rollouts and batched hops down, or stops them."""

from __future__ import annotations

from typing import Any

import click

from graph_migrator.core.rollouts.health import SIGNALS, Level, SignalState
from graph_migrator.core.rollouts.rows import load_signals
from graph_migrator.tasks.cli.output import console, json_option, moment, print_json, table
from graph_migrator.tasks.runtime import executors

_EFFECTS = {
    Level.GOOD: "",
    Level.UNKNOWN: "warns only",
    Level.SLOW: "halves the pace of rollouts; batched hops pause between batches",
    Level.STOP: "holds rollouts; batched hops take long pauses",
}
_SIGNALS = {signal.name: signal for signal in SIGNALS}


@click.command()
@json_option
def health(as_json: bool) -> None:
    """Show the health signals as the workers read them, every 5 s while something runs.

    A signal is bad at once, and good again after 30 s. GRAPH_MIGRATOR_HEALTH_LIMITS sets other limits, slow and stop:
    '{"lock_waiters": [20, null]}'. GRAPH_MIGRATOR_HEALTH_SQL adds a query of your own that gives one number.
    `graph-migrator rollout set ROLLOUT health false` lets one rollout ignore them all.
    """
    with executors().borrow() as executor, executor.cursor() as cursor:
        found = load_signals(cursor)
    if as_json:
        print_json([_as_json(each) for each in found])
        return
    if not found:
        click.echo("Nothing was read yet: workers read the signals while a rollout or a hop runs.", err=True)
        return
    console().print(
        table(
            None,
            ("SIGNAL", "LEVEL", "VALUE", "SLOW", "STOP", "SINCE", "WHAT IT IS", "WHAT IT DOES"),
            map(_row, found),
        )
    )


def _row(state: SignalState) -> tuple[object, ...]:
    signal = _SIGNALS[state.name]
    detail = f" ({state.detail})" if state.detail else ""
    return (
        state.name,
        state.level,
        _number(state.value, signal.unit),
        _number(state.slow, signal.unit),
        _number(state.stop, signal.unit),
        moment(state.since),
        signal.meaning + detail,
        _EFFECTS[state.level],
    )


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:,.4g} {unit}".strip()


def _as_json(state: SignalState) -> dict[str, Any]:
    signal = _SIGNALS[state.name]
    return {
        "signal": state.name,
        "level": state.level,
        "value": state.value,
        "unit": signal.unit,
        "slow": state.slow,
        "stop": state.stop,
        "since": state.since.isoformat(),
        "detail": state.detail,
        "meaning": signal.meaning,
        "reason": signal.reason,
    }
