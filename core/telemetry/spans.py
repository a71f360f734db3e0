"""Spans for what happens to migrations, made from the events: a hop is a span, and so is each of its batches.

The spans of calls and messages are those of `opentelemetry-instrumentation-celery`; ours lie inside of them. Only
OpenTelemetry's API is used here: without an SDK in the process nothing is recorded, and each call costs microseconds.
Attributes are names and ids of graphs, never their data.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode

from graph_migrator.core.events.types import (
    Event,
    HopEvent,
    HopFailed,
    HopLost,
    HopProgressed,
    HopStarted,
    HopSucceeded,
    MigrationEvent,
    MigrationFinished,
    MigrationPaused,
    RolloutEvent,
    ShardDone,
)

_tracer: Final = trace.get_tracer("graph_migrator")


class Spans:
    """A subscriber to events. A thread runs one hop at a time, so each thread has one open hop at most."""

    def __init__(self) -> None:
        self._open = threading.local()

    def __call__(self, event: Event) -> None:
        """Start, end or annotate the span that the event is about."""
        match event:
            case HopStarted():
                self._start(event)
            case HopProgressed():
                self._batch(event)
            case HopSucceeded():
                self._set("graph_migrator.rows_changed", event.rows_changed)
                self._set("graph_migrator.hop.skipped", event.skipped)
                self._end()
            case ShardDone():
                self._set("graph_migrator.rows_changed", event.rows_changed)
                self._end()
            case HopFailed():
                self._fail(event)
            case MigrationPaused() | MigrationFinished():
                self._end()  # a hop that stopped at a boundary
                trace.get_current_span().add_event(event.name, attributes_of(event))
            case HopLost():
                values = attributes_of(event) | {"graph_migrator.attempt.id": event.attempt_id}
                trace.get_current_span().add_event(event.name, values)
            case _:
                span = trace.get_current_span()
                if span.is_recording():
                    span.set_attributes(attributes_of(event))
                    span.add_event(event.name)

    @property
    def _span(self) -> Span | None:
        found: Span | None = getattr(self._open, "span", None)
        return found

    def _start(self, event: HopStarted) -> None:
        self._end()  # of an attempt whose session was lost: no event ended it
        trace.get_current_span().set_attributes(attributes_of(event))
        span = _tracer.start_span(f"hop {event.hop}", attributes=attributes_of(event))
        span.set_attribute("graph_migrator.attempt", event.attempt)
        span.set_attribute("graph_migrator.dispatch", event.dispatch)
        self._open.span = span
        self._open.since = time.time_ns()

    def _batch(self, event: HopProgressed) -> None:
        """A batch has just been committed; it began where the one before it ended."""
        span = self._span
        if span is None or not span.is_recording():
            return
        now = time.time_ns()
        batch = _tracer.start_span(
            f"batch {event.hop}",
            context=trace.set_span_in_context(span),
            start_time=self._open.since,
            attributes=attributes_of(event)
            | {"graph_migrator.rows_changed": event.rows_changed, "graph_migrator.done": event.done},
        )
        batch.end(now)
        self._open.since = now

    def _fail(self, event: HopFailed) -> None:
        self._set("error.type", event.error_type)
        if event.retry_in is not None:
            self._set("graph_migrator.retry_in", event.retry_in)
        if self._span is not None:
            self._span.set_status(Status(StatusCode.ERROR, event.error_message))
        self._end()

    def _set(self, name: str, value: str | int | float | bool | None) -> None:
        if self._span is not None and value is not None:
            self._span.set_attribute(name, value)

    def _end(self) -> None:
        if self._span is not None:
            self._span.end()
            self._open.span = None


def attributes_of(event: Event) -> dict[str, str | int]:
    """Which graph, migration and hop, or which rollout an event is about."""
    found: dict[str, str | int] = {}
    if isinstance(event, RolloutEvent):
        found |= {
            "graph_migrator.rollout.id": str(event.rollout_id),
            "graph_migrator.graph.type": event.graph_type,
        }
    if isinstance(event, MigrationEvent):
        found |= {
            "graph_migrator.graph.id": str(event.graph_id),
            "graph_migrator.graph.slug": event.graph,
            "graph_migrator.graph.type": event.graph_type,
            "graph_migrator.migration.id": str(event.migration_id),
        }
    if isinstance(event, HopEvent):
        found |= {
            "graph_migrator.hop.name": event.hop,
            "graph_migrator.hop.from_version": event.from_version,
            "graph_migrator.hop.to_version": event.to_version,
            "graph_migrator.attempt.id": event.attempt_id,
        }
        if event.shard is not None:
            found["graph_migrator.hop.shard"] = event.shard
    return found
