"""Of what a migration's events say, Celery writes no lines of its own; of all else it does."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from celery.app import trace
from celery.worker import strategy

from graph_migrator.tasks.events import _leave_out_what_events_say

HOP, VERB = "tasks.run_hop", "tasks.lock_graph"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    filters = list(trace.logger.filters)
    with caplog.at_level(logging.INFO), caplog.at_level(logging.INFO, strategy.logger.name):
        _leave_out_what_events_say()
        yield caplog
    trace.logger.filters[:] = filters


def log(line: str, task: str) -> None:
    trace.info(line, {"id": "1", "name": task, "return_value": "", "runtime": 0.1, "exc": "away"})


def test_success_is_logged_for_tasks_that_have_no_events(lines: pytest.LogCaptureFixture) -> None:
    log(trace.LOG_SUCCESS, HOP)
    log(trace.LOG_SUCCESS, VERB)
    log(trace.LOG_RETRY, HOP)
    assert lines.messages == [
        "Task tasks.lock_graph[1] succeeded in 0.1s: ",
        "Task tasks.run_hop[1] retry: away",
    ]


def test_a_received_message_is_not_logged(lines: pytest.LogCaptureFixture) -> None:
    assert not strategy.logger.isEnabledFor(logging.INFO)
    strategy.logger.warning("a message that is not for us")
    assert lines.messages == ["a message that is not for us"]
