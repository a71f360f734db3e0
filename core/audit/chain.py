"""The proof chain of a graph's finished attempts, checked link by link. Pure: no database.

A link holds the hash of its own content, and the content names the hash before it. What Postgres does when an attempt
finishes is in `link_attempt` (schema revision 0007); docs/decisions/0013-proof-chain.md says why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from json.encoder import encode_basestring
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field


class Tampering(StrEnum):
    """What was done to an audit row."""

    CHANGED = "changed"
    REMOVED = "removed"
    INSERTED = "inserted"


class Suspicion(BaseModel):
    """A place at which the audit is not as it was written."""

    model_config = ConfigDict(frozen=True)

    kind: Tampering
    graph_id: UUID
    first_link: int = Field(description="Number of the attempt among the finished ones of its graph.")
    last_link: int = Field(description="The same, but where several attempts were removed.")
    attempt_id: int | None = Field(None, description="The row; None where it is gone.")
    found: str = Field(description="What was found, in a sentence.")


@dataclass(frozen=True, kw_only=True)
class Link:
    """A finished attempt as it is stored.

    Attributes:
        attempt_id: The row's id.
        number: Its place in the chain of its graph.
        previous: The hash before it; None at the first link.
        hash: Its own.
        content: The row as canonical JSON without `hash`.
    """

    attempt_id: int
    number: int | None
    previous: bytes | None
    hash: bytes | None
    content: str

    @property
    def is_intact(self) -> bool:
        """Whether the content has the hash that is stored with it."""
        return hashlib.sha256(self.content.encode()).digest() == self.hash


@dataclass(frozen=True, kw_only=True)
class ArchivedRun:
    """Neighbouring links that an archive holds.

    Attributes:
        first: Number of the first link.
        last: Number of the last one.
        previous: The hash before the first.
        hash: The hash of the last.
        archive_id: The archive.
    """

    first: int
    last: int
    previous: bytes | None
    hash: bytes
    archive_id: UUID


_UNKNOWN: Final = b""
"""Stands for the hash of a link that is gone: nothing can be said about what follows it."""


class Chain:
    """The chain of one graph, fed in the order of its links.

    Attributes:
        last: Number of the latest link.
        hash: Its hash; None before the first link.
    """

    def __init__(self, graph_id: UUID, kept: tuple[int, bytes] | None = None) -> None:
        """Begin before the first link.

        Args:
            graph_id: The graph.
            kept: Number and hash of a link, as they were kept elsewhere; see `audit head`.
        """
        self.graph_id = graph_id
        self.last = 0
        self.hash: bytes | None = None
        self._kept = kept
        self._attempt: int | None = None
        self._last_is_changed = False

    def add(self, link: Link) -> Iterator[Suspicion]:
        """Check the next row."""
        if link.number is None or link.hash is None:
            yield suspicion(Tampering.INSERTED, self.graph_id, link, "a finished attempt without a hash")
            return
        if link.number <= self.last:
            yield suspicion(
                Tampering.INSERTED, self.graph_id, link, f"link {link.number} of its graph is there already"
            )
            return
        yield from self._gap(link.number)
        yield from self._joint(link.previous, link.attempt_id)
        changed = not link.is_intact
        if changed:
            yield suspicion(
                Tampering.CHANGED, self.graph_id, link, "its content does not have the hash stored with it"
            )
        yield from self._advance(link.number, link.hash, link.attempt_id, changed=changed)

    def add_archived(self, run: ArchivedRun) -> Iterator[Suspicion]:
        """Go on behind links that an archive holds."""
        yield from self._gap(run.first)
        yield from self._joint(run.previous, None)
        yield from self._advance(run.last, run.hash, None)

    def end(self) -> Iterator[Suspicion]:
        """Check what was kept elsewhere against the end of the chain."""
        if self._kept is not None and self._kept[0] > self.last:
            yield self._removed(self.last + 1, self._kept[0], "kept elsewhere, and gone from the end")

    def _gap(self, number: int) -> Iterator[Suspicion]:
        if number > self.last + 1:
            yield self._removed(self.last + 1, number - 1, "neither in the tables nor in an archive")
            self.last, self.hash, self._attempt = number - 1, _UNKNOWN, None

    def _joint(self, previous: bytes | None, attempt_id: int | None) -> Iterator[Suspicion]:
        """What follows names the hash before it. Where it names another one, the row before was replaced."""
        if self.hash in (previous, _UNKNOWN) or self._last_is_changed:
            return
        follower = f"attempt {attempt_id}" if attempt_id is not None else "the archived link after it"
        yield Suspicion(
            kind=Tampering.CHANGED,
            graph_id=self.graph_id,
            first_link=max(self.last, 1),
            last_link=max(self.last, 1),
            attempt_id=self._attempt,
            found=f"{follower} was linked to another hash than this one has",
        )

    def _advance(
        self, number: int, hash_: bytes, attempt_id: int | None, *, changed: bool = False
    ) -> Iterator[Suspicion]:
        self.last, self.hash, self._attempt, self._last_is_changed = number, hash_, attempt_id, changed
        if self._kept is not None and self._kept[0] == number and self._kept[1] != hash_ and not changed:
            yield Suspicion(
                kind=Tampering.CHANGED,
                graph_id=self.graph_id,
                first_link=number,
                last_link=number,
                attempt_id=attempt_id,
                found="it, or one before it, has another hash than was kept elsewhere",
            )

    def _removed(self, first: int, last: int, found: str) -> Suspicion:
        return Suspicion(
            kind=Tampering.REMOVED,
            graph_id=self.graph_id,
            first_link=first,
            last_link=last,
            found=found,
        )


def suspicion(kind: Tampering, graph_id: UUID, link: Link, found: str) -> Suspicion:
    """What is wrong with one row."""
    number = link.number or 0
    return Suspicion(
        kind=kind,
        graph_id=graph_id,
        first_link=number,
        last_link=number,
        attempt_id=link.attempt_id,
        found=found,
    )


def canonical(value: Any) -> str:
    """A value as the text that Postgres makes of it as `jsonb`, without what is null in objects.

    Numbers are to be read as `JsonNumber`.
    """
    match value:
        case dict():
            known = [key for key in value if value[key] is not None]
            known.sort(key=lambda key: (len(key.encode()), key.encode()))
            return f"{{{', '.join(f'{encode_basestring(key)}: {canonical(value[key])}' for key in known)}}}"
        case list():
            return f"[{', '.join(map(canonical, value))}]"
        case JsonNumber():
            return str(value)
        case str():
            return encode_basestring(value)
        case True:
            return "true"
        case False:
            return "false"
    if value is None:
        return "null"
    raise TypeError(f"{type(value).__name__} is not JSON as it was read")


class JsonNumber(str):
    """A number of a JSON document, in its own spelling."""

    __slots__ = ()


def archived_link(row: dict[str, Any]) -> Link:
    """The link that a row of an archive is; the row was read with numbers as `JsonNumber`."""
    content = {name: value for name, value in row.items() if name != "hash"}
    return Link(
        attempt_id=int(row["id"]),
        number=int(row["link"]) if row.get("link") is not None else None,
        previous=_bytes(row.get("previous")),
        hash=_bytes(row.get("hash")),
        content=canonical(content),
    )


def check_run(graph_id: UUID, run: ArchivedRun, links: Iterable[Link]) -> Iterator[Suspicion]:
    """Check the rows that an archive holds of one run, in the order of their links."""
    chain = Chain(graph_id, kept=(run.last, run.hash))
    chain.last, chain.hash = run.first - 1, run.previous
    for link in links:
        yield from chain.add(link)
    yield from chain.end()


def _bytes(value: str | None) -> bytes | None:
    return None if value is None else bytes.fromhex(value.removeprefix("\\x"))
