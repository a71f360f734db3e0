"""`graph-migrator retry`."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import click

from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.model import Caller, Dispatch
from graph_migrator.core.execution.operations import VerbReport
from graph_migrator.core.inspection import history as reading
from graph_migrator.core.store.session import Executor
from graph_migrator.tasks.cli.output import ask, json_option, print_json
from graph_migrator.tasks.cli.verbs import carry_out, show, yes_option
from graph_migrator.tasks.runtime import engine


@click.command()
@click.argument("graph", required=False)
@click.option("--all-failed", is_flag=True, help="Every graph whose migration has failed.")
@click.option(
    "--accept-new-code", is_flag=True, help="Go on with a half-done batched hop although its code changed."
)
@yes_option
@json_option
def retry(graph: str | None, all_failed: bool, accept_new_code: bool, yes: bool, as_json: bool) -> None:
    """Take a failed migration up where it stopped, with the code that is there now."""
    if (graph is None) != all_failed:
        raise click.UsageError("name a GRAPH, or say --all-failed")
    if graph is not None:
        show(
            carry_out(lambda e, c: operations.retry(e, graph, c, accept_new_code=accept_new_code)),
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
            report = carry_out(verb)
        except GraphMigratorError as error:
            refused += 1
            reports.append({"graph": slug, "error": str(error)})
            click.echo(f"error: {error}", err=True)
            continue
        reports.append(report)
        if not as_json:
            show(report, as_json=False)
    if as_json:
        print_json(list(reports))
    else:
        click.echo(f"{len(failed) - refused} retried, {refused} refused")
    if refused:
        raise click.exceptions.Exit(3)


def _some(slugs: list[str]) -> str:
    return ", ".join(slugs[:5]) + (f" and {len(slugs) - 5} more" if len(slugs) > 5 else "")
