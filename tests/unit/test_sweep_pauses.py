"""When the next sweep comes."""

from __future__ import annotations

import pytest

from graph_migrator.tasks.recover import _times


@pytest.mark.parametrize(
    ("swept", "least", "most"),
    [
        ({"sent": 0, "dispatched": 0}, 1.0, 1.0),
        ({"sent": 300, "dispatched": 0}, 1.0, 1.0),  # redeliveries fill the queue, and are not hurried
        ({"sent": 4, "dispatched": 4}, 0.2, 0.2),
        ({}, 1.0, 3.0),  # another worker sweeps
    ],
)
def test_a_sweep_that_sent_graphs_of_a_rollout_is_followed_soon(
    swept: dict[str, int], least: float, most: float
) -> None:
    assert all(least <= _times(swept) <= most for _ in range(20))
