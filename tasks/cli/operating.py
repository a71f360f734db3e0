"""Operators' commands. They work in Postgres at once; where a chain must be sent, they send it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import click
from kombu.exceptions import OperationalError as BrokerError

from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.begin import Caller, Dispatch
from graph_migrator.core.execution.operations import VerbReport
from graph_migrator.core.inspection import history as reading
from graph_migrator.core.settings import settings
from graph_migrator.core.store.session import Executor
from graph_migrator.tasks.cli.output import ask, json_option, print_json, row_count, user
from graph_migrator.tasks.runtime import engine, executors

_yes = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


def _carry_out(
    verb: Callable[[Executor, Caller], VerbReport | tuple[VerbReport, Dispatch | None]],
) -> VerbReport:
    with executors().borrow() as executor:
        done = verb(executor, Caller(None, user()))
    report, dispatch = done if isinstance(done, tuple) else (done, None)
    if dispatch is not None:
        _send(dispatch)
    return report


def _send(dispatch: Dispatch) -> None:
    """Ring the doorbell. It is done in Postgres already, so a broker that is away only delays it."""
    from graph_migrator.tasks.migrate import send

    try:
        send(dispatch)
    except (BrokerError, ConnectionError) as error:
        click.echo(
            f"{dispatch.graph}: the broker is out of reach ({type(error).__name__}); recovery sends it within "
            f"{settings().deadline_seconds:g} s of a worker being there.",
            err=True,
        )


def _told(report: VerbReport, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
    else:
        click.echo(f"{report.graph}: {report.message}" + (f" ({report.status})" if report.status else ""))


@click.command()
@click.argument("graph", required=False)
@click.option("--all-failed", is_flag=True, help="Every graph whose migration has failed.")
@click.option(
    "--accept-new-code", is_flag=True, help="Go on with a half-done batched hop although its code changed."
)
@_yes
@json_option
def retry(graph: str | None, all_failed: bool, accept_new_code: bool, yes: bool, as_json: bool) -> None:
    """Take a failed migration up where it stopped, with the code that is there now."""
    if (graph is None) != all_failed:
        raise click.UsageError("name a GRAPH, or say --all-failed")
    if graph is not None:
        _told(
            _carry_out(lambda e, c: operations.retry(e, graph, c, accept_new_code=accept_new_code)),
            as_json=as_json,
        )
        return
    failed = {g.slug: g.migration_id for g in reading.list_graphs(engine(), state="failed", limit=10_000)}
    if not failed:
        if as_json:
            print_json([])
        else:
            click.echo("No migration has failed.")
        return
    ask(f"Retry {len(failed)} failed migrations ({_some([*failed])})?", yes=yes)
    reports: list[VerbReport | dict[str, Any]] = []
    refused = 0
    for slug, migration_id in failed.items():

        def verb(
            executor: Executor, caller: Caller, slug: str = slug, meant: UUID | None = migration_id
        ) -> tuple[VerbReport, Dispatch | None]:
            return operations.retry(
                executor, slug, caller, accept_new_code=accept_new_code, migration_id=meant
            )

        try:
            report = _carry_out(verb)
        except GraphMigratorError as error:
            refused += 1
            reports.append({"graph": slug, "error": str(error)})
            click.echo(f"error: {error}", err=True)
            continue
        reports.append(report)
        if not as_json:
            _told(report, as_json=False)
    if as_json:
        print_json(list(reports))
    else:
        click.echo(f"{len(failed) - refused} retried, {refused} refused")
    if refused:
        raise click.exceptions.Exit(3)


def _some(slugs: list[str]) -> str:
    return ", ".join(slugs[:5]) + (f" and {len(slugs) - 5} more" if len(slugs) > 5 else "")


@click.command()
@click.argument("graph")
@_yes
@json_option
def cancel(graph: str, yes: bool, as_json: bool) -> None:
    """End GRAPH's migration at the next boundary. It stays at the version it has reached."""
    meant = None
    if not yes:
        state = reading.graph_state(engine(), graph, count_rows=False)
        meant = state.graph.migration_id  # the graph may be under another one by the time of the answer
        ask(
            f"Cancel the migration of {state.graph.slug}? It ends at its next boundary, at v{state.graph.version} "
            "or what it reaches until then; finished hops stay. Half-way through a batched hop it stays read-only "
            "until `retry` finishes the hop",
            yes=yes,
        )
    _told(_carry_out(lambda e, c: operations.cancel(e, graph, c, migration_id=meant)), as_json=as_json)


@click.command()
@click.argument("graph")
@json_option
def pause(graph: str, as_json: bool) -> None:
    """Stop GRAPH's migration at the next hop or batch boundary, until it is resumed."""
    _told(_carry_out(lambda e, c: operations.pause(e, graph, c)), as_json=as_json)


@click.command()
@click.argument("graph")
@json_option
def resume(graph: str, as_json: bool) -> None:
    """Let GRAPH's paused migration go on."""
    _told(_carry_out(lambda e, c: operations.resume(e, graph, c)), as_json=as_json)


@click.command()
@click.argument("graph")
@click.option("--force", is_flag=True, help="Also where it is live, or half-way through a batched hop.")
@click.option("--terminate", is_flag=True, help="With --force: end the session that holds the graph's lock.")
@click.option("--whole", is_flag=True, help="Its rows were mended by hand: declare a half-done graph whole.")
@_yes
@json_option
def release(graph: str, force: bool, terminate: bool, whole: bool, yes: bool, as_json: bool) -> None:
    """Give GRAPH's migration up and the graph back to its writers, at the version it has."""
    if terminate and not force:
        raise click.UsageError("--terminate goes with --force")
    meant = None
    if not yes:
        state = reading.graph_state(engine(), graph, count_rows=False)
        meant = state.graph.migration_id
        half = (
            f", half-way through a hop after {row_count(state.checkpoint_done)}"
            if state.checkpoint_done
            else ""
        )
        ended = " The session that holds its lock is ended." if terminate else ""
        ask(
            f"Release {state.graph.slug} at v{state.graph.version}{half}? Its migration "
            f"({state.graph.status or 'none'}) is given up and writers get in.{ended}",
            yes=yes,
        )
    report = _carry_out(
        lambda e, c: operations.release(
            e, graph, c, force=force, terminate=terminate, whole=whole, migration_id=meant
        )
    )
    _told(report, as_json=as_json)


@click.command()
@click.argument("graph")
@json_option
def lock(graph: str, as_json: bool) -> None:
    """Make GRAPH read-only on its owner's behalf. Migrations still run."""
    _told(_carry_out(lambda e, c: operations.set_read_only(e, graph, c, on=True)), as_json=as_json)


@click.command()
@click.argument("graph")
@json_option
def unlock(graph: str, as_json: bool) -> None:
    """Take the owner's lock off GRAPH."""
    _told(_carry_out(lambda e, c: operations.set_read_only(e, graph, c, on=False)), as_json=as_json)


@click.command()
@json_option
def recover(as_json: bool) -> None:
    """One recovery sweep, as every worker makes it twice a second by itself."""
    from graph_migrator.tasks.recover import sweep_once

    done = sweep_once()
    if as_json:
        print_json(dict(done))
    elif not done:
        click.echo("a worker is sweeping at this moment")
    else:
        click.echo(", ".join(f"{number} {name}" for name, number in done.items()))


COMMANDS = (retry, cancel, pause, resume, release, lock, unlock, recover)
