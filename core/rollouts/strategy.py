"""How a rollout proceeds: its knobs, each with its default and the default's reason."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from graph_migrator.core.rollouts.window import Window


class Strategy(BaseModel):
    """The knobs of a rollout. All but `canaries`, `waves`, `order` and `shapes` can be changed while it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_in_flight: int = Field(
        8,
        ge=1,
        le=100_000,
        description="Graphs sent and not ended, at most; a pack counts as one. Two workers with four processes each "
        "are kept busy by 8; more only wait in the queue.",
    )
    canaries: int = Field(
        10,
        ge=0,
        le=1_000,
        description="Graphs of the first stage, chosen so that unlike graphs are met first. Ten meet the common shapes "
        "and can be inspected by a person.",
    )
    waves: tuple[float, ...] = Field(
        (1, 10, 50, 100),
        description="How much of the rest is done after each wave, in per cent, cumulative. A fault that canaries "
        "miss is met by one per cent first.",
    )
    bake_seconds: float = Field(
        600,
        ge=0,
        description="How long the canaries must stand before the next stage. Ten minutes let errors of the "
        "applications that use them appear.",
    )
    wave_bake_seconds: float = Field(
        0,
        ge=0,
        description="How long each wave must stand before the next. 0: the canaries have stood long enough by then.",
    )
    gate: Literal["manual", "auto"] = Field(
        "manual",
        description="What opens the first wave: `promote`, or the end of the bake. Manual: somebody should have "
        "looked at the canaries once.",
    )
    max_failures: int = Field(
        3,
        ge=1,
        description="Hold it when this many graphs of one error group failed. One or two may be odd graphs; three "
        "of one cause are a fault.",
    )
    max_failure_percent: float = Field(
        1.0,
        ge=0,
        le=100,
        description="Hold it when more than this per cent of the last 200 settled graphs failed, three at least: many "
        "causes at once.",
    )
    max_crashes: int = Field(
        2,
        ge=1,
        description="Hold it when the hop of this many graphs killed its process. Each has ended several processes.",
    )
    stall_seconds: float = Field(
        1_800,
        gt=0,
        description="Hold it when no graph in flight has committed for so long. Half an hour: a batch takes about a "
        "second, a long plain hop some minutes.",
    )
    window: Annotated[str, StringConstraints(max_length=100)] | None = Field(
        None,
        description="Dispatch only in this time, such as `Mon-Fri 01:00-05:00 Europe/Berlin`. None: at any time.",
    )
    packs: bool = Field(
        True,
        description="Move small graphs in packs: one task moves several, each with its own migration and audit rows. "
        "What a small graph costs is mostly its messages. `false` sends each as a chain.",
    )
    pack_rows: int = Field(
        2_000,
        ge=0,
        description="Graphs of at most this many rows go in packs; canaries, retried graphs and graphs that were not "
        "counted (`--shapes false`) never do. A hop over 2,000 rows takes a fraction of a second.",
    )
    pack_seconds: float = Field(
        5,
        gt=0,
        le=600,
        description="How long a pack should take; its size follows from the packs before it. Five seconds make its "
        "message cheap, and are soon over when a worker shuts down.",
    )
    pack_together: int = Field(
        16,
        ge=1,
        le=50,
        description="How many graphs of a pack share the transactions of their hops, at most, as long as they take a "
        "quarter of a second together. Sixteen halve what a small graph costs. 1: no hop shares its transaction.",
    )
    health: bool = Field(
        True,
        description="Slow down and hold as the health signals say (`graph-migrator health`). `false` ignores them: for "
        "a rollout that cannot wait.",
    )
    rate: Annotated[str, StringConstraints(max_length=20)] | None = Field(
        None,
        description="At most this many graphs are sent in a time, like `20/min`; `s`, `min` or `h`. None: what is in "
        "flight limits it. For what lies behind the hops, such as caches that each moved graph empties.",
    )
    order: str = Field(
        "slug",
        max_length=200,
        description="In which order graphs are moved: `slug`, `size` (small ones first), `newest`, or `config:PATH` by "
        "a value in their config, like `config:$.tier`; those without it come last.",
    )
    shapes: bool = Field(
        True,
        description="Count rows, labels and edge types of each graph at the start to choose canaries. One pass over "
        "nodes and edges; `false` skips it.",
    )

    @field_validator("waves")
    @classmethod
    def _waves_grow_to_all(cls, waves: tuple[float, ...]) -> tuple[float, ...]:
        if not waves or waves[-1] != 100 or list(waves) != sorted(set(waves)) or waves[0] <= 0:
            raise ValueError("waves are growing percentages that end with 100, like 1,10,50,100")
        return waves

    @field_validator("rate")
    @classmethod
    def _rate_can_be_kept(cls, rate: str | None) -> str | None:
        if rate is not None:
            per_second(rate)
        return rate

    @field_validator("order")
    @classmethod
    def _order_is_known(cls, order: str) -> str:
        if order not in ORDERS and not order.startswith("config:$"):
            raise ValueError(
                f"graphs are ordered by {', '.join(ORDERS)} or config:PATH like config:$.tier, not {order!r}"
            )
        return order

    @field_validator("window")
    @classmethod
    def _window_is_one(cls, window: str | None) -> str | None:
        if window is not None:
            Window.parse(window)
        return window


ORDERS = ("slug", "size", "newest")
FASTEST = 1_000.0
"""Graphs a second. A turn of the controller is taken about twice a second, and sends some hundreds at most."""
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(s|min|h)")
_SECONDS = {"s": 1, "min": 60, "h": 3_600}


def per_second(rate: str) -> float:
    """Graphs a second of a rate like ``20/min``.

    Raises:
        ValueError: It is no rate, or one that cannot be kept.
    """
    found = _RATE.fullmatch(rate.strip())
    if found is None:
        raise ValueError(f"a rate is written like '20/min', with s, min or h, not {rate!r}")
    graphs = float(found[1]) / _SECONDS[found[2]]
    if graphs <= 0:
        raise ValueError(f"at the rate {rate!r} no graph would ever be sent; `rollout pause` holds a rollout")
    if graphs > FASTEST:
        raise ValueError(f"the rate {rate!r} cannot be kept: at most {FASTEST:g} graphs a second are sent")
    return graphs


SECONDS_AT_ONCE = 1.0
"""Seconds: what a rate allows in them may be sent at one moment, and one graph at least."""


def graphs_now(rate: float, since: float | None) -> int:
    """How many graphs a rate lets go at this moment.

    Args:
        rate: Graphs a second.
        since: Seconds since what was sent has used up the rate, negative before that; None where nothing was sent.
    """
    longest = max(SECONDS_AT_ONCE, 1 / rate)
    # A graph is let go at the end of its share, less what is lost in arithmetic.
    return max(0, int(rate * min(longest if since is None else since, longest) + 1e-6))


def config_path(order: str) -> str:
    """The JSON path of an order by config; one that finds nothing where the order is another."""
    return order.removeprefix("config:") if order.startswith("config:") else "$.nothing"


FROZEN = frozenset({"canaries", "waves", "order", "shapes"})
"""Knobs that decide which graph is in which stage; that is settled when a rollout starts."""
