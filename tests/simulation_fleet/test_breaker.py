"""Canaries and breaker stop a fault in time; ``make simulate`` plays a hundred fleets each way."""

from __future__ import annotations

from sqlalchemy import Engine

from graph_migrator.core.store.session import Executors
from tests.simulation_fleet.breaker import MAX_FAILURES, caught_by_a_canary, failed_without_canaries


def test_without_canaries_no_more_fail_than_the_limit_and_what_was_in_flight() -> None:
    found = [failed_without_canaries(seed) for seed in range(30)]
    assert all(MAX_FAILURES <= failed <= MAX_FAILURES - 1 + in_hand for failed, in_hand in found), found
    assert any(failed > MAX_FAILURES for failed, _ in found)  # some were in flight


def test_a_canary_meets_the_fault_before_the_first_wave(engine: Engine, executors: Executors) -> None:
    assert caught_by_a_canary(engine, executors, 10)  # of ten shapes, the odd one the rarest
