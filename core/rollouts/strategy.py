"""How a rollout proceeds: its knobs, each with its default and the default's reason."""

from __future__ import annotations

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
        0, ge=0, description="The same after each wave. 0: by then the canaries have stood for long."
    )
    gate: Literal["manual", "auto"] = Field(
        "manual",
        description="What opens the first wave: `promote`, or the end of the bake. Manual: somebody should have "
        "looked at the canaries once.",
    )
    max_failures: int = Field(
        3,
        ge=1,
        description="So many failed graphs of one error group hold the rollout. One or two may be odd graphs; three "
        "of one cause are a fault.",
    )
    max_failure_percent: float = Field(
        1.0,
        ge=0,
        le=100,
        description="More failed of the last 200 settled than this, and at least three, hold it: many causes at once.",
    )
    max_crashes: int = Field(
        2,
        ge=1,
        description="So many graphs whose hop killed its worker hold it. Each has taken down several processes.",
    )
    stall_seconds: float = Field(
        1_800,
        gt=0,
        description="So long without a commit of any graph in flight holds it. Half an hour: a batch takes about a "
        "second, a long plain hop some minutes.",
    )
    window: Annotated[str, StringConstraints(max_length=100)] | None = Field(
        None,
        description="When it may dispatch, like `Mon-Fri 01:00-05:00 Europe/Berlin`; always where none is set.",
    )
    packs: bool = Field(
        True,
        description="Move small graphs in packs: one task moves several, one after another, each hop in a transaction "
        "of its own as ever. What a small graph costs is mostly its messages. `false` sends each as a chain.",
    )
    pack_rows: int = Field(
        2_000,
        ge=0,
        description="Graphs of so many rows go in packs, at most; canaries, retried graphs and graphs that were not "
        "counted (`--shapes false`) never do. A hop over 2,000 rows takes a fraction of a second.",
    )
    pack_seconds: float = Field(
        5,
        gt=0,
        le=600,
        description="How long a pack should take; its size follows from the packs before it. Five seconds make its "
        "message cheap, and are soon over when a worker shuts down.",
    )
    order: Literal["slug", "size", "newest"] = Field(
        "slug", description="In which order graphs are moved: by slug, small ones first, or the newest first."
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

    @field_validator("window")
    @classmethod
    def _window_is_one(cls, window: str | None) -> str | None:
        if window is not None:
            Window.parse(window)
        return window


FROZEN = frozenset({"canaries", "waves", "order", "shapes"})
"""Knobs that decide which graph is in which stage; that is settled when a rollout starts."""
