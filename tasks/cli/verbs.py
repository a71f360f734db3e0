"""What the operators' commands have in common: carry a verb out in Postgres, send the chain, show the result."""

from __future__ import annotations

from collections.abc import Callable

import click
from kombu.exceptions import OperationalError as BrokerError

from graph_migrator.core.execution.model import Caller, Dispatch
from graph_migrator.core.execution.operations import VerbReport
from graph_migrator.core.settings import settings
from graph_migrator.core.store.session import Executor
from graph_migrator.tasks.cli.output import print_json, user
from graph_migrator.tasks.runtime import executors

yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


def carry_out(
    verb: Callable[[Executor, Caller], VerbReport | tuple[VerbReport, Dispatch | None]],
) -> VerbReport:
    """Carry a verb out in Postgres, and send the chain that it leaves to be run."""
    with executors().borrow() as executor:
        done = verb(executor, Caller(None, user()))
    report, dispatch = done if isinstance(done, tuple) else (done, None)
    if dispatch is not None:
        send_chain(dispatch)
    return report


def send_chain(dispatch: Dispatch) -> None:
    """Publish the chain. The verb is committed already, so a broker that is unavailable only delays it."""
    from graph_migrator.tasks.migrate import send

    try:
        send(dispatch)
    except (BrokerError, ConnectionError) as error:
        click.echo(
            f"{dispatch.graph}: the broker is out of reach ({type(error).__name__}); recovery sends it within "
            f"{settings().deadline_seconds:g} s of a worker being there.",
            err=True,
        )


def show(report: VerbReport, *, as_json: bool) -> None:
    """Print what a verb did."""
    if as_json:
        print_json(report)
    else:
        click.echo(f"{report.graph}: {report.message}" + (f" ({report.status})" if report.status else ""))
