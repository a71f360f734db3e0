"""What the health signals say, and what pace comes of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from graph_migrator.core.rollouts.health import (
    GOOD_AFTER,
    SIGNALS,
    Level,
    Reading,
    SignalState,
    follow,
    level_of,
    limits_of,
    p95,
    worst,
)
from graph_migrator.core.rollouts.pace import next_pace

T0 = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = (10.0, 50.0)


def said(values: list[float | None], step: float = 5) -> list[Level]:
    """What a signal says after each of these readings."""
    state: SignalState | None = None
    levels = []
    for place, value in enumerate(values):
        state = follow(state, "s", Reading(value), LIMITS, T0 + timedelta(seconds=step * place))
        levels.append(state.level)
    return levels


@pytest.mark.parametrize(
    ("value", "limits", "level"),
    [
        (None, LIMITS, Level.UNKNOWN),
        (9.9, LIMITS, Level.GOOD),
        (10, LIMITS, Level.SLOW),
        (50, LIMITS, Level.STOP),
        (1e9, (1, None), Level.SLOW),
        (1e9, (None, None), Level.GOOD),
    ],
)
def test_a_value_at_its_limit_has_passed_it(
    value: float | None, limits: tuple[float | None, float | None], level: Level
) -> None:
    assert level_of(value, *limits) is level


def test_a_signal_is_bad_at_once_and_good_after_thirty_seconds() -> None:
    assert said([0, 60, 0, 0, 0, 0, 0, 0, 0]) == [Level.GOOD] + [Level.STOP] * 7 + [Level.GOOD]
    assert 7 * 5 > GOOD_AFTER >= 6 * 5


def test_a_swing_around_a_limit_begins_the_thirty_seconds_again() -> None:
    assert set(said([20] + [0, 0, 0, 20] * 6)) == {Level.SLOW}


def test_a_stop_that_is_slow_by_now_becomes_slow_after_thirty_seconds() -> None:
    assert said([60, *[20] * 8])[-2:] == [Level.SLOW, Level.SLOW]
    assert said([60, *[20] * 8])[5] is Level.STOP


def test_what_cannot_be_measured_any_more_does_not_end_a_stop_at_once() -> None:
    levels = said([60, *[None] * 8])
    assert levels[5] is Level.STOP
    assert levels[-1] is Level.UNKNOWN


def test_what_can_be_measured_at_last_is_good_at_once() -> None:
    assert said([None, 0]) == [Level.UNKNOWN, Level.GOOD]


def test_a_bad_signal_says_its_value_and_limit_and_why_it_still_counts() -> None:
    bad = follow(None, "s", Reading(60), LIMITS, T0)
    assert bad.in_words() == "s is 60, the limit is 50"
    unread = follow(bad, "s", Reading(None), LIMITS, T0 + timedelta(seconds=5))
    assert unread.in_words() == "s was over its limit and cannot be read now"
    better = follow(bad, "s", Reading(3), LIMITS, T0 + timedelta(seconds=5))
    assert better.in_words() == "s was over its limit less than 30 s ago, and is 3 now"


def test_unknown_is_no_reason_to_slow_down() -> None:
    (unknown,) = [follow(None, "s", Reading(None, "no right"), LIMITS, T0)]
    assert worst([unknown]) is None
    assert unknown.detail == "no right"


def test_the_worst_signal_is_the_one_that_stops_then_the_one_that_was_bad_first() -> None:
    late = follow(None, "late", Reading(20), LIMITS, T0 + timedelta(seconds=9))
    early = follow(None, "early", Reading(20), LIMITS, T0)
    stop = follow(None, "stop", Reading(60), LIMITS, T0 + timedelta(seconds=20))
    assert worst([late, early]) is early
    assert worst([late, early, stop]) is stop
    assert (stop.limit, early.limit) == (50, 10)


def test_an_operators_limits_replace_the_defaults() -> None:
    signal = next(each for each in SIGNALS if each.name == "lock_waiters")
    assert limits_of(signal, {}) == (10, 50)
    assert limits_of(signal, {"lock_waiters": (20, None)}) == (20, None)


def test_the_pace_halves_and_comes_back_by_a_tenth() -> None:
    paces = [32]
    for level in [Level.SLOW] * 6 + [Level.UNKNOWN] + [Level.GOOD] * 12:
        paces.append(next_pace(paces[-1], 32, level))
    assert paces == [32, 16, 8, 4, 2, 1, 1, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 32, 32]


def test_a_lower_limit_lowers_the_pace() -> None:
    assert next_pace(32, 4, Level.GOOD) == 4


def test_p95_is_by_nearest_rank() -> None:
    assert p95([]) is None
    assert p95([3]) == 3
    assert p95(range(1, 101)) == 96


def test_every_signal_says_why_its_limits_are_what_they_are() -> None:
    assert len({each.name for each in SIGNALS}) == len(SIGNALS)
    assert all(each.meaning and each.reason for each in SIGNALS)
