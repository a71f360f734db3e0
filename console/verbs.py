"""What the console changes. Each verb is the function that the command line calls, under a request id.

A request that comes twice acts once: the id stands in Postgres with the answer, in the transaction of the verb itself
where it is one on a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final
from uuid import UUID, uuid5

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from graph_migrator.console.reads import MOST_AT_ONCE
from graph_migrator.console.services import Services
from graph_migrator.core.access.repeated import begin_request, end_request
from graph_migrator.core.access.tokens import Identity
from graph_migrator.core.errors import (
    GraphMigratorError,
    InvalidRequest,
)
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.model import Caller, Dispatch
from graph_migrator.core.execution.operations import VerbReport
from graph_migrator.core.execution.recorded import record_outcome
from graph_migrator.core.graph_types.registry import graph_type as type_named
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection.failures import failed_graphs
from graph_migrator.core.inspection.graphs import GraphSummary, find_graph, require_free
from graph_migrator.core.inspection.requests import find_request
from graph_migrator.core.planning import make_plan
from graph_migrator.core.rollouts import operations as rollouts
from graph_migrator.core.rollouts.back import back
from graph_migrator.core.rollouts.operations import Operator, RolloutVerbReport
from graph_migrator.core.rollouts.policy import MOST_SETTLE_SECONDS, Mode, Policy, set_policy
from graph_migrator.core.rollouts.request import RolloutPlan, RolloutRequest
from graph_migrator.core.rollouts.start import plan, start
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import Verb
from graph_migrator.core.store.session import Executor

Reason = Annotated[str, StringConstraints(max_length=1_000, pattern=r"^[^\x00]*$")]


class GraphVerb(BaseModel):
    """The options of a verb on a graph."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    migration_id: UUID | None = Field(
        None, description="The migration that is meant; refused where the graph is under another one."
    )
    reason: Reason | None = Field(None, description="Why; it is recorded in the history. Read by `migrate`.")
    to: int | None = Field(
        None, ge=1, le=2**31 - 1, description="`migrate`: the version; the newest by default."
    )
    accept_new_code: bool = Field(False, description="`retry`: go on in a hop whose code has changed.")
    force: bool = Field(False, description="`release`: also where it is live, or half-way through a hop.")
    whole: bool = Field(False, description="`release`: its rows were corrected; declare it whole.")


class Sent(BaseModel):
    """A call that a worker carries out."""

    graph: str
    verb: str = "migrate"
    request_id: UUID
    message: str


class RolloutVerb(BaseModel):
    """The options of a verb on a rollout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: Reason | None = None
    accept_new_code: bool = Field(False, description="`resume`: go on with the code that this console has.")
    error_group: str | None = Field(None, max_length=200, description="`retry`: only failures of this group.")
    graphs: tuple[str, ...] = Field((), max_length=1_000, description="`skip`: ids or slugs.")
    knob: str | None = Field(None, max_length=100, description="`set`: which.")
    value: str | None = Field(None, max_length=200, description="`set`: to what.")


class RolloutBack(BaseModel):
    """How to move back what a rollout has moved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    to: int | None = Field(
        None, ge=1, le=2**31 - 1, description="The version; needed where its graphs came from several."
    )
    strategy: Strategy | None = Field(None, description="As a new rollout's by default, with canaries again.")
    reason: Reason | None = None


class PolicyRequest(BaseModel):
    """A type's policy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode
    settle_seconds: float | None = Field(None, ge=0, le=MOST_SETTLE_SECONDS)
    strategy: Strategy | None = Field(None, description="Of the rollouts that it starts.")
    reason: Reason | None = None


class BulkRetry(BaseModel):
    """Which failed graphs to retry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    graph_type: str | None = None
    hop: str | None = None
    error: str | None = Field(None, description="Only those whose error's type or message contains this.")
    graphs: int = Field(
        ge=1, description="How many are expected. Where it is another number, nothing is done."
    )


class BulkReport(BaseModel):
    """What became of a request about many graphs."""

    retried: int
    refused: dict[str, str] = Field(description="By graph, why.")


GRAPH_VERBS: Final = ("migrate", "retry", "pause", "resume", "cancel", "release", "lock", "unlock")
ROLLOUT_VERBS: Final = ("promote", "pause", "resume", "retry", "cancel", "skip", "set")


def graph_verb(
    services: Services, who: Identity, request_id: UUID, name: str, verb: str, options: GraphVerb
) -> VerbReport | Sent:
    """Carry out a verb on a graph.

    Raises:
        GraphMigratorError: It was refused; nothing was changed.
    """
    found = find_graph(services.engine, name)
    _require_same_request(services, request_id, verb, found)
    if verb == "migrate":
        return _migrate(services, who, request_id, found, options)
    caller = Caller(str(request_id), who.name, options.reason)
    carry_out = _graph_verbs(found.slug, caller, options)[verb]
    with services.executors.borrow() as executor:
        try:
            done = carry_out(executor)
        except GraphMigratorError as refusal:  # recorded: the request may come again in another state
            record_outcome(executor, caller, found.id, None, refusal, Verb(verb))
            raise
    report, dispatch = done if isinstance(done, tuple) else (done, None)
    return _sent(services, report, dispatch)


_GraphVerb = Callable[[Executor], VerbReport | tuple[VerbReport, Dispatch | None]]


def _graph_verbs(slug: str, caller: Caller, options: GraphVerb) -> dict[str, _GraphVerb]:
    meant = options.migration_id
    return {
        "retry": lambda e: operations.retry(
            e, slug, caller, accept_new_code=options.accept_new_code, migration_id=meant
        ),
        "pause": lambda e: operations.pause(e, slug, caller, migration_id=meant),
        "resume": lambda e: operations.resume(e, slug, caller, migration_id=meant),
        "cancel": lambda e: operations.cancel(e, slug, caller, migration_id=meant),
        "release": lambda e: operations.release(
            e, slug, caller, force=options.force, whole=options.whole, migration_id=meant
        ),
        "lock": lambda e: operations.set_read_only(e, slug, caller, on=True),
        "unlock": lambda e: operations.set_read_only(e, slug, caller, on=False),
    }


def _require_same_request(services: Services, request_id: UUID, verb: str, found: GraphSummary) -> None:
    known = find_request(services.engine, str(request_id))
    if known is not None and (known.verb, known.subject) != (verb, found.slug):
        raise InvalidRequest("Idempotency-Key", "it was used for another request")


def _sent(services: Services, report: VerbReport, dispatch: Dispatch | None) -> VerbReport:
    """Publish what a verb has left to be run. It is committed, so an unavailable broker only delays it."""
    if dispatch is None:
        return report
    try:
        services.broker.send(dispatch)
    except Exception:  # noqa: BLE001 - whatever the broker's driver raises: recovery sends it
        late = f"; the broker is out of reach, so a worker sends it within {settings().deadline_seconds:g} s"
        return report.model_copy(update={"message": report.message + late})
    return report


def _migrate(
    services: Services, who: Identity, request_id: UUID, found: GraphSummary, options: GraphVerb
) -> Sent:
    if find_request(services.engine, str(request_id)) is None:
        # Refused now where a worker would refuse.
        require_free(services.engine, found)
        kind = type_named(found.graph_type)
        make_plan(found.slug, kind, found.version, options.to, undoable_to=found.undoable_to)
        caller = Caller(str(request_id), who.name, options.reason)
        services.broker.migrate(services.executors, found, options.to, caller)
    message = "sent; a worker begins it, or refuses it in the state that the graph has then"
    return Sent(graph=found.slug, request_id=request_id, message=message)


# ── rollouts ────────────────────────────────────────────────────────────────────────────────────────


def rollout_verb(
    services: Services, who: Identity, request_id: UUID, which: str, verb: str, options: RolloutVerb
) -> RolloutVerbReport:
    """Carry out a verb on a rollout.

    Raises:
        GraphMigratorError: It was refused; nothing was changed.
    """
    operator = Operator(who.name, options.reason)
    if verb == "set" and (options.knob is None or options.value is None):
        raise InvalidRequest("knob", "`set` needs a knob and a value")
    if verb == "skip" and not options.graphs:
        raise InvalidRequest("graphs", "`skip` needs at least one graph")
    calls: dict[str, Callable[[Executor], RolloutVerbReport]] = {
        "promote": lambda e: rollouts.promote(e, which, operator),
        "pause": lambda e: rollouts.pause(e, which, operator),
        "resume": lambda e: rollouts.resume(e, which, operator, accept_new_code=options.accept_new_code),
        "retry": lambda e: rollouts.retry(e, which, operator, error_group=options.error_group),
        "cancel": lambda e: rollouts.cancel(e, which, operator),
        "skip": lambda e: rollouts.skip(e, which, options.graphs, operator),
        "set": lambda e: rollouts.set_knob(e, which, options.knob or "", options.value or "", operator),
    }
    found = _once(services, who, request_id, f"rollout {verb}", which, calls[verb])
    return RolloutVerbReport.model_validate(found)


def hold_all(
    services: Services, who: Identity, request_id: UUID, reason: str | None, *, on: bool
) -> RolloutVerbReport:
    """Hold all rollouts, or end that hold."""
    operator = Operator(who.name, reason)
    verb = rollouts.hold_all if on else rollouts.unhold_all
    name = "rollout hold" if on else "rollout unhold"
    found = _once(services, who, request_id, name, "all", lambda e: verb(e, operator))
    return RolloutVerbReport.model_validate(found)


def start_rollout(
    services: Services, who: Identity, request_id: UUID, request: RolloutRequest
) -> RolloutPlan:
    """Start a rollout. It has the request's id.

    Raises:
        GraphMigratorError: It was refused; nothing was changed.
    """
    mine = request.model_copy(update={"requested_by": who.name})

    def carry_out(executor: Executor) -> RolloutPlan:
        return start(executor, mine, rollout_id=request_id)

    found = _once(services, who, request_id, "rollout start", request.graph_type, carry_out)
    return RolloutPlan.model_validate(found)


def back_rollout(
    services: Services, who: Identity, request_id: UUID, which: str, options: RolloutBack
) -> RolloutPlan:
    """Start the rollout that moves back what a rollout has moved. It has the request's id.

    Raises:
        GraphMigratorError: It was refused; nothing was changed.
    """
    operator = Operator(who.name, options.reason)

    def carry_out(executor: Executor) -> RolloutPlan:
        asked = back(executor, which, operator, to_version=options.to, strategy=options.strategy)
        return start(executor, asked, rollout_id=request_id)

    found = _once(services, who, request_id, "rollout back", which, carry_out)
    return RolloutPlan.model_validate(found)


def plan_back(services: Services, who: Identity, which: str, to: int | None) -> RolloutPlan:
    """Say what moving back would do. Nothing is written."""
    with services.executors.borrow() as executor:
        return plan(executor, back(executor, which, Operator(who.name), to_version=to))


def change_policy(
    services: Services, who: Identity, request_id: UUID, graph_type: str, asked: PolicyRequest
) -> Policy:
    """Set a type's policy. What is not given is as it was.

    Raises:
        GraphMigratorError: It was refused; nothing was changed.
    """

    def carry_out(executor: Executor) -> Policy:
        return set_policy(
            executor, graph_type, asked.mode, Operator(who.name, asked.reason),
            strategy=asked.strategy, settle_seconds=asked.settle_seconds,
        )  # fmt: skip

    return Policy.model_validate(_once(services, who, request_id, "policy", graph_type, carry_out))


def plan_rollout(services: Services, request: RolloutRequest) -> RolloutPlan:
    """Say what a rollout would do. Nothing is written."""
    with services.executors.borrow() as executor:
        return plan(executor, request)


def _once(
    services: Services,
    who: Identity,
    request_id: UUID,
    verb: str,
    subject: str,
    call: Callable[[Executor], BaseModel],
) -> dict[str, Any]:
    """Carry a request out, or give the answer that it had."""
    known = begin_request(services.engine, request_id, verb, subject, who.name)
    if known is not None:
        return known
    try:
        with services.executors.borrow() as executor:
            outcome = call(executor).model_dump(mode="json")
    except GraphMigratorError as refusal:
        end_request(services.engine, request_id, refusal)
        raise
    end_request(services.engine, request_id, outcome)
    return outcome


# ── many graphs ─────────────────────────────────────────────────────────────────────────────────────


def retry_many(services: Services, who: Identity, request_id: UUID, asked: BulkRetry) -> BulkReport:
    """Retry failed graphs that a filter selects.

    Raises:
        InvalidRequest: It selects another number of graphs than expected, or too many. Nothing was changed.
    """
    subject = " ".join(f"{k}={v}" for k, v in asked.model_dump().items() if v is not None)
    known = begin_request(services.engine, request_id, "bulk retry", subject, who.name)
    if known is not None:
        return BulkReport.model_validate(known)
    try:
        chosen = [
            each
            for each in failed_graphs(
                services.engine, graph_types(), graph_type=asked.graph_type, hop=asked.hop, error=asked.error
            )
            if each.can_be_retried
        ]
        if len(chosen) != asked.graphs:
            raise InvalidRequest(
                "graphs",
                f"the filter selects {len(chosen):,} graphs by now, not {asked.graphs:,}; look again",
            )
        if len(chosen) > MOST_AT_ONCE:
            raise InvalidRequest("graphs", f"at most {MOST_AT_ONCE:,} at once; a rollout moves more")
    except GraphMigratorError as refusal:
        end_request(services.engine, request_id, refusal)
        raise
    refused: dict[str, str] = {}
    for each in chosen:
        options = GraphVerb(migration_id=each.migration_id)
        try:
            graph_verb(services, who, uuid5(request_id, each.graph), each.graph, "retry", options)
        except GraphMigratorError as error:
            refused[each.graph] = error.message
    report = BulkReport(retried=len(chosen) - len(refused), refused=refused)
    end_request(services.engine, request_id, report.model_dump(mode="json"))
    return report
