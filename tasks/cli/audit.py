"""`graph-migrator audit`: keeping the audit trail."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from graph_migrator.core.audit.archive import archive as archive_rows
from graph_migrator.core.inspection.quantities import count
from graph_migrator.tasks.cli.output import json_option, print_json
from graph_migrator.tasks.runtime import engine


@click.group()
def audit() -> None:
    """Move old audit rows to files."""


@audit.command()
@click.option(
    "--before",
    required=True,
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"]),
    help="Archive what ended before this moment (UTC); at least a day ago.",
)
@click.option(
    "--to",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="A new folder, or one whose archive was interrupted.",
)
@json_option
def archive(before: datetime, folder: Path, as_json: bool) -> None:
    """Move settled migrations with their attempts and requests from the tables to compressed files.

    Everything is written and read back before the first row is removed. The same command on the same folder goes on
    where it was interrupted. Connect as the owner of the tables: no other role may remove audit rows.
    """

    def show(what: str, migrations: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{what}: {migrations:,} migrations ", nl=False, err=True)

    report = archive_rows(engine(), before.replace(tzinfo=UTC), folder, on_progress=show)
    if as_json:
        print_json(report)
        return
    click.echo(
        f"{count(report.migrations, 'migration')}, {count(report.attempts, 'attempt')} and "
        f"{count(report.requests, 'request')} are in {report.folder} ({count(report.files, 'file')}) and were removed "
        "from the tables."
    )
