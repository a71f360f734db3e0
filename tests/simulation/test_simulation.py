"""Some interleavings of crashes, lost messages, operators and deploys; `make simulate` and CI run thousands."""

from __future__ import annotations

import pytest

from graph_migrator.core.execution.failpoints import POINTS
from tests.simulation.explorer import run
from tests.simulation.runs import explore
from tests.simulation.world import Platform

RUNS = 200


@pytest.mark.timeout(400)
def test_whatever_happens_nothing_is_lost_done_twice_or_left_unexplained(platform: Platform) -> None:
    tally = explore(platform, [f"test:{i}" for i in range(RUNS)])
    assert tally.failure is None, f"\n{tally.failure}"
    assert tally.runs == RUNS
    # That each point is also struck, the thousands of runs in CI assert (--every-point).
    assert not [point for point in POINTS if not tally.points[point]]


def test_a_seed_gives_the_same_run_again(platform: Platform) -> None:
    with platform.running():
        for number in range(30):
            once, twice = run(platform, f"twice:{number}"), run(platform, f"twice:{number}")
            assert once.trace == twice.trace
            assert once.choices == twice.choices
