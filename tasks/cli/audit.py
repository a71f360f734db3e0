"""`graph-migrator audit`: keeping the audit trail, and proving that it is as it was written."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import click

from graph_migrator.core.audit.archive import archive as archive_rows
from graph_migrator.core.audit.chain import Suspicion
from graph_migrator.core.audit.digests import DataVerification, verify_data
from graph_migrator.core.audit.verify import Verification, heads, verify_chains
from graph_migrator.core.inspection.quantities import count
from graph_migrator.tasks.cli.group import Group
from graph_migrator.tasks.cli.output import json_option, print_json
from graph_migrator.tasks.runtime import engine


@click.group(cls=Group)
def audit() -> None:
    """Prove that the audit rows are as they were written; move old ones to files."""


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
            click.echo(f"\r{what}: {count(migrations, 'migration')} ", nl=False, err=True)

    report = archive_rows(engine(), before.replace(tzinfo=UTC), folder, on_progress=show)
    if as_json:
        print_json(report)
        return
    click.echo(
        f"{count(report.migrations, 'migration')}, {count(report.attempts, 'attempt')} and "
        f"{count(report.requests, 'request')} are in {report.folder} ({count(report.files, 'file')}) and were removed "
        "from the tables."
    )


@audit.command()
@click.option(
    "--to",
    "file",
    type=click.File("w", encoding="utf-8", lazy=False),
    help="Write the last link of each graph to this file (- for standard output): graph id, number, hash.",
)
@json_option
def head(file: TextIO | None, as_json: bool) -> None:
    """Print the digest of the last links of all graphs' audit. Keep it where the database cannot change it.

    Every finished attempt is linked to the one before it on its graph. Whoever may disable triggers could remove the
    last ones, or compute a chain anew. `audit verify --head FILE` finds that, if FILE was written before. The digest is
    that of FILE (sha256sum FILE), so keep FILE anywhere and the digest in a safe place.
    """
    found = heads(engine(), None if file is None else file.write)
    if as_json:
        print_json(found)
        return
    click.echo(
        f"{found.digest}  {count(found.graphs, 'graph')}, {count(found.attempts, 'finished attempt')}",
        err=file is sys.stdout,
    )


@audit.command()
@click.option(
    "--head",
    "kept",
    type=click.File(encoding="utf-8"),
    help="What `audit head --to` wrote earlier: the chains must still hold these links.",
)
@click.option(
    "--archive",
    "archives",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Also check the rows in this archive's files; can be repeated.",
)
@click.option(
    "--data",
    is_flag=True,
    help="Also compare nodes and edges with the digest after the last hop, of types with digest=True: reads all rows.",
)
@click.option(
    "--graph", "graphs", multiple=True, help="With --data: only the data of this graph; can be repeated."
)
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    kept: TextIO | None,
    archives: tuple[Path, ...],
    data: bool,
    graphs: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check that every finished attempt is as it was written, and name what was changed, removed or inserted.

    Rows that were archived are known by number and hash; --archive checks their contents, too. Rows missing at the end
    of a graph's audit are certain to be found only with --head. With --data a graph differs, too, where its writers
    have changed it since. Exit code 1: something is not as it was written, or as its last hop left it.
    """
    if graphs and not data:
        raise click.UsageError("--graph goes with --data")
    found = verify_chains(engine(), kept=kept, archives=archives)
    if data:
        found = found.model_copy(update={"data": verify_data(engine(), graphs)})
    if as_json:
        print_json(found)
    else:
        _show(found)
    if found.count or (found.data is not None and found.data.differences):
        ctx.exit(1)


def _show(found: Verification) -> None:
    for each in found.suspicions:
        click.echo(f"✗ {_where(each)}: {each.kind}: {each.found}")
    if found.count > len(found.suspicions):
        click.echo(f"✗ and {found.count - len(found.suspicions):,} more")
    click.echo(
        f"{count(found.attempts, 'attempt')} of {count(found.graphs, 'graph')} checked: "
        f"{'as they were written' if not found.count else 'NOT as they were written'}. Heads: {found.digest}"
    )
    if found.archived_unread:
        click.echo(
            f"{count(found.archived_unread, 'archived attempt')} known by hash alone; --archive FOLDER checks files."
        )
    if found.data is not None:
        _show_data(found.data)


def _show_data(data: DataVerification) -> None:
    for each in data.differences:
        then, now = (digest.split(":")[0] for digest in (each.then, each.now))
        rows = count(int(then), "row")
        rows = f"{rows} then, {now} now" if then != now else f"{rows} as then, with other contents"
        click.echo(
            f"✗ {each.graph}: not what attempt {each.attempt_id} left at v{each.version} ({rows}); its writers, or "
            "somebody behind the write guard, have changed it since"
        )
    same = data.graphs - len(data.differences)
    click.echo(
        f"data of {count(data.graphs, 'graph')} compared: {same:,} as the last hop left them. Left out: "
        f"{data.without_digest:,} without a digest, {data.migrating:,} that a migration owns."
    )


def _where(each: Suspicion) -> str:
    links = (
        f"link {each.first_link}"
        if each.first_link == each.last_link
        else f"links {each.first_link} to {each.last_link}"
    )
    attempt = f", attempt {each.attempt_id}" if each.attempt_id is not None else ""
    return f"graph {each.graph_id}" + (f", {links}" if each.last_link else "") + attempt
