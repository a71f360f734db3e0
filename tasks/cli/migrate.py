"""The command that migrates."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import click
from rich.markup import escape

from graph_migrator.core.decisions import HopMessage
from graph_migrator.core.errors import (
    MigrationError,
)
from graph_migrator.core.execution import dry_run as trying
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.dry_run import DryRun
from graph_migrator.core.execution.in_process import follow
from graph_migrator.core.execution.model import Caller, Dispatch, Failed, HopOutcome
from graph_migrator.core.inspection import history as reading
from graph_migrator.core.inspection.graphs import find_graph
from graph_migrator.core.inspection.history import Attempt
from graph_migrator.core.inspection.quantities import count, duration
from graph_migrator.core.inspection.waiting import wait_for
from graph_migrator.core.reports import MigrationReport
from graph_migrator.core.statuses import AttemptStatus, MigrationStatus
from graph_migrator.core.store.errors import DRIVER_ERRORS
from graph_migrator.tasks.calls import send_call
from graph_migrator.tasks.cli.errors import of_a_hop
from graph_migrator.tasks.cli.output import coloured, console, json_option, print_json, table, user
from graph_migrator.tasks.cli.sending import name_other_code, refuse_state, refuse_target
from graph_migrator.tasks.runtime import engine, executors


@click.command()
@click.argument("graph")
@click.option(
    "--to", "target", type=click.IntRange(1, 2**31 - 1), help="The version to reach; by default the newest."
)
@click.option("--wait", is_flag=True, help="Wait for the end; exit code 1 if it failed.")
@click.option(
    "--wait-for-deploy",
    "deploy",
    is_flag=True,
    help="Send a target that is not known here: a worker with newer code is expected.",
)
@click.option("--inline", is_flag=True, help="Run the hops in this process; needs no broker and no worker.")
@click.option(
    "--dry-run", "trial", is_flag=True, help="Run the hops on the real rows, report, roll all back."
)
@click.option(
    "--batches", default=10, show_default=True, type=click.IntRange(1), help="Dry run: batches to try."
)
@click.option("--reason", help="Why; it is recorded in the history.")
@click.option("--by", "requested_by", default=user, help="Who requests it; by default the user.")
@json_option
def migrate(
    graph: str, target: int | None, wait: bool, deploy: bool, inline: bool, trial: bool, batches: int,
    reason: str | None, requested_by: str, as_json: bool,
) -> None:  # fmt: skip
    """Move GRAPH along its hops to a version.

    By default the workers do it, and this command returns when the first message is sent. A graph whose
    last migration failed goes on where it stopped. A version below the graph's applies the reverses of the hops.
    """
    if sum((wait, inline, trial)) > 1:
        raise click.UsageError("--wait, --inline and --dry-run exclude each other")
    if deploy and (inline or trial):
        raise click.UsageError("--wait-for-deploy is about workers; --inline and --dry-run use none")
    if trial:
        _print_trial(trying.dry_run(engine(), graph, target, batches=batches), as_json=as_json)
        return
    try:
        if inline:
            report = _inline(graph, target, Caller(None, requested_by, reason), quiet=as_json)
        else:
            found = find_graph(engine(), graph)
            if not deploy:
                refuse_target(found, target)
            if not wait:  # nobody would see the worker's refusal
                refuse_state(found)
            latest = _latest_attempt(found.slug)
            result = send_call(executors(), found, target, requested_by, reason)
            if not wait:
                _print_sent(found.slug, result.id, as_json=as_json)
            if not as_json:
                name_other_code(found.graph_type)
            if not wait:
                return
            report = _wait_for(found.slug, result, after=latest, quiet=as_json)
    except MigrationError:
        if as_json:
            print_json(reading.history(engine(), graph, limit=1)[-1].report)
        raise
    if as_json:
        print_json(report)
    else:
        _print_report(report)


def _inline(graph: str, target: int | None, caller: Caller, *, quiet: bool) -> MigrationReport:
    out = console()
    with executors().borrow() as executor:
        begun = begin_migration(executor, graph, target, caller=caller)
    if not isinstance(begun, Dispatch):
        assert isinstance(begun, MigrationReport)  # noqa: S101 - without a task id there is nothing to ignore
        return begun
    names = {step.to_version: step.name for step in begun.steps}
    failed: list[str] = []

    def shown(message: HopMessage, outcome: HopOutcome) -> None:
        name = names.get(message.to_version, "?")
        if isinstance(outcome, Failed):
            failed.append(name)
        if not quiet:
            how = type(outcome).__name__.lower()
            out.print(f"  v{message.from_version}→v{message.to_version} {escape(name)}: {how}")

    try:
        return follow(executors(), begun, on_hop=shown)
    except Exception as error:
        if failed:
            raise of_a_hop(error, begun.graph, failed[0]) from error
        raise


def _print_sent(slug: str, task_id: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"graph": slug, "task_id": task_id})
    else:
        click.echo(f"{slug}: sent (task {task_id}). Follow it with `graph-migrator watch {slug}`.")


def _latest_attempt(slug: str) -> int:
    stories = reading.history(engine(), slug, limit=1)
    return max((attempt.id for story in stories for attempt in story.attempts), default=0)


def _wait_for(slug: str, result: Any, *, after: int, quiet: bool) -> MigrationReport:
    """Print each hop when it is over, until the migration has ended; then return or raise its outcome."""
    following = _Following(slug, after, quiet)
    try:
        return wait_for(result, database=engine(), on_look=following.look)
    except Exception as error:
        if following.hop == "?":
            raise  # no hop's: Postgres is away from the beginning
        raise of_a_hop(error, slug, following.hop) from error


@dataclass
class _Following:
    """What was printed of a migration that this command waits for."""

    slug: str
    after: int
    quiet: bool
    hop: str = "?"
    hinted: bool = False
    hint_at: float = field(default_factory=lambda: time.monotonic() + 5)

    def look(self, report: MigrationReport | None) -> None:
        """Print the hops that have ended since the last look, and a hint where nothing moves."""
        if report is not None and report.migration_id is not None:
            with suppress(*DRIVER_ERRORS):  # Postgres is away: what is missing is printed when it is back
                self._print_ended(report.migration_id)
        is_paused = report is not None and report.status is MigrationStatus.PAUSED
        if not self.hinted and (is_paused or (self.hop == "?" and time.monotonic() > self.hint_at)):
            self.hinted = True
            why = "it is paused" if is_paused else "nothing has happened yet"
            hint = f"{self.slug}: {why}, still waiting; `graph-migrator status {self.slug}` says more."
            click.echo(hint, err=True)

    def _print_ended(self, migration: UUID) -> None:
        for attempt in reading.attempts_after(engine(), migration, self.after):
            self.hop = attempt.hop_name
            if attempt.status is AttemptStatus.RUNNING:
                break  # the next one cannot have begun
            self.after = attempt.id
            if not self.quiet:
                _print_attempt(attempt)


def _print_attempt(attempt: Attempt) -> None:
    console().print(
        f"  v{attempt.from_version}→v{attempt.to_version} {escape(attempt.hop_name)}: "
        f"{coloured(attempt.status)} ({count(attempt.rows_changed, 'row')}, {duration(attempt.seconds)}, "
        f"{attempt.worker})"
    )


def _print_report(report: MigrationReport) -> None:
    out = console()
    if not report.changed:
        out.print(f"{report.graph} is at v{report.version} already; nothing to do.")
        return
    took = f" in {duration(report.seconds)}" if report.seconds is not None else ""
    out.print(
        f"{report.graph}: {coloured(report.status)}, v{report.from_version}→v{report.version}{took}, "
        f"{count(len(report.hops), 'hop')}"
    )


def _print_trial(trial: DryRun, *, as_json: bool) -> None:
    if as_json:
        print_json(trial)
    else:
        out = console()
        rows = [
            (f"v{t.hop.from_version}→v{t.hop.to_version}", t.hop.name, t.hop.status if t.checked else "cut short",
             count(t.hop.rows_changed, 'row'), duration(t.seconds), "checks held" if t.checked else
             f"{t.rows_tried:,} of {count(t.rows_in_all or 0, 'row')} tried; "
             f"all would take about {duration(t.expected_seconds)}")
            for t in trial.hops
        ]  # fmt: skip
        if rows:
            out.print(table(None, ("HOP", "NAME", "STATUS", "WOULD CHANGE", "TOOK", ""), rows))
        for name in trial.not_tried:
            out.print(f"not tried: {name}")
        if trial.error:
            out.print(f"[red]would fail:[/] {escape(trial.error)}")
        if trial.hops or trial.error:
            out.print(f"{trial.graph}: everything was rolled back; it is at v{trial.from_version} as before.")
        else:
            out.print(f"{trial.graph} is at v{trial.from_version} already; there is nothing to try.")
    if trial.error:
        raise click.exceptions.Exit(1)
