"""What a rollout is asked to do, and the plan that answers it."""

from __future__ import annotations

from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from graph_migrator.core.rollouts.statuses import StageKind
from graph_migrator.core.rollouts.strategy import Strategy


class RolloutRequest(BaseModel):
    """What a rollout is to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    graph_type: str
    to_version: int | None = Field(None, description="The target; None for the newest version of the type.")
    graphs: tuple[str, ...] | None = Field(
        None, description="Ids or slugs; None for all graphs below the target."
    )
    slug: str | None = Field(
        None, description="Only graphs whose slug fits this pattern, with `*` for any text."
    )
    from_version: int | None = Field(None, description="Only graphs at this version.")
    canary_graphs: tuple[str, ...] = Field(
        (), description="Slugs of canaries; chosen by shape where none is named."
    )
    strategy: Strategy = Strategy()
    where: str | None = Field(
        None,
        max_length=1_000,
        description='Only graphs whose `config` fulfils this JSON path predicate, like `$.tier == "gold"`.',
    )
    expected: int | None = Field(
        None,
        ge=1,
        description="How many graphs are to be moved. Where it is another number, nothing is done.",
    )
    held: bool = Field(False, description="Start it held, until `resume`.")
    automatic: bool = Field(False, description="Started by the policy of its type.")
    reverses: UUID | None = Field(None, description="The rollout whose graphs it moves back.")
    requested_by: str | None = None
    reason: str | None = Field(None, max_length=1_000)


class PlannedCanary(BaseModel):
    """A canary and why it was chosen."""

    graph: str
    why: str


class PlannedStage(BaseModel):
    """A stage and how many graphs it has."""

    number: int
    kind: StageKind
    size: int


class RolloutPlan(BaseModel):
    """What a rollout would do, or does."""

    rollout_id: UUID | None = Field(None, description="None for a plan; a plan writes nothing.")
    graph_type: str
    to_version: int
    graphs: int = Field(description="Graphs that are to be moved.")
    by_version: dict[int, int] = Field(description="The same by the version that they have.")
    hops: tuple[str, ...] = Field(description="All hops that are run, in order.")
    without_reverse: tuple[str, ...] = Field(description="Those that cannot be undone by a migration back.")
    skipped: dict[str, int] = Field(description="Selected graphs that are left as they are, by reason.")
    expected_seconds: float | None = Field(
        None, description="Work by the audit of the same hops; None where one of them has not run yet."
    )
    lacking: dict[str, str] = Field(
        {}, description="Live workers that do not have the code of these hops, and what they have."
    )
    canaries: tuple[PlannedCanary, ...]
    stages: tuple[PlannedStage, ...]
