"""Redelivery is bounded by what the queue holds already."""

from __future__ import annotations

import pytest

from graph_migrator.tasks import queue_room
from graph_migrator.tasks.queue_room import AT_LEAST, FULL, QueueRoom, room


@pytest.mark.parametrize(
    ("queued", "most"),
    [(0, FULL), (None, FULL), (500, FULL - 500), (FULL, AT_LEAST), (1_000_000, AT_LEAST)],
)
def test_a_full_queue_is_left_alone_and_an_empty_one_is_filled(queued: int | None, most: int) -> None:
    assert room(queued) == most


def test_what_was_sent_since_the_last_look_takes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(queue_room.time, "monotonic", lambda: now)
    lengths = [FULL - 100, 1_000_000]
    found = QueueRoom(lambda: lengths.pop(0))
    assert found.left() == 100
    found.sent(60)
    assert found.left() == 40
    found.sent(60)
    assert found.left() == 0
    now = 1.5
    assert found.left() == AT_LEAST


def test_little_is_sent_to_a_broker_that_does_not_answer() -> None:
    def away() -> int:
        raise OSError("away")

    assert QueueRoom(away).left() == AT_LEAST
