"""`doctor`: a deployment, checked end to end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import click
from rich.markup import escape

from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection import doctor as checks
from graph_migrator.core.inspection.diagnosis import Fleet
from graph_migrator.core.inspection.doctor import Finding, Level
from graph_migrator.core.inspection.quantities import count
from graph_migrator.core.settings import settings
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.tasks.answers import backend_name, keeps_results
from graph_migrator.tasks.celery import app
from graph_migrator.tasks.cli.errors import as_ours
from graph_migrator.tasks.cli.output import console, json_option, print_json, table, without_password
from graph_migrator.tasks.fleet import code_digests, look_at_fleet
from graph_migrator.tasks.runtime import engine

_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.WRONG: "red"}
_PATIENCE = 5.0


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check the deployment end to end: database, guard, broker, results, workers. Exit code 1: something is wrong.

    Each finding that is not well comes with its remedy.
    """
    found = list(examine())
    if as_json:
        print_json(found)
    else:
        rows = [
            (f"[{_COLOURS[f.level]}]{f.level}[/]", f.check, escape(f.found), escape(f.remedy or ""))
            for f in found
        ]
        console().print(table(None, ("", "CHECK", "FOUND", "REMEDY"), rows))
    if any(finding.level is Level.WRONG for finding in found):
        raise click.exceptions.Exit(1)


def examine() -> Iterator[Finding]:
    """Every check of the deployment, as this process sees it."""
    types: dict[str, GraphType] = {}
    try:
        types = graph_types()
    except GraphMigratorError as error:
        yield _wrong("types", str(error), "Mend the type, or what GRAPH_MIGRATOR_TYPES names.")
    yield from _of_the_database(types)
    fleet = look_at_fleet()
    yield _of_the_broker(fleet)
    yield _of_the_results()
    if fleet.broker_error is None:
        yield from _of_the_workers(fleet, types)


def _of_the_database(types: dict[str, GraphType]) -> Iterator[Finding]:
    where = without_password(settings().database_url)
    try:
        with engine().connect():
            yield Finding(check="database", level=Level.OK, found=f"{where} answers")
        yield from checks.examine(engine(), types)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        shown = as_ours(error)
        found = str(shown) if shown is not None else f"{where}: {safe_message(error)}"
        yield _wrong("database", found, "Check DATABASE_URL, and that this role may read our tables.")


def _of_the_broker(fleet: Fleet) -> Finding:
    where = without_password(settings().broker_url)
    if fleet.broker_error:
        return _wrong("broker", f"{where} does not answer: {fleet.broker_error}", "Check CELERY_BROKER_URL.")
    waiting = (
        f", {count(fleet.queued, 'message')} in {settings().queue!r}" if fleet.queued is not None else ""
    )
    return Finding(check="broker", level=Level.OK, found=f"{where} answers{waiting}")


def _of_the_results() -> Finding:
    where = without_password(settings().result_backend)
    remedy = "Check CELERY_RESULT_BACKEND; without it, callers of .get() wait for ever."
    if not keeps_results(app.backend):
        found = (
            f"{backend_name()} cannot answer callers: .get() of a migrate_graph call raises ResultsNotKept"
        )
        instead = (
            "Wait with graph_migrator.wait_for or `migrate --wait`, which read Postgres; or set "
            "CELERY_RESULT_BACKEND to redis:// or db+postgresql://."
        )
        return Finding(check="results", level=Level.WARNING, found=found, remedy=instead)
    get = getattr(app.backend, "get", None)
    if get is None or "://" not in settings().result_backend:
        shown = f"{where}: this kind cannot be asked without a result to read"
        return Finding(check="results", level=Level.WARNING, found=shown, remedy=remedy)
    outcome: list[Any] = []

    def ask() -> None:
        try:
            get("graph-migrator-doctor")
            outcome.append(None)
        except Exception as error:  # noqa: BLE001 - whatever the backend's driver raises
            outcome.append(error)

    # A backend that swallows packets would hold us for as long as its driver likes.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    if not outcome:
        return _wrong("results", f"{where} has not answered within {_PATIENCE:g} s", remedy)
    if outcome[0] is not None:
        return _wrong("results", f"{where} does not answer: {type(outcome[0]).__name__}", remedy)
    return Finding(check="results", level=Level.OK, found=f"{where} answers")


def _of_the_workers(fleet: Fleet, types: dict[str, GraphType]) -> Iterator[Finding]:
    if not fleet.workers:
        also = f"; {', '.join(fleet.elsewhere)} serve other queues" if fleet.elsewhere else ""
        remedy = f"Start one: `celery -A graph_migrator worker -Q {settings().queue}`."
        yield _wrong("workers", f"none takes messages from {settings().queue!r}{also}", remedy)
        return
    yield Finding(check="workers", level=Level.OK, found=", ".join(sorted(fleet.workers)))
    for worker, why in sorted(fleet.broken.items()):
        found = f"{worker} cannot load its graph types and requeues every message: {why}"
        yield _wrong(
            "worker-types", found, "Mend the type, or GRAPH_MIGRATOR_TYPES, and restart that worker."
        )
    here = code_digests() if types else {}
    for name in sorted({name for served in fleet.workers.values() for name in served} | set(here)):
        yield _of_a_type(name, here.get(name), fleet)


def _of_a_type(name: str, here: str | None, fleet: Fleet) -> Finding:
    served = {worker: types[name] for worker, types in fleet.workers.items() if name in types}
    check = "worker-types"
    if not served:
        found = f"{name!r} is known here, and no worker knows it"
        return _wrong(check, found, "Set GRAPH_MIGRATOR_TYPES for the workers as it is here.")
    missing = sorted(set(fleet.workers) - set(served))
    if missing:
        found = f"{name!r} is not known to {', '.join(missing)}; they requeue its hops"
        return Finding(
            check=check, level=Level.WARNING, found=found, remedy="Give all workers the same types."
        )
    if len(set(served.values()) | ({here} if here else set())) > 1:
        shown = ", ".join(f"{worker} {digest}" for worker, digest in sorted(served.items()))
        found = f"{name!r} differs: {shown}{f', here {here}' if here else ''}"
        return Finding(check=check, level=Level.WARNING, found=found, remedy="Finish the deploy.")
    return Finding(check=check, level=Level.OK, found=f"{name!r}, the same code everywhere")


def _wrong(check: str, found: str, remedy: str) -> Finding:
    return Finding(check=check, level=Level.WRONG, found=found, remedy=remedy)
