"""What an operator can do to a graph or a rollout now: each verb, what it will do, and why not where it cannot.

The same edges of the state machine decide here and where the verb is carried out.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection.graph_state import GraphState
from graph_migrator.core.statuses import EDGES, MigrationStatus, Verb


class Action(BaseModel):
    """One verb on one thing."""

    model_config = ConfigDict(frozen=True)

    verb: str
    label: str
    effect: str = Field(description="What it will do.")
    command: str = Field(description="The same on the command line.")
    why_not: str | None = Field(None, description="Why it is not allowed now; None where it is.")
    dangerous: bool = Field(False, description="Whether it should be asked for twice.")


def graph_actions(state: GraphState) -> list[Action]:
    """The verbs on one graph."""
    graph, slug = state.graph, state.graph.slug
    status = graph.status
    partial = graph.partially_migrated
    kind = graph_types().get(graph.graph_type)
    newest = kind.newest if kind is not None else None

    def action(
        verb: Verb,
        label: str,
        effect: str,
        why_not: str | None,
        *,
        options: str = "",
        dangerous: bool = False,
    ) -> Action:
        command = f"graph-migrator {verb} {slug}{options}"
        return Action(
            verb=verb, label=label, effect=effect, command=command, why_not=why_not, dangerous=dangerous
        )

    def needs(edge: str) -> str | None:
        sources = EDGES[edge].sources
        if status in sources:
            return None
        now = f"its migration is {status}" if status is not None else "it is not being migrated"
        return f"{now}; this needs one that is {' or '.join(sorted(sources))}"

    retry = None if partial or status is MigrationStatus.FAILED else needs("retry")
    unfinished = state.checkpoint_done is not None
    force = " It stands in the middle of a hop, so it is released partially migrated." if unfinished else ""
    return [
        action(
            Verb.MIGRATE, "Migrate", f"Move it to v{newest} along its hops." if newest else "Move it along its hops.",
            _not_migrated(state, kind),
        ),
        action(Verb.RETRY, "Retry", "Go on where it stopped, with the code that is there now.", retry),
        action(Verb.PAUSE, "Pause", "Stop at the next hop or batch boundary. Nothing is undone.", needs("ask_pause")),
        action(Verb.RESUME, "Resume", "Let it go on.", needs("resume") if status != "pausing" else None),
        action(
            Verb.CANCEL, "Cancel", "End it at the next boundary, at the version that it has then.",
            needs("ask_cancel"), dangerous=True,
        ),
        action(
            Verb.RELEASE, "Declare whole", f"Its rows were corrected by hand: it is whole at v{graph.version} again.",
            None, options=" --whole", dangerous=True,
        ) if partial else action(
            Verb.RELEASE, "Release", f"End its migration and let writers in at v{graph.version}.{force}",
            needs("force_release" if unfinished else "release"), options=" --force" if unfinished else "",
            dangerous=True,
        ),
        action(
            Verb.UNLOCK if graph.read_only == "owner" else Verb.LOCK,
            "Unlock" if graph.read_only == "owner" else "Lock",
            "Let writers in again." if graph.read_only == "owner" else
            "Make it read-only for its owner. Migrations still run.",
            None,
        ),
    ]  # fmt: skip


def _not_migrated(state: GraphState, kind: GraphType | None) -> str | None:
    graph = state.graph
    if kind is None:
        return f"its type {graph.graph_type!r} is not known here"
    if not kind.oldest <= graph.version <= kind.newest:
        return f"its type does not know v{graph.version} here"
    if graph.partially_migrated:
        return "it is partially migrated: retry it"
    if graph.status is not None:
        return f"its migration is {graph.status}" + (": retry it" if graph.status == "failed" else "")
    if graph.version == kind.newest:
        return f"it is at v{graph.version}, the newest version"
    return None
