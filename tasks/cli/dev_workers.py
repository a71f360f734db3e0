"""The workers of `graph-migrator dev`: started again when they die, and with --reload when their code changes."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Final

import click

import graph_migrator
from graph_migrator.core.embedded import EmbeddedUnavailable
from graph_migrator.tasks.serving import Worker

_LOOK_SECONDS: Final = 0.3
_PAUSE_SECONDS: Final = 5.0
"""Before a worker that did not start is tried again."""


def keep_running(workers: list[Worker], stop: threading.Event, *, reload: bool) -> None:
    """Replace workers that die until `stop` is set. From the main thread: a worker ends with its parent's thread.

    Args:
        workers: They run.
        stop: Set by a signal.
        reload: Also restart all of them when a file changes that their graph types were loaded from.
    """
    seen = _changed_at() if reload else {}
    while not stop.wait(_LOOK_SECONDS):
        for worker in workers:
            if worker.exit_code is not None:
                click.echo(f"{worker.name} died ({_how(worker.exit_code)}); starting another ...")
                _start(worker, stop)
        if reload and (now := _changed_at()) != seen:
            changed = sorted(
                path.name for path in now.keys() | seen.keys() if now.get(path) != seen.get(path)
            )
            click.echo(
                f"{', '.join(changed)} changed; restarting the workers when their hops are finished ..."
            )
            seen = now
            for worker in workers:
                worker.stop()
                _start(worker, stop)


def _start(worker: Worker, stop: threading.Event) -> None:
    """Start it; where its code does not load, say so and try again later: the next change may correct it."""
    while True:
        try:
            worker.replace()
        except EmbeddedUnavailable as error:
            click.echo(
                f"{worker.name} did not start; the next try is in {_PAUSE_SECONDS:g} s. {error}", err=True
            )
            if stop.wait(_PAUSE_SECONDS):
                return
        else:
            click.echo(f"{worker.name} is ready (pid {worker.pid}, log {worker.log})")
            return


def _how(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


def _changed_at() -> dict[Path, float]:
    """When each file of the user's own code changed, as far as the graph types import it."""
    ours = Path(graph_migrator.__file__).resolve().parent
    found: dict[Path, float] = {}
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if not name or "site-packages" in name or name.startswith((sys.base_prefix, sys.prefix)):
            continue
        path = Path(name).resolve()
        if ours in path.parents or module.__name__.split(".")[0] == "graph_migrator":
            continue
        try:
            found[path] = path.stat().st_mtime
        except OSError:
            continue  # being written, or removed
    return found
