"""A hop in one direction: what its author declared, and what an executor needs to run it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel

from graph_migrator.core.graph_types.fingerprint import fingerprint

if TYPE_CHECKING:
    from graph_migrator.core.graph_types.context import HopContext
    from graph_migrator.core.graph_types.selectors import Selector

HopFunction = Callable[..., object]
"""``(ctx)``, or ``(ctx, rows)`` where the hop is batched. What it returns is ignored."""

When = Callable[["HopContext"], bool]
"""A precondition: False means that there is nothing to do. The hop is skipped; the version still moves."""

Check = Callable[["HopContext"], bool | str | None]
"""A postcondition: False, or a text that says what is wrong, rolls the hop back."""

Models = Mapping[str, type[BaseModel]]
"""Pydantic models of properties by node label or edge type."""

BATCH_SIZE: Final = 1_000
"""Rows of the first batch where the author does not say."""

Shards = int | Literal["auto"]
"""Into how many shards a batched hop is cut; `auto` for one for each 100,000 rows, at most 256."""

UNDO_FOR: Final = 86_400.0
"""Seconds for which a rebuild hop's old values are kept where the author does not say."""

BATCH_PARAMETERS: Final = ("graph_id", "first", "last")
"""What the SQL of a batched hop gets about its batch: the graph, and the first and last key in it."""


class Direction(StrEnum):
    """The direction in which a hop is run."""

    FORWARD = "forward"
    REVERSE = "reverse"


@dataclass(frozen=True, eq=False, kw_only=True)
class HopOptions:
    """What an author may say about one way of a hop.

    Attributes:
        over: What a batched hop processes; None where the hop is one transaction.
        batch_size: Rows of the first batch; later ones adapt.
        when: Precondition.
        check: Postcondition.
        retry_on: Errors that are worth another try, beside the database's transient ones.
        timeout: Seconds after which the hop fails; None for no limit. Of a hop in shards, each shard has so many.
        shards: Into how many shards the hop is cut; None where it is not.
        rebuild: What the hop changes is staged beside the graph, and swapped in by its last commit.
        undo_for: Seconds for which the old values are kept after that; 0 for not at all.
    """

    over: Selector | None = None
    batch_size: int = BATCH_SIZE
    when: When | None = None
    check: Check | None = None
    retry_on: tuple[type[Exception], ...] = ()
    timeout: float | None = None
    shards: Shards | None = None
    rebuild: bool = False
    undo_for: float = UNDO_FOR

    @property
    def is_batched(self) -> bool:
        """Whether the hop commits batch by batch."""
        return self.over is not None

    def fingerprint_of(self, code: HopFunction | str) -> str:
        """The fingerprint of a function or of SQL under these options.

        `batch_size` is left out: it changes how long a batch takes, not what becomes of the rows. So is the number of
        shards; that there are shards at all is in it. So is `undo_for`; `rebuild` is in it.

        Raises:
            OSError: The source of a function is unavailable.
        """
        effect: dict[str, object] = {
            "over": self.over,
            "when": self.when,
            "check": self.check,
            "retry_on": frozenset(self.retry_on),
            "timeout": self.timeout,
        }
        if self.shards is not None:
            effect["shards"] = True
        if self.rebuild:
            effect["rebuild"] = True
        return fingerprint(code, effect)


@dataclass(frozen=True, eq=False, kw_only=True)
class DirectedHop(HopOptions):
    """A hop in one direction.

    Attributes:
        name: The hop's name, the same both ways.
        from_version: The version that the graph has before.
        to_version: The version that it has afterwards.
        direction: Which way it is.
        run: The function; None where the hop is SQL.
        sql: The statement; None where the hop is a function.
        description: One line for people.
        fingerprint: Of its code and options, see `core.graph_types.fingerprint`.
        node_models: What the properties of nodes must fit afterwards, by label.
        edge_models: What the properties of edges must fit afterwards, by type.
        digest: Whether each attempt records digests of the data before and after it.
    """

    name: str
    from_version: int
    to_version: int
    direction: Direction
    run: HopFunction | None
    sql: str | None
    description: str
    fingerprint: str
    node_models: Models
    edge_models: Models
    digest: bool

    @classmethod
    def declare(
        cls,
        code: HopFunction | str,
        options: HopOptions,
        *,
        name: str,
        versions: tuple[int, int],
        direction: Direction,
        models: tuple[Models, Models],
        digest: bool = False,
        description: str | None = None,
    ) -> DirectedHop:
        """Make one way of a hop from what its author wrote.

        The fingerprint is taken now, while the file on disk is still the code that was just loaded.

        Args:
            code: A function or SQL.
            options: What the author said about it.
            name: The hop's name.
            versions: The version before and the one afterwards.
            direction: Which way it is.
            models: Of nodes and of edges, as they are afterwards.
            digest: Whether its attempts record digests of the data.
            description: One line; None for the first line of the function's docstring.

        Raises:
            OSError: The source of a function is unavailable.
        """
        if description is None:
            description = (inspect.getdoc(code) or "").partition("\n")[0]
        given: dict[str, Any] = {each.name: getattr(options, each.name) for each in fields(HopOptions)}
        return cls(
            **given,
            name=name,
            from_version=versions[0],
            to_version=versions[1],
            direction=direction,
            run=None if isinstance(code, str) else code,
            sql=code if isinstance(code, str) else None,
            description=description,
            fingerprint=options.fingerprint_of(code),
            node_models=models[0],
            edge_models=models[1],
            digest=digest,
        )
