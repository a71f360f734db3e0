"""The message that begins a chain is Celery's own, sent without the work that Celery does for any canvas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from celery import Task
from celery.exceptions import Ignore
from celery.utils.saferepr import saferepr
from celery.worker.request import Request
from celery.worker.state import successful_requests, task_ready

from graph_migrator.core.execution.model import Dispatch
from graph_migrator.core.graph_types.definition import Direction
from graph_migrator.core.planning import Step
from graph_migrator.tasks import migrate
from graph_migrator.tasks.celery import app
from graph_migrator.tasks.results import BEGUN, MigrateRequest

MIGRATION = UUID(int=7)
CALLBACK = {
    "task": "notify",
    "args": [],
    "kwargs": {},
    "options": {},
    "subtask_type": None,
    "immutable": True,
}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The messages that would be sent, headers and body together."""
    messages: list[dict[str, Any]] = []

    def publish(_producer: object, name: str, message: Any, **_: object) -> None:
        args, kwargs, embed = json.loads(json.dumps(message.body, default=dict))
        messages.append({"name": name, "args": args, "kwargs": kwargs, "embed": embed, **message.headers})

    monkeypatch.setattr(app.amqp, "send_task_message", publish)
    monkeypatch.setattr(app.backend, "on_task_call", lambda *_: {})
    return messages


@pytest.fixture
def task() -> Iterator[Task]:
    """`migrate_graph`, being run."""
    task: Task = migrate.migrate_graph
    yield task
    while task.request_stack:
        task.pop_request()


def deliver(task: Task, hops: int, **request: Any) -> None:
    """What is sent once a migration has begun."""
    steps = tuple(Step(v, v + 1, f"hop{v}", "f", Direction.FORWARD, False) for v in range(1, hops + 1))
    task.push_request(id="call", root_id="root", called_directly=False, is_eager=False, **request)
    with suppress(Ignore):
        migrate._replace(task, Dispatch(MIGRATION, "g", "t", 1, "call", steps))
    task.pop_request()


def comparable(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what differs from one to the next, and without the keys that say nothing."""
    ids = [message["id"], *(each["options"]["task_id"] for each in message["embed"]["chain"] or [])]
    assert ids[1:2] in ([], ["call"]), "the chain is kept from its end"
    assert len(set(ids)) == len(ids)
    named = {one: f"id {place}" for place, one in enumerate(ids)}
    text = json.dumps(_bare(message), sort_keys=True)
    for one, name in named.items():
        text = text.replace(json.dumps(one), json.dumps(name))
    found: dict[str, Any] = json.loads(text)
    return found


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _bare(v) for k, v in value.items() if v not in (None, [], {}, False) and k != "reply_to"}
    return [_bare(each) for each in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("hops", [1, 2, 5])
def test_the_message_is_the_one_that_replace_sends(
    sent: list[dict[str, Any]], task: Task, monkeypatch: pytest.MonkeyPatch, hops: int
) -> None:
    deliver(task, hops)
    monkeypatch.setattr(migrate, "_is_linked", lambda _: True)
    deliver(task, hops)
    ours, celerys = map(comparable, sent)
    assert ours == celerys
    assert ours["root_id"] == "root"


@pytest.mark.parametrize("linked", ["callbacks", "errbacks", "chain"])
def test_what_is_linked_to_the_call_is_linked_to_the_chain(
    sent: list[dict[str, Any]], task: Task, linked: str
) -> None:
    deliver(task, 2, **{linked: [CALLBACK]})
    (message,) = sent
    assert "notify" in json.dumps(message["embed"], default=dict)


@pytest.fixture
def delivered(task: Task) -> tuple[MigrateRequest, list[tuple[str, dict[str, Any]]]]:
    """A message as a worker's main process has it, and the events that it sends."""
    shown: list[tuple[str, dict[str, Any]]] = []
    request = object.__new__(MigrateRequest)
    request._app, request._task, request.id = app, task, "call"
    request._eventer = SimpleNamespace(enabled=True, send=lambda kind, **fields: shown.append((kind, fields)))
    return request, shown


def test_a_begun_call_is_not_shown_as_done(
    delivered: tuple[MigrateRequest, list[tuple[str, dict[str, Any]]]],
) -> None:
    request, shown = delivered
    request.send_event("task-succeeded", result=saferepr(f"{BEGUN} 3 hops"), runtime=0.1)
    assert shown == []
    request.send_event("task-started")
    request.send_event("task-succeeded", result=saferepr({"status": "succeeded"}), runtime=0.1)
    assert [kind for kind, _ in shown] == ["task-started", "task-succeeded"]


def test_the_id_of_a_begun_call_is_not_known_as_done(
    delivered: tuple[MigrateRequest, list[tuple[str, dict[str, Any]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last hop bears it. Celery would drop that hop's message where it comes a second time."""
    request, _ = delivered
    monkeypatch.setattr(Request, "acknowledge", lambda _: None)
    task_ready(request, successful=True)
    assert "call" in successful_requests
    request.acknowledge()
    assert "call" not in successful_requests
