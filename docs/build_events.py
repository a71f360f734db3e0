"""Write docs/events.md from `core.events.types`: ``python docs/build_events.py``. A test holds them equal."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any, get_args, get_type_hints

from graph_migrator.core.events import types as events

PAGE = Path(__file__).with_name("events.md")

_HEAD = """\
# Events

<!-- Generated from core/events.py by docs/build_events.py. -->

The core emits named events about migrations and rollouts, each after the commit that made it true, in the
process that made it:

```python
from graph_migrator.core.events import types as events

unsubscribe = events.subscribe(lambda event: print(event.name, event.fields()))
```

A worker logs them (logger `graph_migrator.events`), as `key=value` or, with
`GRAPH_MIGRATOR_LOG_FORMAT=json`, as one JSON object a line. Of a graph that a pack moves without trouble it
logs the end alone: `migration_begun`, `hop_started` and `hop_succeeded` have level DEBUG there. Celery's own lines
`received`, and `succeeded` of a chain's tasks, say less than these and cost as much: a worker writes them with
`--loglevel DEBUG` only. An event is a notification, not the record: a process that dies between its commit and
the event says nothing. The record is in Postgres.

A field that is None is left out. Every event has `at`.

"""


def page() -> str:
    """The whole page."""
    everywhere = [each.name for each in dataclasses.fields(events.Event)]
    parts = [_HEAD + _table(events.Event, everywhere)]
    for base, whose in ((events.MigrationEvent, "a migration"), (events.RolloutEvent, "a rollout")):
        own = [each.name for each in dataclasses.fields(base) if each.name not in everywhere]
        parts.append(f"Those of {whose} have these besides.\n\n{_table(base, own)}")
    for event in events.ALL:
        base = events.RolloutEvent if issubclass(event, events.RolloutEvent) else events.MigrationEvent
        common = [each.name for each in dataclasses.fields(base)]
        own = [each.name for each in dataclasses.fields(event) if each.name not in common]
        parts.append(f"## {event.name}\n\n{inspect.getdoc(event)}\n\n{_table(event, own)}")
    return "\n".join(parts)


def _table(event: type[events.Event], names: list[str]) -> str:
    if not names:
        return ""
    hints = get_type_hints(event, include_extras=True)
    rows = [f"| `{name}` | {_type_of(hints[name])} | {get_args(hints[name])[1]} |\n" for name in names]
    return "| field | type | meaning |\n|---|---|---|\n" + "".join(rows)


def _type_of(hint: Any) -> str:
    bare = get_args(hint)[0]
    return " or ".join("None" if each is type(None) else each.__name__ for each in get_args(bare) or (bare,))


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
