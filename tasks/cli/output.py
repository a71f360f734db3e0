"""How commands print: tables on a terminal, the same as plain text in a pipe, JSON on request."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from graph_migrator.core.statuses import AttemptStatus, MigrationStatus

_F = TypeVar("_F", bound=Callable[..., Any])

_COLOURS = {
    MigrationStatus.SUCCEEDED: "green", MigrationStatus.FAILED: "red", MigrationStatus.RUNNING: "cyan",
    MigrationStatus.QUEUED: "cyan", MigrationStatus.PAUSED: "yellow", MigrationStatus.PAUSING: "yellow",
    MigrationStatus.CANCELLING: "yellow", AttemptStatus.LOST: "magenta", AttemptStatus.SKIPPED: "green",
}  # fmt: skip


def console() -> Console:
    """Standard output; colours, and lines folded to its width, only where it is a terminal."""
    out = Console(highlight=False)
    if out.is_terminal and sys.stdout.isatty():
        return out
    # Not rich's guess: FORCE_COLOR in the environment must not put colours into a pipe.
    return Console(highlight=False, width=10_000, no_color=True, force_terminal=False, color_system=None)


def json_option(command: _F) -> _F:
    """The ``--json`` of every command that reads."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, stable for scripts.")(command)


def print_json(value: BaseModel | Sequence[BaseModel] | dict[str, Any] | list[Any]) -> None:
    """Print models or plain values as JSON."""
    if isinstance(value, BaseModel):
        click.echo(value.model_dump_json(indent=2))
        return
    plain = (
        [v.model_dump(mode="json") if isinstance(v, BaseModel) else v for v in value]
        if isinstance(value, list | tuple)
        else value
    )
    click.echo(json.dumps(plain, indent=2, ensure_ascii=False, default=str))


def table(title: str | None, columns: Iterable[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table without vertical lines; numbers and nothing are printed as such."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*("" if cell is None else str(cell) for cell in row))
    return made


def coloured(status: MigrationStatus | AttemptStatus | None) -> str:
    """A status in its colour."""
    if status is None:
        return ""
    colour = _COLOURS.get(status, "red" if status == "failed" else "")
    return f"[{colour}]{status}[/]" if colour else str(status)


def moment(when: datetime | None) -> str:
    """A moment as people read it: the time alone if it is of today, all UTC."""
    if when is None:
        return ""
    there = when.astimezone(UTC)
    return there.strftime("%H:%M:%S" if there.date() == datetime.now(UTC).date() else "%Y-%m-%d %H:%M:%S")


def without_password(url: str) -> str:
    """A service's URL as it may be shown, whatever it looks like: several, malformed, password in the query."""
    return "; ".join(_without_password(each) for each in url.split(";"))


def _without_password(url: str) -> str:
    scheme, separator, rest = url.strip().partition("://")
    if not separator:
        return "a malformed URL"
    rest = rest.partition("?")[0]
    credentials, at, place = rest.rpartition("@")
    user = credentials.partition(":")[0]
    return f"{scheme}://{user}{':***' if ':' in credentials else ''}{at}{place}"


def user() -> str:
    """Who calls, for the audit rows; a container's user need not have a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def ask(question: str, *, yes: bool) -> None:
    """Say what will be done and ask for leave, unless ``--yes`` has given it.

    Raises:
        click.UsageError: There is nobody to answer.
        click.exceptions.Exit: The answer is no.
    """
    if yes:
        return
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        click.echo(err=True)  # the question's line is still open
        raise click.UsageError("nobody answered; --yes goes on without asking") from None
    if not agreed:
        click.echo("Nothing was changed.", err=True)
        raise click.exceptions.Exit(1)
