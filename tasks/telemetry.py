"""Traces across workers: ours begin where `opentelemetry-instrumentation-celery` has brought the caller's context.

What recovery sends has no context of its own: the worker that had it is dead. So the context in which a migration began
is kept in Postgres, and recovery goes on in it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.signals import worker_init
from sqlalchemy import text

from graph_migrator.core.events import types as events
from graph_migrator.core.execution.model import Dispatch
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.tasks.runtime import engine

_log = logging.getLogger("graph_migrator.telemetry")

try:
    from opentelemetry import trace
    from opentelemetry.propagate import extract, inject

    from graph_migrator.core.telemetry.spans import Spans
except ImportError:  # without the extra `otel`
    IS_INSTALLED = False
else:
    IS_INSTALLED = True

_KEEP = """
INSERT INTO graph_migrator.traces (migration_id, context) VALUES (:migration, CAST(:context AS jsonb))
ON CONFLICT (migration_id) DO NOTHING
"""
_READ = "SELECT context FROM graph_migrator.traces WHERE migration_id = :migration"


@worker_init.connect
def _listen(**_: object) -> None:
    """In the main process, before it forks: its children listen too."""
    if IS_INSTALLED:
        events.subscribe(Spans())
        events.subscribe(keep_context)


def keep_context(event: events.Event) -> None:
    """A subscriber: keep the trace that a migration began in, for recovery."""
    if isinstance(event, events.MigrationBegun) and trace.get_current_span().is_recording():
        carrier: dict[str, str] = {}
        inject(carrier)
        with engine().begin() as connection:
            connection.execute(text(_KEEP), {"migration": event.migration_id, "context": json.dumps(carrier)})


@contextmanager
def recovering(dispatch: Dispatch) -> Iterator[None]:
    """Around the sending of a recovered chain: a span of its own in the trace of the call, linked to it."""
    context = _context_of(dispatch) if IS_INSTALLED else None
    if context is None:
        yield
        return
    call = trace.get_current_span(context).get_span_context()
    with trace.get_tracer("graph_migrator").start_as_current_span(
        "recover migration",
        context=context,
        links=[trace.Link(call)],
        attributes={
            "graph_migrator.graph.slug": dispatch.graph,
            "graph_migrator.graph.type": dispatch.graph_type,
            "graph_migrator.migration.id": str(dispatch.migration_id),
            "graph_migrator.dispatch": dispatch.number,
        },
    ):
        yield


def link_to_call(dispatch: Dispatch) -> None:
    """An operator's verb is a call with a trace of its own: link its span to the call that began the migration."""
    if not IS_INSTALLED or not trace.get_current_span().is_recording():
        return
    context = _context_of(dispatch)
    if context is not None:
        trace.get_current_span().add_link(trace.get_current_span(context).get_span_context())


def _context_of(dispatch: Dispatch) -> Any:
    """The context that a migration began in; None where it was not traced."""
    try:
        with engine().connect() as connection:
            kept = connection.execute(text(_READ), {"migration": dispatch.migration_id}).scalar()
    except Exception as error:  # noqa: BLE001 - a trace must not keep a chain from being sent
        _log.warning("the trace of %s was not read: %s", dispatch.graph, safe_message(error))
        return None
    return extract(kept) if kept else None
