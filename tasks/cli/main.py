"""The `graph-migrator` command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from graph_migrator.tasks import patience
from graph_migrator.tasks.celery import app
from graph_migrator.tasks.cli import (
    audit,
    authoring,
    data,
    doctor,
    guarding,
    migrating,
    operating,
    reading,
    serving,
    validate,
    watching,
)
from graph_migrator.tasks.cli.errors import report

_EXIT_CODES = (
    "Exit codes: 0 done · 1 the migration failed · 2 wrong usage, or unknown graph, type or target · "
    "3 refused in the graph's present state · 4 database or broker out of reach."
)


class _Commands(click.Group):
    """Turns errors into a sentence and an exit code. A traceback is shown with --debug only."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _in_haste():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            raise click.Abort from None
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            ctx.exit(report(error))


@contextmanager
def _in_haste() -> Iterator[None]:
    """A worker waits for an hour for its broker to come back; a person at a prompt does not."""
    patient: dict[str, Any] = {}
    hasty = {"result_backend_always_retry": False, **patience.settings_for(patience.COMMAND)}
    try:
        for name, value in hasty.items():
            patient[name], app.conf[name] = app.conf[name], value
        yield
    finally:
        app.conf.update(patient)


@click.group(cls=_Commands, epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(package_name="graph-migrator")
def main(debug: bool) -> None:
    """Migrate versioned graphs: nothing lost, nothing run twice, nothing unexplained.

    GRAPH is a graph's slug or its id. Services are found through DATABASE_URL, CELERY_BROKER_URL and
    CELERY_RESULT_BACKEND. Without any of your own, `graph-migrator dev` starts them all in this folder and
    `eval "$(graph-migrator env)"` points a shell at them.
    """


for module in (
    audit,
    serving,
    reading,
    watching,
    migrating,
    operating,
    data,
    guarding,
    authoring,
    doctor,
    validate,
):
    for command in module.COMMANDS:
        main.add_command(command)
