"""The HTTP API: the reads and verbs of the command line, as JSON under ``/api/v1``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID, uuid4

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, StringConstraints, TypeAdapter
from starlette.requests import HTTPConnection

from graph_migrator.console import reads, verbs
from graph_migrator.console.followed import Topic, View
from graph_migrator.console.problems import MEDIA_TYPE, Problem
from graph_migrator.console.reads import (
    GraphDetail,
    Overview,
    PlannedHop,
    RolloutDetail,
    TypeDetail,
    WorkersState,
)
from graph_migrator.console.services import Services
from graph_migrator.console.stream import EventStream, Stream
from graph_migrator.console.verbs import (
    BulkReport,
    BulkRetry,
    GraphVerb,
    PolicyRequest,
    RolloutBack,
    RolloutVerb,
    Sent,
)
from graph_migrator.core.access.tokens import Identity, Role
from graph_migrator.core.execution.operations import VerbReport
from graph_migrator.core.inspection import history as reading
from graph_migrator.core.inspection.attempts import AttemptStory, attempt_story
from graph_migrator.core.inspection.doctor import Finding
from graph_migrator.core.inspection.failures import FailureGroup
from graph_migrator.core.inspection.graphs import GraphSummary, find_graph
from graph_migrator.core.inspection.history import MigrationStory
from graph_migrator.core.inspection.requests import Requested, find_request, list_requests
from graph_migrator.core.rollouts import inspection as rollouts
from graph_migrator.core.rollouts.inspection import Change, HealthSignal, MemberState, RolloutSummary
from graph_migrator.core.rollouts.operations import RolloutVerbReport
from graph_migrator.core.rollouts.policy import Policy, PolicyState, policies
from graph_migrator.core.rollouts.request import RolloutPlan, RolloutRequest
from graph_migrator.core.rollouts.statuses import MemberStatus
from graph_migrator.core.statuses import MigrationStatus

Name = Annotated[str, Path(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]
Text = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00]*$")]
Version = Annotated[int, Query(ge=1, le=2**31 - 1)]
Limit = Annotated[int, Query(ge=1, le=1_000, description="How many at most.")]
State = Literal[
    "queued", "running", "pausing", "paused", "cancelling", "cancelled", "failed", "succeeded", "released",
    "idle", "owner", "partially-migrated",
]  # fmt: skip

STATES: Final = (
    *(s.value for s in MigrationStatus if s.is_live or s == "failed"),
    "idle",
    "owner",
    "partially-migrated",
)
"""What `/graphs` offers as a filter."""


def services_of(request: HTTPConnection) -> Services:
    """What the application works with."""
    found: Services = request.app.state.services
    return found


def who_asks(request: HTTPConnection) -> Identity:
    """Who sends the request; the gate has found it out."""
    found: Identity = request.state.who
    return found


def request_id(
    idempotency_key: Annotated[
        UUID | None,
        Header(
            description="A UUID of the caller's. It becomes the request id, so a repeated request acts once."
        ),
    ] = None,
) -> UUID:
    """The id of a request that changes something."""
    return idempotency_key or uuid4()


Deps = Annotated[Services, Depends(services_of)]
Who = Annotated[Identity, Depends(who_asks)]
RequestId = Annotated[UUID, Depends(request_id)]

_PROBLEM: Final[dict[str, Any]] = {
    "description": "What happened, the state now, and what to do next.",
    "content": {
        MEDIA_TYPE: {
            "schema": {
                "type": "object",
                "required": ["type", "title", "status", "detail"],
                "properties": {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "detail": {"type": "string"},
                    "code": {
                        "type": "string",
                        "description": "The error's code, as in the command line's logs.",
                    },
                    "exit_code": {"type": "integer"},
                    "fields": {"type": "object"},
                },
            }
        }
    },
}
PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    status: _PROBLEM for status in (400, 401, 403, 404, 409, 500, 503)
}

router = APIRouter(prefix="/api/v1", responses=PROBLEMS)


class Page(BaseModel):
    """Where the next page begins."""

    next: str | None = Field(description="Pass it as `after`; None on the last page.")


class Graphs(Page):
    """A page of graphs."""

    items: list[GraphSummary]


class Rollouts(Page):
    """A page of rollouts, the latest first."""

    items: list[RolloutSummary]


class Members(Page):
    """A page of graphs of a rollout, in the order in which they are moved."""

    items: list[MemberState]


class Changes(Page):
    """A page of changes of a rollout, oldest first; the next page has earlier ones."""

    items: list[Change]


class Stories(Page):
    """A page of migrations of a graph, oldest first; the next page has earlier ones."""

    items: list[MigrationStory]


class Requests(Page):
    """A page of requests, the latest first."""

    items: list[Requested]


def tagged(request: Request, found: BaseModel | Sequence[BaseModel]) -> Response:
    """The answer of a read, with an ETag; 304 where the caller has this very answer."""
    adapter: TypeAdapter[Any] = TypeAdapter(type(found) if isinstance(found, BaseModel) else list[Any])
    body = adapter.dump_json(found if isinstance(found, BaseModel) else list(found))
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    asked = {each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")}
    if tag in asked:
        return Response(status_code=304, headers={"etag": tag})
    return Response(body, media_type="application/json", headers={"etag": tag})


# ── reads ───────────────────────────────────────────────────────────────────────────────────────────


@router.get("/overview", response_model=Overview)
def get_overview(request: Request, services: Deps) -> Response:
    """What is wrong now, the oldest first, and what moves."""
    return tagged(request, reads.first_page(services))


@router.get("/graphs", response_model=Graphs)
def get_graphs(
    request: Request,
    services: Deps,
    graph_type: Annotated[Text | None, Query(alias="type")] = None,
    version: Version | None = None,
    state: State | None = None,
    behind: bool = False,
    unreachable: bool = False,
    after: Text | None = None,
    limit: Limit = 50,
) -> Response:
    """Graphs, a page at a time."""
    found = reads.graphs(
        services, graph_type=graph_type, version=version, state=state, behind=behind,
        unreachable=unreachable, after=after, limit=limit,
    )  # fmt: skip
    return tagged(request, Graphs(items=found, next=found[-1].slug if len(found) == limit else None))


@router.get("/graphs/{graph}", response_model=GraphDetail)
def get_graph(request: Request, services: Deps, graph: Name) -> Response:
    """What state a graph is in, why, and what can be done."""
    return tagged(request, reads.graph(services, graph))


@router.get("/graphs/{graph}/history", response_model=Stories)
def get_history(
    request: Request, services: Deps, graph: Name, after: UUID | None = None, limit: Limit = 20
) -> Response:
    """The migrations of a graph with their attempts."""
    found = reading.history(services.engine, graph, before=after, limit=limit)
    following = str(found[0].report.migration_id) if len(found) == limit else None
    return tagged(request, Stories(items=found, next=following))


@router.get("/graphs/{graph}/plan", response_model=list[PlannedHop])
def get_plan(
    request: Request,
    services: Deps,
    graph: Name,
    to: Version | None = None,
) -> Response:
    """The hops from where a graph is to a version. Nothing is run."""
    return tagged(request, reads.plan(services, graph, to))


@router.get("/failures", response_model=list[FailureGroup])
def get_failures(
    request: Request,
    services: Deps,
    graph_type: Annotated[Text | None, Query(alias="type")] = None,
    hop: Text | None = None,
    error: Text | None = None,
) -> Response:
    """Failed graphs by hop and cause."""
    return tagged(request, reads.failures(services, graph_type=graph_type, hop=hop, error=error))


@router.get("/attempts/{attempt}", response_model=AttemptStory)
def get_attempt(
    request: Request, services: Deps, who: Who, attempt: Annotated[int, Path(ge=1, le=2**63 - 1)]
) -> Response:
    """One attempt; its traceback for operators only."""
    story = attempt_story(services.engine, attempt)
    return tagged(request, reads.without_traceback(story, may_see=who.may(Role.OPERATOR)))


@router.get("/rollouts", response_model=Rollouts)
def get_rollouts(
    request: Request, services: Deps, live: bool = False, after: UUID | None = None, limit: Limit = 50
) -> Response:
    """Rollouts, the latest first; with `live` those that have not ended."""
    with services.executors.borrow() as executor:
        found = rollouts.list_rollouts(executor, live=live, after=after, limit=limit)
    return tagged(request, Rollouts(items=found, next=str(found[-1].id) if len(found) == limit else None))


@router.get("/rollouts/{rollout}", response_model=RolloutDetail)
def get_rollout(request: Request, services: Deps, rollout: Name) -> Response:
    """How far a rollout is, why it does not move, what failed and what can be done."""
    return tagged(request, reads.rollout(services, rollout))


@router.get("/rollouts/{rollout}/graphs", response_model=Members)
def get_members(
    request: Request,
    services: Deps,
    rollout: Name,
    status: MemberStatus | None = None,
    after: Text | None = None,
    limit: Limit = 100,
) -> Response:
    """Graphs of a rollout in the order in which they are moved."""
    with services.executors.borrow() as executor:
        found = rollouts.members(executor, rollout, status=status, after=after or None, limit=limit)
    return tagged(request, Members(items=found, next=found[-1].place if len(found) == limit else None))


@router.get("/rollouts/{rollout}/changes", response_model=Changes)
def get_changes(
    request: Request,
    services: Deps,
    rollout: Name,
    after: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None,
    limit: Limit = 50,
) -> Response:
    """What was changed in a rollout, by whom and why."""
    with services.executors.borrow() as executor:
        found = rollouts.changes(executor, rollout, before=after, limit=limit)
    return tagged(request, Changes(items=found, next=str(found[0].id) if len(found) == limit else None))


@router.get("/rollouts/{rollout}/back", response_model=RolloutPlan)
def get_back(
    request: Request,
    services: Deps,
    who: Who,
    rollout: Name,
    to: Version | None = None,
) -> Response:
    """What moving back would do: its graphs, hops and stages. Nothing is written."""
    return tagged(request, verbs.plan_back(services, who, rollout, to))


@router.get("/health", response_model=list[HealthSignal])
def get_health(request: Request, services: Deps) -> Response:
    """The health signals as the workers read them last: value, limits, and since when."""
    with services.executors.borrow() as executor:
        return tagged(request, rollouts.health(executor))


@router.get("/types", response_model=list[TypeDetail])
def get_types(request: Request, services: Deps) -> Response:
    """Graph types: hops, fingerprints, graphs by version, workers."""
    return tagged(request, reads.types(services))


@router.get("/policies", response_model=list[PolicyState])
def get_policies(request: Request, services: Deps) -> Response:
    """Whether graphs of a type that are behind move by themselves, and what that waits for."""
    with services.executors.borrow() as executor:
        return tagged(request, policies(executor))


@router.get("/workers", response_model=WorkersState)
def get_workers(request: Request, services: Deps) -> Response:
    """The workers as they answered last."""
    return tagged(request, reads.workers(services))


@router.get("/requests", response_model=Requests)
def get_requests(request: Request, services: Deps, after: Text | None = None, limit: Limit = 50) -> Response:
    """Every request: who, what, outcome."""
    found = list_requests(services.engine, before=place_of(after), limit=limit)
    return tagged(request, Requests(items=found, next=place(found[-1]) if len(found) == limit else None))


def place(last: Requested) -> str:
    """Where the page after this request begins."""
    return f"{last.at.isoformat()}~{last.id}"


def place_of(after: str | None) -> tuple[datetime, str] | None:
    """What `place` gave, read again.

    Raises:
        Problem: It is nothing that `place` gave.
    """
    if not after:
        return None
    at, _, last = after.partition("~")
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise Problem(400, "InvalidRequest", "`after` is no place in this list. Pass what `next` said.")
    return moment, last


@router.get("/requests/{request_id}", response_model=Requested)
def get_request(request: Request, services: Deps, request_id: UUID) -> Response:
    """What became of a call for a graph."""
    found = find_request(services.engine, str(request_id))
    if found is None:
        detail = f"No worker has begun request {request_id} yet, or there is none."
        raise Problem(404, "UnknownRequest", detail)
    return tagged(request, found)


@router.get("/doctor", response_model=list[Finding])
def get_doctor(request: Request, services: Deps) -> Response:
    """The checks of `doctor`, half a minute old at most."""
    seen = services.findings.look(wait_seconds=20)
    if seen is None:
        raise Problem(503, "NotChecked", "The checks have not ended yet. Ask again in a moment.")
    return tagged(request, seen.value)


# ── verbs ───────────────────────────────────────────────────────────────────────────────────────────


@router.post("/graphs/{graph}/{verb}")
def post_graph_verb(
    services: Deps,
    who: Who,
    request_id: RequestId,
    graph: Name,
    verb: Literal["migrate", "retry", "pause", "resume", "cancel", "release", "lock", "unlock"],
    options: GraphVerb | None = None,
) -> VerbReport | Sent:
    """Carry out a verb on a graph. `migrate` is sent to the workers, all others are done with the answer."""
    return verbs.graph_verb(services, who, request_id, graph, verb, options or GraphVerb())


@router.post("/failures/retry")
def post_retry_many(services: Deps, who: Who, request_id: RequestId, asked: BulkRetry) -> BulkReport:
    """Retry the failed graphs that a filter selects, if they are as many as expected."""
    return verbs.retry_many(services, who, request_id, asked)


class HoldRequest(BaseModel):
    """Why all rollouts are held, or not any more."""

    reason: verbs.Reason | None = None


@router.post("/rollouts")
def post_rollout(services: Deps, who: Who, request_id: RequestId, asked: RolloutRequest) -> RolloutPlan:
    """Start a rollout."""
    return verbs.start_rollout(services, who, request_id, asked)


@router.post("/rollouts/plan")
def post_rollout_plan(services: Deps, asked: RolloutRequest) -> RolloutPlan:
    """Say what a rollout would do. Nothing is written."""
    return verbs.plan_rollout(services, asked)


@router.post("/rollouts/hold")
def post_hold(
    services: Deps, who: Who, request_id: RequestId, asked: HoldRequest | None = None
) -> RolloutVerbReport:
    """Hold all rollouts, also those that start later."""
    return verbs.hold_all(services, who, request_id, asked.reason if asked else None, on=True)


@router.post("/rollouts/unhold")
def post_unhold(
    services: Deps, who: Who, request_id: RequestId, asked: HoldRequest | None = None
) -> RolloutVerbReport:
    """End the hold of all rollouts."""
    return verbs.hold_all(services, who, request_id, asked.reason if asked else None, on=False)


@router.post("/rollouts/{rollout}/back")
def post_back(
    services: Deps, who: Who, request_id: RequestId, rollout: Name, options: RolloutBack | None = None
) -> RolloutPlan:
    """Start the rollout that moves back what this one has moved."""
    return verbs.back_rollout(services, who, request_id, rollout, options or RolloutBack())


@router.post("/rollouts/{rollout}/{verb}")
def post_rollout_verb(
    services: Deps,
    who: Who,
    request_id: RequestId,
    rollout: Name,
    verb: Literal["promote", "pause", "resume", "retry", "cancel", "skip", "set"],
    options: RolloutVerb | None = None,
) -> RolloutVerbReport:
    """Carry out a verb on a rollout."""
    return verbs.rollout_verb(services, who, request_id, rollout, verb, options or RolloutVerb())


@router.post("/policies/{graph_type}")
def post_policy(
    services: Deps, who: Who, request_id: RequestId, graph_type: Name, asked: PolicyRequest
) -> Policy:
    """Set a type's policy. What is not given is as it was."""
    return verbs.change_policy(services, who, request_id, graph_type, asked)


# ── the stream ──────────────────────────────────────────────────────────────────────────────────────


@router.get(
    "/events",
    response_class=Response,
    responses={
        200: {
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
            "description": "Events, for ever.",
        },
        204: {"description": "What was followed has ended, and the caller has all of it."},
    },
)
async def get_events(
    request: Request,
    services: Deps,
    graph: Annotated[str | None, Query(max_length=100, pattern=r"^[^\x00]+$")] = None,
    rollout: Annotated[str | None, Query(max_length=100, pattern=r"^[^\x00]+$")] = None,
    view: View = View.OPERATOR,
    last_event_id: Annotated[str | None, Header(max_length=20_000)] = None,
) -> Response:
    """Changes as they are committed: of everything, of one graph or of one rollout.

    Begins with `snapshot`. `view=user` is for an end user's progress bar: a state, a fraction and a safe sentence.
    """
    if graph and rollout:
        raise Problem(400, "InvalidRequest", "`graph` and `rollout` exclude each other.")
    if view is View.USER and not graph:
        raise Problem(400, "InvalidRequest", "`view=user` needs a `graph`.")
    topic = await to_thread.run_sync(_topic, services, graph, rollout, view)
    stream: Stream = request.app.state.stream
    client = await stream.join(topic, last_event_id)
    return Response(status_code=204) if client is None else EventStream(stream, client)


def _topic(services: Services, graph: str | None, rollout: str | None, view: View) -> Topic:
    if graph:
        return Topic(graph=find_graph(services.engine, graph).id, view=view)
    if rollout:
        with services.executors.borrow() as executor:
            return Topic(rollout=rollouts.show(executor, rollout).rollout.id)
    return Topic()
