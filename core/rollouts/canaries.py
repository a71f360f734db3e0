"""Choosing canaries by shape, so that unlike graphs are met before the first wave. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from uuid import UUID

from graph_migrator.core import plural


@dataclass(frozen=True)
class Candidate:
    """A graph that may be a canary.

    Attributes:
        graph_id: The graph.
        slug: Its slug; of equal candidates the first by slug is chosen, so that a plan can be repeated.
        from_version: The version that it has.
        rows: How many nodes and edges it has; None where they were not counted.
        shape: Its labels and edge types in one text; None where they were not read.
        like: How many graphs it stands for.
    """

    graph_id: UUID
    slug: str
    from_version: int
    rows: int | None = None
    shape: str | None = None
    like: int = 1


@dataclass(frozen=True)
class Canary:
    """A chosen graph and why."""

    candidate: Candidate
    why: str


def choose_canaries(candidates: Sequence[Candidate], most: int) -> tuple[Canary, ...]:
    """Choose up to `most` graphs: one of each from-version, smallest, median and largest, one of each shape.

    Shapes that many graphs have come first. Places that are left are filled in the order of slugs.
    """
    ordered = sorted(candidates, key=lambda c: c.slug)
    chosen: dict[UUID, Canary] = {}
    reasons = (
        _of_each_version(ordered),
        _by_size(ordered),
        _of_each_shape(ordered, chosen),
        _the_rest(ordered),
    )
    for canary in (each for reason in reasons for each in reason):
        if len(chosen) == most:
            break
        chosen.setdefault(canary.candidate.graph_id, canary)
    return tuple(islice(chosen.values(), most))


def _of_each_version(ordered: Sequence[Candidate]) -> Iterator[Canary]:
    for version in sorted({c.from_version for c in ordered}):
        yield Canary(next(c for c in ordered if c.from_version == version), f"starts from v{version}")


def _by_size(ordered: Sequence[Candidate]) -> Iterator[Canary]:
    counted = sorted((c for c in ordered if c.rows is not None), key=lambda c: (c.rows, c.slug))
    if not counted:
        return
    for name, candidate in (("smallest", counted[0]), ("largest", counted[-1]), ("median", _median(counted))):
        yield Canary(candidate, f"{name}: {plural.count(candidate.rows or 0, 'row')}")


def _median(counted: Sequence[Candidate]) -> Candidate:
    half = sum(c.like for c in counted) / 2
    seen = 0
    for candidate in counted:
        seen += candidate.like
        if seen >= half:
            return candidate
    return counted[-1]


def _of_each_shape(ordered: Sequence[Candidate], chosen: Mapping[UUID, Canary]) -> Iterator[Canary]:
    """One of each shape that is not met by one of those chosen before."""
    met = {canary.candidate.shape for canary in chosen.values()}
    count: Counter[str] = Counter()
    first: dict[str, Candidate] = {}
    for candidate in ordered:
        if candidate.shape is not None:
            count[candidate.shape] += candidate.like
            first.setdefault(candidate.shape, candidate)
    for shape, graphs in sorted(count.items(), key=lambda each: (-each[1], each[0])):
        if shape not in met:
            yield Canary(
                first[shape], f"has the shape of {plural.count(graphs, 'graph')}: {shape or 'empty'}"
            )


def _the_rest(ordered: Sequence[Candidate]) -> Iterator[Canary]:
    for candidate in ordered:
        yield Canary(candidate, "fills a free place")
