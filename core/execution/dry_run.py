"""A dry run: the real hops on the real rows, and then everything rolled back."""

from __future__ import annotations

import time
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine

from graph_migrator.core.execution.in_process import StepWithin, migrate_within
from graph_migrator.core.planning import Step
from graph_migrator.core.recorded_errors import name_of
from graph_migrator.core.reports import HopReport
from graph_migrator.core.store.redaction import safe_message


class HopTrial(BaseModel):
    """How one hop went."""

    model_config = ConfigDict(frozen=True)

    hop: HopReport
    seconds: float
    checked: bool = Field(description="Whether its checks and models held; False where it was cut short.")
    rows_tried: int | None = Field(None, description="Where it was cut short after some batches.")
    rows_in_all: int | None = None
    expected_seconds: float | None = Field(None, description="Extrapolated from the rows that were tried.")


class DryRun(BaseModel):
    """What a migration would do. Nothing of it was kept."""

    model_config = ConfigDict(frozen=True)

    graph: str
    graph_type: str
    from_version: int
    to_version: int
    hops: tuple[HopTrial, ...] = ()
    not_tried: tuple[str, ...] = Field((), description="Hops behind one that was cut short.")
    error: str | None = Field(None, description="What stopped it: the migration would fail there.")
    seconds: float = 0.0


def dry_run(engine: Engine, graph: str | UUID, target: int | None = None, *, batches: int = 10) -> DryRun:
    """Try a migration on the graph's own rows in one transaction, and roll it back.

    Writers of this graph wait while it lasts. A batched hop is tried for so many batches and the rest
    extrapolated; hops behind it cannot be tried then, because their rows do not exist.

    Args:
        engine: The database.
        graph: Id or slug.
        target: The version to reach; None for the newest.
        batches: How many batches of a batched hop to try.

    Raises:
        GraphMigratorError: As `core.execution.begin.begin_migration`; nothing is tried then.
    """
    trials: list[HopTrial] = []
    begun: StepWithin | None = None
    error, started = None, time.monotonic()
    with engine.connect() as connection, connection.begin() as transaction:
        try:
            for step in migrate_within(connection, graph, target, most_batches=batches):
                if begun is None:
                    begun = step
                else:
                    trials.append(_trial(step))
        except Exception as raised:
            if begun is None:
                raise
            stopped = begun.planned[len(trials)]
            error = f"{_named(stopped)}: {name_of(raised)}: {safe_message(raised)}"
        finally:
            transaction.rollback()
    assert begun is not None  # noqa: S101 - it begins or raises
    report = begun.report
    untried = begun.planned[len(trials) + (error is not None) :]
    return DryRun(
        graph=report.graph,
        graph_type=report.graph_type,
        from_version=report.version,  # a migration that is resumed has come further than its beginning
        to_version=report.to_version,
        hops=tuple(trials),
        not_tried=tuple(map(_named, untried)),
        error=error,
        seconds=time.monotonic() - started,
    )


def _named(step: Step) -> str:
    return f"v{step.from_version}→v{step.to_version} {step.name}"


def _trial(step: StepWithin) -> HopTrial:
    hop, seen = step.report.hops[-1], step.seen
    if seen is None:
        return HopTrial(hop=hop, seconds=step.seconds, checked=True)
    return HopTrial(
        hop=hop,
        seconds=step.seconds,
        checked=False,
        rows_tried=seen.done,
        rows_in_all=seen.total,
        expected_seconds=step.seconds * seen.total / max(seen.done, 1),
    )
