"""`graph-migrator health`: what load slows rollouts and batched hops down, or stops them."""

from __future__ import annotations

import click

from graph_migrator.core.inspection.quantities import quantity
from graph_migrator.core.rollouts.inspection import HealthSignal
from graph_migrator.core.rollouts.inspection import health as read_health
from graph_migrator.tasks.cli.output import console, json_option, moment, print_json, table
from graph_migrator.tasks.runtime import executors


@click.command()
@json_option
def health(as_json: bool) -> None:
    """Show the health signals as the workers read them, every 5 s while something runs.

    A signal is bad at once, and good again after 30 s. GRAPH_MIGRATOR_HEALTH_LIMITS sets other limits, slow and stop:
    '{"lock_waiters": [20, null]}'. GRAPH_MIGRATOR_HEALTH_SQL adds a query of your own that gives one number.
    `graph-migrator rollout set ROLLOUT health false` lets one rollout ignore them all.
    """
    with executors().borrow() as executor:
        found = read_health(executor)
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("Nothing was read yet: workers read the signals while a rollout or a hop runs.", err=True)
        return
    columns = ("SIGNAL", "LEVEL", "VALUE", "SLOW", "STOP", "SINCE", "WHAT IT IS", "WHAT IT DOES")
    console().print(table(None, columns, map(_row, found)))
    for each in found:
        if each.remedy is not None:
            click.echo(f"{each.signal}: {each.remedy}")


def _row(found: HealthSignal) -> tuple[object, ...]:
    detail = f" ({found.detail})" if found.detail else ""
    limits = [quantity(each, found.unit) or "-" for each in (found.value, found.slow, found.stop)]
    return (found.signal, found.level, *limits, moment(found.since), found.meaning + detail, found.effect)
