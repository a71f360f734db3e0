"""Visiting every state of a finite model: the rows, messages and processes of a protocol as one tuple."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar


class Violated(AssertionError):
    """An invariant does not hold."""


class _State(Protocol):
    @property
    def status(self) -> str:
        """The migration's."""


S = TypeVar("S", bound=_State)
_Came = dict[S, tuple[str, S] | None]


@dataclass(frozen=True)
class Explored:
    """What was visited.

    Attributes:
        states: How many.
        steps: The names of the steps that were taken.
        ends: The statuses of states in which nothing happens any more.
    """

    states: int
    steps: frozenset[str]
    ends: frozenset[str]


def explore(
    start: S,
    successors: Callable[[S], Iterable[tuple[str, S]]],
    check: Callable[[S], None],
    *,
    from_outside: frozenset[str],
    active: Iterable[str],
    most: int = 2_000_000,
) -> Explored:
    """Visit every state that can be reached.

    Args:
        start: The first one.
        successors: Every step that any process may take next, by name.
        check: Raises `Violated` with a sentence where an invariant does not hold.
        from_outside: The steps on which nothing may depend: deaths, losses, operators.
        active: Statuses in which a migration must not stay.
        most: More states than this are a mistake in the model.

    Raises:
        Violated: An invariant does not hold, or something is never settled; with the shortest way there.
    """
    came: _Came[S] = {start: None}
    before: dict[S, list[S]] = {}
    queue = deque([start])
    steps: set[str] = set()
    ends: list[S] = []
    while queue:
        state = queue.popleft()
        moved = False
        try:
            check(state)
            for name, after in successors(state):
                steps.add(name)
                if name not in from_outside:
                    moved = True
                    before.setdefault(after, []).append(state)
                if after not in came:
                    if len(came) >= most:
                        raise AssertionError(f"more than {most} states")
                    came[after] = (name, state)
                    queue.append(after)
        except Violated as violated:
            raise Violated(f"{violated}\n{_way_to(state, came)}") from None
        if not moved:
            ends.append(state)
    _check_ends(ends, came, before, set(active))
    return Explored(len(came), frozenset(steps), frozenset(state.status for state in ends))


def _check_ends(ends: list[S], came: _Came[S], before: dict[S, list[S]], active: set[str]) -> None:
    """Every end is settled or paused, and every state leads to an end without help from outside."""
    for state in ends:
        if state.status in active:
            raise Violated(f"nobody goes on: {state.status}\n{_way_to(state, came)}")
    reached = set(ends)
    queue = deque(ends)
    while queue:
        for earlier in before.get(queue.popleft(), ()):
            if earlier not in reached:
                reached.add(earlier)
                queue.append(earlier)
    for state in came:
        if state not in reached:
            raise Violated(f"never settled\n{_way_to(state, came)}")


def _way_to(state: S, came: _Came[S]) -> str:
    lines = [f"   {state}"]
    while (step := came[state]) is not None:
        name, state = step
        lines.append(f"  {name}")
    return "\n".join(reversed(lines))
