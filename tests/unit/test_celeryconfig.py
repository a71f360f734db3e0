"""Celery ignores a misspelt setting without a word; this does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery.app.defaults import NAMESPACES, flatten

from graph_migrator import celeryconfig

KNOWN = {name for name, _ in flatten(NAMESPACES)}


def unknown_settings(config: Any) -> list[str]:
    return [name for name in vars(config) if not name.startswith("_") and name not in KNOWN]


def test_every_setting_is_one_that_celery_knows() -> None:
    assert unknown_settings(celeryconfig) == []
    assert len([name for name in vars(celeryconfig) if name in KNOWN]) > 20


@pytest.mark.parametrize("misspelt", ["task_ack_late", "worker_prefetch_multiplyer", "TASK_ACKS_LATE"])
def test_a_misspelt_setting_is_found(misspelt: str) -> None:
    assert unknown_settings(SimpleNamespace(**{misspelt: True, "task_acks_late": True, "_own": 1})) == [
        misspelt
    ]


def test_messages_never_carry_code() -> None:
    assert celeryconfig.accept_content == ["json"]
    assert celeryconfig.task_serializer == celeryconfig.result_serializer == "json"


def test_a_message_outlives_the_worker_that_dies_with_it() -> None:
    assert celeryconfig.task_acks_late is True
    assert celeryconfig.task_reject_on_worker_lost is True


def test_a_stale_message_cannot_overwrite_a_failure_with_started() -> None:
    assert celeryconfig.task_track_started is False
