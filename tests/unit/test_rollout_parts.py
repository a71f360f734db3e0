"""Stages, canaries, error groups, windows, estimates, knobs and the tables of statuses."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from statistics import fmean
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from graph_migrator.core.rollouts.canaries import Candidate, choose_canaries
from graph_migrator.core.rollouts.error_groups import error_group, innermost_line, normalised
from graph_migrator.core.rollouts.estimate import estimate, size_class
from graph_migrator.core.rollouts.packing import FIRST_SIZE, group_size, share
from graph_migrator.core.rollouts.stages import cut_stages
from graph_migrator.core.rollouts.statuses import (
    LIVE,
    MEMBER_EDGES,
    ROLLOUT_EDGES,
    HoldReason,
    MemberStatus,
    RolloutStatus,
    StageKind,
    pairs,
)
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.rollouts.window import Window

# ── stages ──────────────────────────────────────────────────────────────────────────────────────────


def test_waves_are_cumulative() -> None:
    stages = cut_stages(10, 1_000, (1, 10, 50, 100))
    assert [(s.number, s.kind, s.size) for s in stages] == [
        (1, StageKind.CANARY, 10),
        (2, StageKind.WAVE, 10),
        (3, StageKind.WAVE, 90),
        (4, StageKind.WAVE, 400),
        (5, StageKind.WAVE, 500),
    ]


@given(
    st.integers(0, 50),
    st.integers(0, 100_000),
    st.lists(st.floats(0.01, 99.9), max_size=6, unique=True).map(lambda w: (*sorted(w), 100.0)),
)
def test_every_graph_is_in_one_stage_and_no_stage_is_empty(
    canaries: int, others: int, waves: tuple[float, ...]
) -> None:
    stages = cut_stages(canaries, others, waves)
    assert sum(stage.size for stage in stages) == canaries + others
    assert all(stage.size > 0 for stage in stages)
    assert [stage.number for stage in stages] == list(range(1, len(stages) + 1))


# ── canaries ────────────────────────────────────────────────────────────────────────────────────────


def candidate(number: int, version: int = 1, rows: int | None = 10, shape: str | None = "A") -> Candidate:
    return Candidate(UUID(int=number), f"g{number:05}", version, rows, shape)


def test_unlike_graphs_are_met_first() -> None:
    graphs = [candidate(n) for n in range(100)]
    graphs += [candidate(200, version=2), candidate(201, rows=1), candidate(202, rows=9_999)]
    graphs += [candidate(203, shape="A,B"), candidate(204, shape="A,B"), candidate(205, shape="C")]
    found = choose_canaries(graphs, 10)
    slugs = [each.candidate.slug for each in found]
    assert len(slugs) == len(set(slugs)) == 10
    assert {"g00200", "g00201", "g00202", "g00203", "g00205"} <= set(slugs)
    assert slugs.index("g00203") < slugs.index("g00205")
    assert "9,999 rows" in next(each.why for each in found if each.candidate.slug == "g00202")


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.none() | st.integers(0, 99), st.none() | st.sampled_from("ABC"))
    ),
    st.integers(0, 12),
)
def test_canaries_are_distinct_and_as_many_as_there_can_be(
    graphs: list[tuple[int, int | None, str | None]], most: int
) -> None:
    candidates = [candidate(number, *values) for number, values in enumerate(graphs)]
    found = choose_canaries(candidates, most)
    assert len({each.candidate.graph_id for each in found}) == len(found) == min(most, len(graphs))
    assert choose_canaries(candidates[::-1], most) == found


def test_a_shape_that_a_chosen_graph_has_takes_no_second_place() -> None:
    graphs = [candidate(n, rows=n, shape="ABC"[n % 3]) for n in range(9)]
    graphs.append(candidate(9, rows=4, shape="D"))
    found = choose_canaries(graphs, 4)  # smallest A, largest C, median B
    assert [each.candidate.shape for each in found] == ["A", "C", "B", "D"]


# ── error groups ────────────────────────────────────────────────────────────────────────────────────

TRACEBACK = """Traceback (most recent call last):
  File "/venv/lib/python3.12/site-packages/graph_migrator/core/execution/apply_hop.py", line 10, in apply
  File "/app/core/people.py", line 31, in split_names
  File "/app/core/names.py", line 7, in split
  File "/usr/lib/python3.12/json/decoder.py", line 337, in decode
ValueError: no
"""


def test_the_line_of_the_hops_own_code_is_found() -> None:
    assert innermost_line(TRACEBACK) == "names.py:7"
    assert innermost_line(None) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("node 'ada' has 3 names", "node 'bob' has 41 names"),
        (
            "graph 6d5f1d2e-1111-2222-3333-444455556666 is odd",
            "graph 6d5f1d2e-1111-2222-3333-444455550000 is odd",
        ),
        ("x: at 0xdeadbeef", "x: at 0xabc"),
        ("one\nsecond line 1", "one\nother"),
    ],
)
def test_what_differs_from_graph_to_graph_does_not_part_a_group(first: str, second: str) -> None:
    assert normalised(first) == normalised(second)
    assert error_group("ValueError", first, "h", TRACEBACK) == error_group(
        "ValueError", second, "h", TRACEBACK
    )


def test_another_cause_is_another_group() -> None:
    base = error_group("ValueError", "no name", "h", TRACEBACK)
    assert base.key != error_group("KeyError", "no name", "h", TRACEBACK).key
    assert base.key != error_group("ValueError", "no age", "h", TRACEBACK).key
    assert base.key != error_group("ValueError", "no name", "other", TRACEBACK).key
    assert base.key != error_group("ValueError", "no name", "h", TRACEBACK.replace("line 7", "line 8")).key
    assert base.title == "ValueError in h (names.py:7): no name"


def test_the_graphs_slug_does_not_part_a_group() -> None:
    assert error_group("E", "acme-eu: broken", graph="acme-eu") == error_group(
        "E", "umbrella: broken", graph="umbrella"
    )


# ── windows ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("window", "moment", "is_open"),
    [
        (
            "Mon-Fri 01:00-05:00 Europe/Berlin",
            datetime(2026, 6, 1, 23, 30, tzinfo=UTC),
            True,
        ),  # Tue 01:30 there
        ("Mon-Fri 01:00-05:00 Europe/Berlin", datetime(2026, 6, 2, 3, 0, tzinfo=UTC), False),  # 05:00 there
        ("Mon-Fri 01:00-05:00 Europe/Berlin", datetime(2026, 6, 6, 0, 0, tzinfo=UTC), False),  # Sat
        ("22:00-02:00 UTC", datetime(2026, 6, 6, 23, 0, tzinfo=UTC), True),
        ("22:00-02:00 UTC", datetime(2026, 6, 6, 2, 0, tzinfo=UTC), False),
        ("Fri 22:00-02:00 UTC", datetime(2026, 6, 6, 1, 0, tzinfo=UTC), True),  # Saturday, of Friday's window
        ("Fri 22:00-02:00 UTC", datetime(2026, 6, 5, 1, 0, tzinfo=UTC), False),
        ("Sat-Mon 00:00-23:59 UTC", datetime(2026, 6, 7, 12, 0, tzinfo=UTC), True),
    ],
)
def test_windows_open_and_shut(window: str, moment: datetime, is_open: bool) -> None:
    assert Window.parse(window).is_open(moment) is is_open


@pytest.mark.parametrize(
    "text",
    [
        "",
        "always",
        "Mon 1-2 UTC",
        "Xyz 01:00-02:00 UTC",
        "25:00-26:00 UTC",
        "01:00-01:00 UTC",
        "01:00-02:00 Mars",
    ],
)
def test_an_impossible_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"window"):
        Window.parse(text)


# ── estimates ───────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_estimated_before_five_graphs() -> None:
    assert estimate([(1, 1.0)] * 4, {1: 10}, 2) is None


def test_equal_graphs_give_an_exact_estimate() -> None:
    found = estimate([(1, 2.0)] * 9, {1: 100}, 4)
    assert found is not None
    assert (found.low, found.high, found.graphs) == (50.0, 50.0, 9)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.floats(0.01, 100)), min_size=5, max_size=40), st.integers(1, 500)
)
def test_a_range_is_a_range_and_can_be_repeated(settled: list[tuple[int, float]], count: int) -> None:
    found = estimate(settled, {0: count, 3: count}, 3)
    assert found is not None
    assert 0 < found.low <= found.high
    assert estimate(settled, {0: count, 3: count}, 3) == found


def test_the_range_is_that_of_resampling() -> None:
    chance = random.Random(7)
    settled = [chance.expovariate(1) for _ in range(60)]
    found = estimate([(1, seconds) for seconds in settled], {1: 600}, 4)
    assert found is not None
    draws = sorted(600 * fmean(chance.choices(settled, k=60)) / 4 for _ in range(2_000))
    assert found.low == pytest.approx(draws[200], rel=0.03)
    assert found.high == pytest.approx(draws[1_800], rel=0.03)


def test_size_classes_differ_by_ten() -> None:
    assert [size_class(n) for n in (None, 0, 1, 9, 10, 999, 1_000)] == [-1, 0, 1, 1, 2, 3, 4]


# ── knobs ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "knob",
    [
        {"max_in_flight": 0},
        {"waves": (10, 5, 100)},
        {"waves": (10, 50)},
        {"waves": ()},
        {"window": "never"},
        {"gate": "open"},
        {"order": "random"},
        {"unknown": 1},
        {"stall_seconds": 0},
    ],
)
def test_an_impossible_knob_is_refused(knob: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Strategy(**knob)  # type: ignore[arg-type]


def test_every_knob_says_what_it_is_for() -> None:
    assert all(field.description for field in Strategy.model_fields.values())
    assert Strategy.model_validate_json(Strategy().model_dump_json()) == Strategy()


# ── statuses ────────────────────────────────────────────────────────────────────────────────────────


def test_every_status_has_a_phrase_and_every_edge_a_reason() -> None:
    for status in (*RolloutStatus, *MemberStatus):
        assert status.phrase
    assert all(edge.reason for edge in (*ROLLOUT_EDGES, *MEMBER_EDGES))
    for reason in HoldReason:
        assert reason.phrase
        assert "graph-migrator" in reason.remedy


def test_what_has_ended_stays_ended() -> None:
    sources = {old for old, _ in pairs(ROLLOUT_EDGES)}
    assert sources == LIVE | {RolloutStatus.FINISHED_WITH_FAILURES}
    settled_for_good = {MemberStatus.SUCCEEDED, MemberStatus.SKIPPED}
    assert not settled_for_good & {old for old, _ in pairs(MEMBER_EDGES)}


@pytest.mark.parametrize(
    ("size", "waiting", "places", "taken"),
    [
        (80, 1_600, 4, 80),
        (500, 1_600, 4, 400),
        (500, 101, 4, 26),
        (500, 9, 4, FIRST_SIZE),  # they are spread over all places when they are cut
        (10, 9, 4, 10),
        (500, 300, 0, 300),
    ],
)
def test_the_last_packs_are_small(size: int, waiting: int, places: int, taken: int) -> None:
    assert share(size, waiting, places) == taken


@pytest.mark.parametrize(
    ("last", "seconds", "most", "size"),
    [
        (1, 0.004, 16, 4),  # four times as many
        (4, 0.01, 16, 16),
        (4, 0.01, 9, 9),
        (16, 0.04, 16, 16),
        (16, 0.4, 16, 10),  # a quarter of a second together
        (1, 3.0, 16, 1),
        (1, 0.0, 16, 4),
        (1, 0.004, 1, 1),
    ],
)
def test_graphs_that_share_a_transaction_are_more_each_time_as_long_as_they_are_quick(
    last: int, seconds: float, most: int, size: int
) -> None:
    assert group_size(last, seconds, most) == size
