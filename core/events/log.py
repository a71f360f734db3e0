"""Events as log lines: ``key=value`` for people and grep, or one JSON object a line for machines."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

from graph_migrator.core.events.types import Event

_log = logging.getLogger("graph_migrator.events")
_LEVELS = {"hop_progressed": logging.DEBUG, "hop_quiet": logging.WARNING}
_STEPS: Final = frozenset({"migration_begun", "hop_started", "hop_succeeded"})
_in_pack: ContextVar[bool] = ContextVar("in_pack", default=False)
_PLAIN = re.compile(r'[^\s="\\]+')


def log_event(event: Event) -> None:
    """A subscriber: one line for each event, `hop_progressed` for debugging only, `hop_quiet` as a warning."""
    level = _LEVELS.get(event.name, logging.INFO)
    if event.name in _STEPS and _in_pack.get():
        level = logging.DEBUG
    if _log.isEnabledFor(level):
        _log.log(level, "%s", _KeyValues(event), extra={"event": event})


@contextmanager
def only_ends() -> Iterator[None]:
    """Log a migration that succeeds by one line, its end; its steps for debugging only.

    A pack moves hundreds of graphs a second, and eight lines a graph were a third of its process's time.
    """
    token = _in_pack.set(True)
    try:
        yield
    finally:
        _in_pack.reset(token)


class _KeyValues:
    """Formatted when a handler asks for it, so that JSON lines do not pay for it."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def __str__(self) -> str:
        return key_values({"event": self._event.name, **_plain(self._event)})


def key_values(values: dict[str, Any]) -> str:
    """``a=1 b="two words"``: values that are not one plain word are quoted as in JSON."""
    return " ".join(f"{key}={_quoted(value)}" for key, value in values.items())


def _quoted(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _plain(event: Event) -> dict[str, Any]:
    """An event's payload as JSON values, without its time: a log line has its own."""
    return {
        key: value if isinstance(value, str | int | float) else str(value)
        for key, value in event.fields().items()
        if key != "at"
    }


class JsonLines(logging.Formatter):
    """One JSON object a line: ``time level logger message``, and an event's name and payload beside them."""

    def __init__(self) -> None:
        super().__init__()

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
        }
        event = getattr(record, "event", None)
        if isinstance(event, Event):
            line |= {"event": event.name, **_plain(event)}
        else:
            line["message"] = record.getMessage()
            task_id = getattr(record, "task_id", None)
            if task_id is not None:
                line["task_id"] = task_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
