"""The graph types of the tests with real workers, in a worker whose spans go to a file, one JSON object a line."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from tests.acceptance.types_for_tests import ALL, control_folder

__all__ = ["ALL"]


def one_line(span: ReadableSpan) -> str:
    return f"{span.to_json(indent=None)}\n"


# Before the pool is forked; each process appends whole lines to the same file.
provider = TracerProvider()
spans = (control_folder() / "spans").open("a", buffering=1)
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=spans, formatter=one_line)))
trace.set_tracer_provider(provider)
CeleryInstrumentor().instrument()
