"""Which hops lead from a graph's version to the target. Pure: a type and two numbers in, a plan out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import takewhile
from typing import Any

from graph_migrator.core.errors import InvalidRequest, IrreversibleHop, UnknownTarget, UnreachableGraph
from graph_migrator.core.graph_types.definition import DirectedHop, Direction, GraphType


def versions_left(version: int, target: int, direction: int) -> int:
    """How many versions are left on the way to a target.

    Args:
        version: Where the graph is.
        target: Where it goes.
        direction: 1 or -1; below 0 is what lies beyond the target in this direction.
    """
    return (target - version) * direction


@dataclass(frozen=True)
class Step:
    """One hop of a plan, as it is stored with the migration.

    Attributes:
        from_version: The version that the graph has before.
        to_version: The version that it has afterwards.
        name: The hop's name.
        fingerprint: The code that was planned; other code is not run.
        direction: The direction in which the hop is run.
        batched: Whether it commits batch by batch.
    """

    from_version: int
    to_version: int
    name: str
    fingerprint: str
    direction: Direction
    batched: bool

    @classmethod
    def of(cls, hop: DirectedHop) -> Step:
        """The step that runs this code."""
        return cls(hop.from_version, hop.to_version, hop.name, hop.fingerprint, hop.direction, hop.is_batched)

    def to_json(self) -> dict[str, Any]:
        """The step as JSON values."""
        return vars(self) | {"direction": self.direction.value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Step:
        """The step that `to_json` gave."""
        return cls(
            from_version=values["from_version"],
            to_version=values["to_version"],
            name=values["name"],
            fingerprint=values["fingerprint"],
            direction=Direction(values["direction"]),
            batched=values["batched"],
        )


@dataclass(frozen=True)
class Plan:
    """The hops that lead from one version of a graph type to another; none where they are the same."""

    graph_type: str
    from_version: int
    to_version: int
    steps: tuple[Step, ...]

    @cached_property
    def as_json(self) -> list[dict[str, Any]]:
        """The steps as JSON values."""
        return [step.to_json() for step in self.steps]


def make_plan(
    graph: str,
    graph_type: GraphType,
    version: int,
    target: int | None = None,
    *,
    undoable_to: int | None = None,
) -> Plan:
    """Plan the way of a graph to a version of its type.

    Args:
        graph: The graph's slug, for what an error says.
        graph_type: The graph's type as this process knows it.
        version: The version that the graph has.
        target: The version to reach; None for the newest. One below `version` takes the reverse hops.
        undoable_to: To which version the graph can go back by old values that were kept: rebuild hops on that way need
            no reverse.

    Raises:
        InvalidRequest: The target is no version number.
        UnknownTarget: The type does not know the target.
        UnreachableGraph: The type does not know the version that the graph has.
        IrreversibleHop: The way back crosses a hop without a reverse; of several, the first on the way.
    """
    goal = graph_type.newest if target is None else target
    if isinstance(goal, bool) or not isinstance(goal, int):
        raise InvalidRequest("target", f"a version is a whole number, not {goal!r}")
    if goal < 1:
        raise InvalidRequest("target", f"a version is 1 or more, not {goal}")
    oldest, newest = graph_type.oldest, graph_type.newest
    if not oldest <= version <= newest:
        raise UnreachableGraph(graph, graph_type.name, version, oldest, newest)
    if not oldest <= goal <= newest:
        raise UnknownTarget(graph, graph_type.name, goal, oldest, newest)
    step = 1 if goal > version else -1
    if step < 0:
        _require_reverses(graph, graph_type, version, goal, version if undoable_to is None else undoable_to)
    versions = range(version, goal, step)
    return Plan(
        graph_type.name, version, goal, tuple(Step.of(graph_type.directed(v, v + step)) for v in versions)
    )


@lru_cache(maxsize=1024)
def steps_of_one_transaction(
    kinds: tuple[GraphType, ...], from_version: int, to_version: int
) -> dict[str, dict[str, Any]]:
    """What is planned for a hop between two versions, as JSON by the name of the type; hops in batches are left out."""
    found = {}
    for kind in kinds:
        with suppress(LookupError):
            step = Step.of(kind.directed(from_version, to_version))
            if not step.batched:
                found[kind.name] = step.to_json()
    return found


def continue_plan(old: Sequence[Step], new: Plan) -> tuple[Step, ...]:
    """The plan of a migration that is resumed: what it has applied, then what is planned today.

    Args:
        old: The recorded plan.
        new: The plan from the graph's present version.

    Returns:
        The recorded steps that led to the present version, unchanged, and the new ones.

    Raises:
        ValueError: The present version is not on the recorded plan's way.
    """
    applied = tuple(takewhile(lambda step: step.from_version != new.from_version, old))
    if applied and applied[-1].to_version != new.from_version:
        raise ValueError(f"the recorded plan ends at v{applied[-1].to_version}, not at v{new.from_version}")
    return applied + new.steps


def _require_reverses(graph: str, graph_type: GraphType, version: int, goal: int, undoable_to: int) -> None:
    for hop in reversed(graph_type.hops):
        is_undone = hop.forward.rebuild and hop.from_version >= undoable_to
        if goal <= hop.from_version < version and not (hop.is_reversible or is_undone):
            raise IrreversibleHop(graph, hop.name, hop.from_version, hop.to_version)
