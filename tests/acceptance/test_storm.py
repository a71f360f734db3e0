"""A rollout in a storm: a small sample of ``make soak ARGS=--rollout``, each kind of strike once."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.acceptance.soak.storm import Operator, Storm, fleet, settle, wrong
from tests.waiting import until

GRAPHS = 36
# About as long as the strikes take, so that each of them meets graphs in flight.
KNOBS = ("--max-in-flight", 2, "--rate", "6/s")


@pytest.mark.timeout(240)
def test_a_rollout_in_a_storm_moves_every_graph_once(tmp_path: Path) -> None:
    with fleet(tmp_path / "stage", GRAPHS, workers=2, knobs=KNOBS) as (stage, slugs):
        storm, operator = Storm(stage, Random(1)), Operator(stage)
        for place in ("pack_begun", "turn_before_commit", "turn_committed"):
            storm.at(place, seconds=20)
        storm.hit("child")
        storm.hit("broker flush")
        storm.hit("Postgres restart")
        until(lambda: stage.standing()[2] >= GRAPHS / 2, "half of the graphs have settled", seconds=60)
        stage.arm("begin_committed")  # a graph begun with the code of the first release
        stage.held()
        storm.deploy()
        stage.let_go()
        storm.hit("redelivery of all")
        assert settle(stage, operator, seconds=100) == []
        assert wrong(stage, slugs) == []
        assert set(storm.tally) == {
            "pack_begun", "turn_before_commit", "turn_committed", "child", "broker flush", "Postgres restart", "deploy",
            "redelivery of all",
        }  # fmt: skip
        assert any("in flight with the new code" in said for said in operator.did)
