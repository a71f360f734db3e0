"""The lifecycle is a table: complete, explained, and closed."""

from __future__ import annotations

import pytest

from graph_migrator.core.statuses import (
    APPLIED,
    ATTEMPT_EDGES,
    EDGES,
    LIVE,
    MIGRATION_EDGES,
    SETTLED,
    AttemptStatus,
    MigrationStatus,
    edge_pairs,
)


def _reachable(start: MigrationStatus) -> set[MigrationStatus]:
    found, ahead = {start}, [start]
    while ahead:
        here = ahead.pop()
        further = {new for old, new in edge_pairs() if old is here} - found
        found |= further
        ahead += further
    return found


def test_every_status_is_reached_from_queued() -> None:
    assert _reachable(MigrationStatus.QUEUED) == set(MigrationStatus)


def test_every_status_that_has_not_ended_leads_to_success() -> None:
    for status in LIVE | {MigrationStatus.FAILED}:
        assert MigrationStatus.SUCCEEDED in _reachable(status), status


@pytest.mark.parametrize("status", ["succeeded", "cancelled", "released"])
def test_an_ended_migration_never_moves_again(status: str) -> None:
    assert not [new for old, new in edge_pairs() if old == status]


def test_the_edges_are_those_of_the_design() -> None:
    assert {f"{old} {new}" for old, new in edge_pairs()} == {
        "queued running",
        "queued pausing",
        "running pausing",
        "pausing running",
        "pausing paused",
        "paused running",
        "queued cancelling",
        "running cancelling",
        "pausing cancelling",
        "paused cancelling",
        "cancelling cancelled",
        "cancelling failed",
        "running succeeded",
        "pausing succeeded",
        "cancelling succeeded",
        "queued failed",
        "running failed",
        "pausing failed",
        "failed running",
        "failed released",
        "paused released",
        "queued released",
        "running released",
        "pausing released",
        "cancelling released",
    }


def test_the_events_are_those_of_the_design() -> None:
    """Two events may share a pair of statuses: `fail` also goes from cancelling to failed."""
    assert set(EDGES) == {
        "start",
        "ask_pause",
        "unpause",
        "pause",
        "resume",
        "ask_cancel",
        "cancel",
        "partially_migrated",
        "succeed",
        "fail",
        "retry",
        "release",
        "force_release",
    }
    for name, source in [("partially_migrated", "cancelling"), ("release", "paused"), ("release", "failed")]:
        assert source in EDGES[name].sources


def test_named_sets_are_those_of_the_design() -> None:
    assert {"queued", "running", "pausing", "paused", "cancelling"} == LIVE
    assert {"succeeded", "cancelled", "released", "failed"} == SETTLED
    assert {"succeeded", "skipped"} == APPLIED
    for status in MigrationStatus:
        assert status.is_live is (status in LIVE)
        assert status.is_settled is not status.is_live


def test_an_attempt_leaves_running_once_and_nothing_else() -> None:
    assert {old for old, _ in ATTEMPT_EDGES} == {AttemptStatus.RUNNING}
    assert {new for _, new in ATTEMPT_EDGES} == set(AttemptStatus) - {AttemptStatus.RUNNING}


@pytest.mark.parametrize("status", [*MigrationStatus, *AttemptStatus], ids=repr)
def test_every_status_has_a_phrase_of_its_own(status: MigrationStatus | AttemptStatus) -> None:
    assert len(status.phrase) > 10
    assert [s for s in type(status) if s.phrase == status.phrase] == [status]


def test_every_edge_has_a_name_and_a_reason() -> None:
    assert len(EDGES) == len(MIGRATION_EDGES)
    for edge in MIGRATION_EDGES:
        assert edge.sources, edge
        assert edge.target not in edge.sources, edge
        assert len(edge.reason) > 10, edge
