"""`graph-migrator retry`: one failed migration, or all of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.model import Caller, Dispatch
from graph_migrator.core.execution.operations import VerbReport
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection.failures import FailedGraph, failed_graphs
from graph_migrator.core.inspection.quantities import count
from graph_migrator.core.store.session import Executor
from graph_migrator.tasks.cli.output import ask, json_option, print_json
from graph_migrator.tasks.cli.verbs import carry_out, show, yes_option
from graph_migrator.tasks.runtime import engine


@click.command()
@click.argument("graph", required=False)
@click.option("--all-failed", is_flag=True, help="Every graph whose migration has failed.")
@click.option("--type", "graph_type", help="With --all-failed: only graphs of this type.")
@click.option("--hop", help="With --all-failed: only those that failed in this hop.")
@click.option("--error", help="With --all-failed: only those whose error's type or message contains this.")
@click.option("--dry-run", "trial", is_flag=True, help="With --all-failed: list what would be retried.")
@click.option(
    "--accept-new-code", is_flag=True, help="Go on with a partially applied hop although its code changed."
)
@yes_option
@json_option
def retry(
    graph: str | None, all_failed: bool, graph_type: str | None, hop: str | None, error: str | None, trial: bool,
    accept_new_code: bool, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Continue a failed migration where it stopped, with the code that is there now.

    With --all-failed, graphs of types that are not known here and unreachable graphs are left out and counted.
    """
    if (graph is None) != all_failed:
        raise click.UsageError("name a GRAPH, or say --all-failed")
    if graph is not None:
        if graph_type or hop or error or trial:
            raise click.UsageError("--type, --hop, --error and --dry-run go with --all-failed")
        report = carry_out(lambda e, c: operations.retry(e, graph, c, accept_new_code=accept_new_code))
        show(report, as_json=as_json)
        return
    failed = failed_graphs(engine(), graph_types(), graph_type=graph_type, hop=hop, error=error)
    chosen = [each for each in failed if each.can_be_retried]
    _print_left_out(failed)
    if trial:
        _print_chosen(chosen, as_json=as_json)
    elif chosen:
        question = (
            f"Retry {count(len(chosen), 'failed migration')} ({_some([each.graph for each in chosen])})?"
        )
        ask(question, yes=yes)
        _retry_each(chosen, accept_new_code=accept_new_code, as_json=as_json)
    elif as_json:
        print_json([])
    else:
        click.echo("None of them can be retried here." if failed else "No migration has failed.")


def _print_left_out(failed: list[FailedGraph]) -> None:
    unknown = [each.graph for each in failed if not each.is_type_known]
    if unknown:
        click.echo(f"Left out, their type is not known here: {_some(unknown)}.", err=True)
    unreachable = [each.graph for each in failed if each.is_unreachable]
    if unreachable:
        click.echo(f"Left out as unreachable: {_some(unreachable)}.", err=True)


def _print_chosen(chosen: list[FailedGraph], *, as_json: bool) -> None:
    if as_json:
        print_json(chosen)
        return
    for each in chosen:
        click.echo(f"{each.graph}: v{each.version}→v{each.to_version}, {each.hop}: {each.error_type}")
    click.echo(f"{count(len(chosen), 'migration')} would be retried; nothing was changed.")


def _retry_each(chosen: list[FailedGraph], *, accept_new_code: bool, as_json: bool) -> None:
    reports: list[VerbReport | dict[str, Any]] = []
    refused = 0
    for each in chosen:
        try:
            report = carry_out(partial(_retry, each, accept_new_code))
        except GraphMigratorError as error:
            refused += 1
            reports.append({"graph": each.graph, "error": str(error)})
            click.echo(f"error: {error}", err=True)
            continue
        reports.append(report)
        if not as_json:
            show(report, as_json=False)
    if as_json:
        print_json(reports)
    else:
        click.echo(f"{len(chosen) - refused} retried, {refused} refused")
    if refused:
        raise click.exceptions.Exit(3)


def _retry(
    failed: FailedGraph, accept_new_code: bool, executor: Executor, caller: Caller
) -> tuple[VerbReport, Dispatch | None]:
    """Retry the migration that was listed; not one that owns the graph by now."""
    return operations.retry(
        executor, failed.graph, caller, accept_new_code=accept_new_code, migration_id=failed.migration_id
    )


def _some(slugs: list[str]) -> str:
    return ", ".join(slugs[:5]) + (f" and {len(slugs) - 5} more" if len(slugs) > 5 else "")
