"""The message that begins a chain is Celery's own, sent without the work that Celery does for any canvas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest
from celery import Task
from celery.exceptions import Ignore

from core.graph_types import Direction
from core.migrations import Dispatch
from core.planning import Step
from tasks import migrate
from tasks.celery import app

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
