"""When a policy starts a rollout, line by line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from graph_migrator.core.rollouts.policy import Mode, PolicyFacts, StartRollout, Wait, decide_policy

READY = PolicyFacts(Mode.AUTOMATIC, workers=2, agreed_seconds=61, settle_seconds=60, behind=True)


def test_it_starts_when_all_live_workers_agree_for_long_enough_and_graphs_are_behind() -> None:
    assert decide_policy(READY) == StartRollout()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mode": Mode.MANUAL}, "by hand"),
        ({"live_rollout": "0123456789ab"}, "rollout 01234567 of the type is live"),
        ({"fleet_held": True}, "unhold"),
        ({"workers": 0}, "no worker lives"),
        ({"lacking": (("w1", "serves v2"), ("w2", "serves v2"))}, "worker w1 serves v2, and 1 more"),
        ({"agreed_seconds": 20}, "starts in 40 s"),
        ({"cancelled": "0123456789ab"}, "was cancelled"),
        ({"behind": False}, "no graph is behind"),
    ],
)
def test_it_waits_and_says_why(change: dict[str, Any], says: str) -> None:
    decision = decide_policy(replace(READY, **change))
    assert isinstance(decision, Wait)
    assert says in decision.why
