"""What an operator can do to a rollout now: each verb, what it will do and to how many, and why not where it cannot."""

from __future__ import annotations

from graph_migrator.core.inspection.actions import Action
from graph_migrator.core.inspection.quantities import count
from graph_migrator.core.rollouts.back import why_not_back
from graph_migrator.core.rollouts.inspection import RolloutState
from graph_migrator.core.rollouts.statuses import LIVE, HoldReason, RolloutStatus

_STEERABLE = frozenset({RolloutStatus.RUNNING, RolloutStatus.HELD})


def rollout_actions(state: RolloutState) -> list[Action]:
    """The verbs on one rollout."""
    rollout = state.rollout
    status, counts, short = rollout.status, rollout.counts, str(rollout.id)[:8]
    in_flight = count(state.in_flight, "graph")
    waiting = count(counts.pending, "graph")

    def action(verb: str, label: str, effect: str, why_not: str | None, *, dangerous: bool = False) -> Action:
        command = f"graph-migrator rollout {verb} {short}"
        return Action(
            verb=verb, label=label, effect=effect, command=command, why_not=why_not, dangerous=dangerous
        )

    not_live = None if status in _STEERABLE else f"it is {status}"
    return [
        action(
            "promote",
            "Promote",
            f"Open the gate after stage {rollout.stage}: {waiting} may follow.",
            None if rollout.hold is HoldReason.GATE else "it does not wait at a gate",
        ),
        action(
            "pause", "Pause", f"Dispatch nothing more; {in_flight} in flight end their migration.", not_live
        ),
        action(
            "resume",
            "Resume",
            f"Let it go on with {waiting}. Failures are counted anew.",
            _not_resumed(state),
        ),
        action(
            "retry",
            "Retry failed",
            f"Let {count(counts.failed, 'failed graph')} wait for another try.",
            "no graph of it has failed"
            if not counts.failed
            else None
            if status in _STEERABLE | {RolloutStatus.FINISHED_WITH_FAILURES}
            else f"it is {status}",
        ),
        action(
            "cancel",
            "Cancel",
            f"End it. {waiting} that wait stay as they are; {in_flight} in flight end their migration.",
            not_live,
            dangerous=True,
        ),
        action(
            "skip",
            "Skip graphs",
            f"Take graphs out and leave them as they are: {waiting} may be, and {count(counts.failed, 'failed one')}.",
            "no graph of it waits or has failed"
            if not counts.pending + counts.failed
            else None
            if status in LIVE
            else f"it is {status}",
        ),
        action("set", "Change a knob", "Change how it goes on; its next turn uses it.", not_live),
        action(
            "back",
            "Move back",
            f"Start a rollout that moves back what it has moved: {count(counts.succeeded, 'graph')} at most, with "
            "canaries and stages of its own.",
            why_not_back(state),
            dangerous=True,
        ),
    ]


def _not_resumed(state: RolloutState) -> str | None:
    rollout = state.rollout
    if rollout.status is not RolloutStatus.HELD:
        return f"it is {rollout.status}"
    match rollout.hold:
        case HoldReason.GATE:
            return "it waits at a gate: promote it"
        case HoldReason.FLEET:
            return "all rollouts are held"
        case HoldReason.WINDOW:
            return "its window is shut"
    return None
