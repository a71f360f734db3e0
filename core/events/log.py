"""Events as log lines: ``key=value`` for people and grep, or one JSON object a line for machines."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

from graph_migrator.core.events.types import Event

_log = logging.getLogger("graph_migrator.events")
_LEVELS = {"hop_progressed": logging.DEBUG, "hop_quiet": logging.WARNING}
_PLAIN = re.compile(r'[^\s="\\]+')


def log_event(event: Event) -> None:
    """A subscriber: one line for each event, `hop_progressed` for debugging only, `hop_quiet` as a warning."""
    level = _LEVELS.get(event.name, logging.INFO)
    if _log.isEnabledFor(level):
        _log.log(level, "%s", _KeyValues(event), extra={"event": event})


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
