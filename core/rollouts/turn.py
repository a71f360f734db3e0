"""One turn of the controller for one rollout: take in outcomes, then decide and do, until there is nothing to do.

The order of the steps stands here, apart from the tables: `core.rollouts.turn_rows` does them in Postgres, in one
transaction; the simulation does the same turn on a model, with deaths and operators in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Final, Protocol
from uuid import UUID

from graph_migrator.core.rollouts.decisions import (
    ClosePack,
    CloseStage,
    DispatchMembers,
    End,
    Hold,
    KeepWaiting,
    MemberFacts,
    MemberInFlight,
    OpenStage,
    PackFacts,
    PendingGraph,
    ResendPack,
    Resume,
    RolloutDecision,
    RolloutFacts,
    Settled,
    Unsent,
    decide_member,
    decide_pack,
    decide_rollout,
    hindered,
)
from graph_migrator.core.rollouts.packing import MOST, cut_units, share
from graph_migrator.core.rollouts.statuses import RolloutStatus

_MOST_STEPS = 10_000
MOST_GRAPHS: Final = MOST
"""Graphs that one turn takes in, and that it sends beyond its first unit: the rollout's row is locked meanwhile."""


@dataclass(frozen=True)
class Sending:
    """A member's migration to be sent after the commit; workers read the rest from Postgres."""

    rollout_id: UUID
    graph_id: UUID
    number: int
    request_id: UUID
    graph: str
    to_version: int


@dataclass(frozen=True)
class SendingPack:
    """A pack to be sent after the commit. `first` and `last` are slugs, for people."""

    rollout_id: UUID
    pack_id: UUID
    size: int
    first: str
    last: str
    to_version: int


@dataclass(frozen=True)
class InHand:
    """A member that may have settled, as it is recorded and as it was found.

    Attributes:
        graph_id: The graph.
        facts: What was found.
        paused: It is recorded as paused by an operator.
        resend_due: No worker has begun it for so long that its message may be lost.
    """

    graph_id: UUID
    facts: MemberFacts
    paused: bool = False
    resend_due: bool = False


class Rows(Protocol):
    """The rows of one rollout, locked for this turn."""

    def in_hand(self, most: int) -> Iterable[InHand]:
        """Members that were dispatched, and failed ones whose migration somebody has ended otherwise since.

        Where `most` dispatched ones or more have settled: so many of those, and no others.
        """

    def settle(self, settled: Mapping[UUID, Settled]) -> None:
        """Write how members ended."""

    def mark_paused(self, paused: Mapping[UUID, bool]) -> None:
        """Write whose migration is paused by an operator, and whose is not any more."""

    def resend(self, graphs: Sequence[UUID]) -> list[Sending]:
        """The same tries again; the pause to the next time doubles."""

    def open_packs(self) -> Sequence[tuple[UUID, PackFacts]]:
        """Packs that were sent and are not closed."""

    def close_packs(self, packs: Sequence[UUID]) -> Mapping[UUID, Settled]:
        """Close packs. What they have begun goes on as chains; the rest waits again, or is skipped at a cancel."""

    def resend_packs(self, packs: Sequence[UUID]) -> list[SendingPack]:
        """The same packs again; the pause to the next time doubles."""

    def pack_size(self) -> int:
        """How many graphs a pack takes now; 1 where packs are off."""

    def facts(self) -> RolloutFacts:
        """What the next decision rests on."""

    def hold(self, hold: Hold) -> None:
        """Hold the rollout."""

    def resume(self) -> None:
        """End a hold whose reason is gone."""

    def open_stage(self, number: int) -> None:
        """Open a stage."""

    def close_stage(self, number: int) -> None:
        """Begin a stage's bake."""

    def end(self, status: RolloutStatus) -> None:
        """End the rollout."""

    def next_pending(self, count: int) -> Iterable[tuple[UUID, PendingGraph]]:
        """The next members that wait in the open stage and before it, and what their graphs are now."""

    def dispatch(self, units: Sequence[tuple[UUID, ...]]) -> list[Sending | SendingPack]:
        """Write that members are sent: alone, or several as a pack."""


@dataclass
class Turn:
    """What one turn did; `to_send` goes out after the commit."""

    to_send: list[Sending | SendingPack] = field(default_factory=list)
    settled: dict[UUID, Settled] = field(default_factory=dict)
    decisions: list[RolloutDecision] = field(default_factory=list)
    goes_on: bool = False
    """There was more to do than one turn does: the next one is due at once."""


def take_turn(rows: Rows, most: int = MOST_GRAPHS) -> Turn:
    """Take one turn. All of it is to be committed together, or not at all.

    Args:
        rows: The rollout's rows.
        most: How many graphs it takes in. With so many it decides nothing: that is for a turn that has all outcomes.
    """
    turn = Turn()
    # Packs are looked at before the outcomes, so that of a pack which has left all outcomes are there.
    packs = rows.open_packs()
    _take_in_outcomes(rows, turn, most)
    if len(turn.settled) >= most:
        turn.goes_on = True
        return turn
    _take_in_packs(rows, packs, turn)
    for _ in range(_MOST_STEPS):
        facts = rows.facts()
        decision = decide_rollout(facts)
        turn.decisions.append(decision)
        match decision:
            case Hold():
                rows.hold(decision)
            case Resume():
                rows.resume()
            case OpenStage(number):
                rows.open_stage(number)
            case CloseStage(number):
                rows.close_stage(number)
            case DispatchMembers(count):
                if _dispatch(rows, count, facts, turn, most) >= most:
                    turn.goes_on = True
                    return turn
            case End(status):
                rows.end(status)
                return turn
            case KeepWaiting():
                return turn
    return turn


def _take_in_outcomes(rows: Rows, turn: Turn, most: int) -> None:
    paused: dict[UUID, bool] = {}
    unsent: list[UUID] = []
    for member in rows.in_hand(most):
        match decide_member(member.facts):
            case Settled() as settled:
                turn.settled[member.graph_id] = settled
            case MemberInFlight(is_paused):
                if is_paused is not member.paused:
                    paused[member.graph_id] = is_paused
            case Unsent():
                if member.resend_due:
                    unsent.append(member.graph_id)
    if turn.settled:
        rows.settle(turn.settled)
    if paused:
        rows.mark_paused(paused)
    if unsent:
        turn.to_send += rows.resend(unsent)


def _take_in_packs(rows: Rows, packs: Sequence[tuple[UUID, PackFacts]], turn: Turn) -> None:
    closing: list[UUID] = []
    unsent: list[UUID] = []
    for pack_id, facts in packs:
        match decide_pack(facts):
            case ClosePack():
                closing.append(pack_id)
            case ResendPack():
                unsent.append(pack_id)
    if closing:
        turn.settled |= rows.close_packs(closing)
    if unsent:
        turn.to_send += rows.resend_packs(unsent)


def _dispatch(rows: Rows, places: int, facts: RolloutFacts, turn: Turn, most: int) -> int:
    """Send members, and settle those whose graphs must not be sent; they take no place.

    Returns:
        How many graphs it looked at: about `most`, or one unit.
    """
    free: list[tuple[UUID, bool]] = []
    hindrances: dict[UUID, Settled] = {}
    size = share(rows.pack_size(), facts.pending, facts.max_in_flight)
    places = min(places, ceil(most / size))
    for graph_id, graph in rows.next_pending(places * size):
        hindrance = hindered(graph)
        if hindrance is None:
            free.append((graph_id, graph.packable))
        else:
            hindrances[graph_id] = hindrance
    if hindrances:
        rows.settle(hindrances)
        turn.settled |= hindrances
    if free:
        turn.to_send += rows.dispatch(cut_units(free, places, size))
    return len(free) + len(hindrances)
