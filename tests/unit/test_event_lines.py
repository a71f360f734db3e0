"""The events' reference is what the code says, and an event costs next to nothing."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import runpy
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from graph_migrator.core.events import types as events
from graph_migrator.core.events.log import JsonLines, key_values, log_event, only_ends

ROOT = Path(__file__).resolve().parents[2]
ID = UUID("11111111-2222-3333-4444-555555555555")
WHOSE: dict[str, Any] = {"migration_id": ID, "graph_id": ID, "graph": "g", "graph_type": "t"}


def a_loss() -> events.HopLost:
    return events.HopLost(**WHOSE, attempt_id=7, found_by="recovery")


def test_the_reference_is_what_the_code_says() -> None:
    written = (ROOT / "docs" / "events.md").read_text("utf-8")
    page = runpy.run_path(str(ROOT / "docs" / "build_events.py"))["page"]
    assert written == page(), "docs/events.md is stale: python docs/build_events.py"


def test_every_event_is_listed_named_and_explained() -> None:
    def below(cls: type[events.Event]) -> set[type[events.Event]]:
        return {cls}.union(*(below(each) for each in cls.__subclasses__()))

    # `slots=True` makes each class twice; the module holds the one that counts.
    named = {each.__name__ for each in below(events.Event) if each.name}
    assert named == {each.__name__ for each in events.ALL}
    for event in events.ALL:
        assert event.name == re.sub(r"(?<!^)(?=[A-Z])", "_", event.__name__).lower()
        assert event.__doc__


def test_an_event_is_frozen_and_leaves_out_what_is_none() -> None:
    begun = events.MigrationBegun(**WHOSE, from_version=1, to_version=2, hops=1)
    assert list(begun.fields()) == [
        "at", "migration_id", "graph_id", "graph", "graph_type", "from_version", "to_version", "hops",
    ]  # fmt: skip
    with pytest.raises(dataclasses.FrozenInstanceError):
        begun.hops = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"a": 1, "b": "two"}, "a=1 b=two"),
        ({"a": "two words", "b": 'a "quote"'}, 'a="two words" b="a \\"quote\\""'),
        ({"a": "", "b": "x=y", "c": "line\nbreak"}, 'a="" b="x=y" c="line\\nbreak"'),
        ({"a": True, "b": 1.5, "c": ID}, f"a=true b=1.5 c={ID}"),
    ],
)
def test_key_values_can_be_read_back(values: dict[str, Any], line: str) -> None:
    assert key_values(values) == line


def test_an_event_is_one_line_of_key_values(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "graph_migrator.events"):
        log_event(a_loss())
    assert caplog.messages == [
        f"event=hop_lost migration_id={ID} graph_id={ID} graph=g graph_type=t attempt_id=7 found_by=recovery"
    ]


def test_a_pack_logs_the_ends_of_its_migrations_and_whatever_goes_wrong(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun = events.MigrationBegun(**WHOSE, from_version=1, to_version=2, hops=1)
    ended = events.MigrationFinished(
        **WHOSE,
        status="succeeded",
        from_version=1,
        to_version=2,
        version=2,
        hops=1,
        attempts=1,
        rows_changed=3,
        seconds=0.1,
    )
    with caplog.at_level(logging.INFO, "graph_migrator.events"):
        with only_ends():
            for event in (begun, a_loss(), ended):
                log_event(event)
        log_event(begun)
    names = [message.split()[0].removeprefix("event=") for message in caplog.messages]
    assert names == ["hop_lost", "migration_finished", "migration_begun"]


def test_an_event_is_one_line_of_json(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "graph_migrator.events"):
        log_event(a_loss())
    line = json.loads(JsonLines().format(caplog.records[0]))
    assert line.pop("time").endswith("+00:00")
    assert line.pop("process")
    assert line == {
        "level": "info",
        "logger": "graph_migrator.events",
        "event": "hop_lost",
        "migration_id": str(ID),
        "graph_id": str(ID),
        "graph": "g",
        "graph_type": "t",
        "attempt_id": 7,
        "found_by": "recovery",
    }


def test_another_line_of_the_log_is_json_too(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("elsewhere").exception("broken: %s", "x")
    text = JsonLines().format(caplog.records[0])
    assert "\n" not in text
    assert json.loads(text)["message"] == "broken: x"
    assert "ValueError: two" in json.loads(text)["exception"]


def test_progress_is_for_debugging_only(caplog: pytest.LogCaptureFixture) -> None:
    progress = events.HopProgressed(
        **WHOSE, hop="h", from_version=1, to_version=2, attempt_id=1, done=1, total=2, rows_changed=1
    )
    with caplog.at_level(logging.INFO, "graph_migrator.events"):
        log_event(progress)
    assert caplog.messages == []
