"""What Postgres has recorded of a migration or a call: its report, the rest of its chain, its outcome."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from graph_migrator.core.errors import InvalidRequest
from graph_migrator.core.execution.model import Caller, Dispatch
from graph_migrator.core.planning import Step
from graph_migrator.core.recorded_errors import json_args, name_of, own_error
from graph_migrator.core.reports import MigrationReport
from graph_migrator.core.statuses import Verb
from graph_migrator.core.store.protocol import LoadRemainingChain, LoadReport, RecordOutcome
from graph_migrator.core.store.session import Executor


def load_report(executor: Executor, migration_id: UUID) -> MigrationReport:
    """The report of a migration as it stands.

    Raises:
        LookupError: There is no such migration.
    """
    found = executor.call(LoadReport(migration=migration_id))
    if found is None:
        raise LookupError(f"there is no migration {migration_id}")
    return MigrationReport.model_validate(found)


def load_dispatch(executor: Executor, migration_id: UUID, *, expect: int | None = None) -> Dispatch:
    """The hops of a live migration that are not yet applied.

    Raises:
        LookupError: The migration is not there, or at another dispatch than expected.
    """
    rest = executor.call(LoadRemainingChain(migration=migration_id))
    number = rest.number if rest is not None else None
    if rest is None or expect not in {None, number}:
        raise LookupError(f"migration {migration_id} is at dispatch {number}, not {expect}")
    steps = tuple(map(Step.from_json, rest.steps))
    return Dispatch(migration_id, rest.graph, rest.graph_type, rest.number, rest.task_id, steps)


def record_outcome(
    executor: Executor,
    caller: Caller,
    graph: str | UUID,
    target: int | None,
    outcome: MigrationReport | Exception,
    verb: Verb = Verb.MIGRATE,
) -> None:
    """Remember how a call ended that began nothing: a no-op or a refusal. Only calls that have a task id.

    Raises:
        psycopg2.errors.SerializationFailure: A duplicate of this call has ended in another way meanwhile; whoever
            looks again answers as that one did.
    """
    if caller.task_id is None:
        return
    if isinstance(outcome, MigrationReport):
        stored: dict[str, Any] = {"report": outcome.model_dump(mode="json")}
    else:
        stored = {"error": {"type": name_of(outcome), "args": json_args(outcome)}}
    executor.call(
        RecordOutcome(
            task=caller.task_id,
            verb=verb,
            graph=str(graph),
            target=target,
            outcome=stored,
            by=caller.requested_by,
        )
    )


def recorded_outcome(outcome: dict[str, Any] | None) -> dict[str, Any]:
    """How a call ended before: the report that it returned, as it was recorded.

    Raises:
        InvalidRequest: The id belongs to a call of another verb.
        GraphMigratorError: The call was refused, with this error.
    """
    if outcome is None:
        raise InvalidRequest("task_id", "this id was used for another verb")
    if "error" in outcome:
        raise own_error(outcome["error"]["type"], outcome["error"]["args"])
    report: dict[str, Any] = outcome.get("report", outcome)  # a verb's report is recorded as it is
    return report
