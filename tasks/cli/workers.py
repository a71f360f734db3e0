"""`graph-migrator workers`."""

from __future__ import annotations

import click

from graph_migrator.core.rollouts.workers import WorkerState
from graph_migrator.core.rollouts.workers import workers as read_workers
from graph_migrator.tasks.cli.output import console, json_option, moment, print_json, table
from graph_migrator.tasks.runtime import executors


@click.command()
@json_option
def workers(as_json: bool) -> None:
    """List the workers: which graph types each serves with which code, since when, and when it was seen."""
    with executors().borrow() as executor:
        found = read_workers(executor)
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("No worker has been seen within a day. Start one: `celery -A graph_migrator worker`.")
        return
    rows = [
        (w.name, "yes" if w.live else "no", w.queue, f"{w.processes} {w.pool}", _types(w), moment(w.types_since),
         moment(w.seen_at))
        for w in found
    ]  # fmt: skip
    console().print(table(None, ("worker", "lives", "queue", "pool", "types", "since", "seen"), rows))


def _types(worker: WorkerState) -> str:
    if worker.error:
        return worker.error
    return ", ".join(f"{name} v{each.newest} ({each.code})" for name, each in worker.types.items()) or "none"
