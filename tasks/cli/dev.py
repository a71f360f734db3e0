"""`graph-migrator dev` and `env`: everything on this machine, and how to point a shell at it."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from graph_migrator.core.embedded import EmbeddedUnavailable, Postgres, Redis
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.store import schema
from graph_migrator.tasks.cli.dev_workers import keep_running
from graph_migrator.tasks.serving import Console, Flower, Worker, environment

_FOLDER = click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".graph-migrator"),
    show_default=True,
    help="Where the database and the logs live.",
)


class _Refused(click.ClickException):
    exit_code = 3


class _Unavailable(click.ClickException):
    exit_code = 4


@contextmanager
def _only_one(folder: Path) -> Iterator[bool]:
    """Whether no other `dev` runs in the folder; none can begin meanwhile. The kernel forgets those that died."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


@click.command()
@_FOLDER
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 16), help="Worker processes.")
@click.option(
    "--concurrency", default=2, show_default=True, type=click.IntRange(1), help="Hops at a time in each."
)
@click.option("--reload", is_flag=True, help="Restart the workers when the code of a graph type changes.")
@click.option(
    "--console", "with_console", is_flag=True, help="Also the console, on a free port, without a login."
)
@click.option("--flower", "with_flower", is_flag=True, help="Also Flower, with a password made for this run.")
def dev(
    folder: Path, workers: int, concurrency: int, reload: bool, with_console: bool, with_flower: bool
) -> None:
    """Run Postgres, Redis and workers in the foreground, on loopback, until Ctrl-C.

    The database stays in the folder and is there again the next time. In another shell,
    `eval "$(graph-migrator env)"` points at what runs here. A worker that dies is started again. Workers run the code
    that they started with: restart `dev` after a change, or let --reload do it.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)  # what lies in it is private, each for itself
    known = ", ".join(graph_types()) or "none; name some in GRAPH_MIGRATOR_TYPES as module:attribute"
    stop = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda _number, _frame: stop.set())
    env_file = folder / "env"
    try:
        with ExitStack() as running:
            if not running.enter_context(_only_one(folder)):
                raise _Refused(
                    f"a `graph-migrator dev` runs in {folder} already. End it, or choose another --folder."
                )
            click.echo("Starting Postgres and Redis ...")
            postgres = running.enter_context(Postgres(folder / "postgres"))
            redis = running.enter_context(Redis(folder / "redis"))
            schema.upgrade(postgres.url)
            variables = environment(postgres, redis)
            running.callback(env_file.unlink, missing_ok=True)
            env_file.touch(0o600)
            env_file.write_text("".join(f"export {k}={shlex.quote(v)}\n" for k, v in variables.items()))
            started: list[Worker] = []
            for number in range(1, workers + 1):
                worker = Worker(
                    folder / f"worker-{number}", f"dev-{number}", variables, concurrency=concurrency
                )
                started.append(running.enter_context(worker))
                click.echo(f"{worker.name} is ready (pid {worker.pid}, log {worker.log})")
            if with_flower:
                flower = running.enter_context(Flower(folder / "flower", variables))
                click.echo(f"Flower: {flower.url}  (user {flower.user}, password {flower.password})")
            if with_console:
                console = running.enter_context(Console(folder / "console", variables))
                click.echo(f"Console: {console.url}")
            click.echo(f"Graph types: {known}")
            click.echo('Ready. In another shell: eval "$(graph-migrator env)". Ctrl-C stops everything.')
            keep_running(started, stop, reload=reload)
            click.echo("\nStopping; hops in progress finish first ...")
    except EmbeddedUnavailable as error:
        raise _Unavailable(str(error)) from error
    click.echo("Stopped. Nothing is left running.")


@click.command()
@_FOLDER
def env(folder: Path) -> None:
    """Print the `export` lines of the `graph-migrator dev` that runs in this folder."""
    found = folder / "env"
    with ExitStack() as looking:
        # One that was killed has left its variables behind.
        if not found.exists() or looking.enter_context(_only_one(folder)):
            shown = f"no `graph-migrator dev` runs in {folder}. Start one there, or name its --folder."
            raise _Unavailable(shown)
    click.echo(found.read_text(), nl=False)
