"""Celery ignores a misspelt setting silently; this does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import celery
import pytest
from celery import Celery
from celery.app.defaults import NAMESPACES, flatten
from celery.backends.redis import RedisBackend
from celery.signals import celeryd_init

from graph_migrator import app, celeryconfig
from graph_migrator.tasks.patience import PROGRAM, WORKER, settings_for

KNOWN = {name for name, _ in flatten(NAMESPACES)}


NEWER = {  # settings that the oldest Celery we run with does not know, and the version that brought each
    "worker_soft_shutdown_timeout": (5, 5),
    "worker_enable_soft_shutdown_on_idle": (5, 5),
    "task_retry_on_worker_lost": (5, 7),
}
HERE = tuple(map(int, celery.__version__.split(".")[:2]))


def unknown_settings(config: Any) -> list[str]:
    return [name for name in vars(config) if not name.startswith("_") and name not in KNOWN]


def test_every_setting_is_one_that_celery_knows() -> None:
    assert set(unknown_settings(celeryconfig)) == {name for name, since in NEWER.items() if since > HERE}
    assert len([name for name in vars(celeryconfig) if name in KNOWN]) > 20


@pytest.mark.parametrize("misspelt", ["task_ack_late", "worker_prefetch_multiplyer", "TASK_ACKS_LATE"])
def test_a_misspelt_setting_is_found(misspelt: str) -> None:
    assert unknown_settings(SimpleNamespace(**{misspelt: True, "task_acks_late": True, "_own": 1})) == [
        misspelt
    ]


def test_a_worker_waits_for_long_and_a_program_does_not() -> None:
    ours = Celery("graph_migrator", set_as_current=False)
    ours.config_from_object("graph_migrator.celeryconfig")
    assert ours.conf.result_backend_max_retries == ours.conf.task_publish_retry_policy["max_retries"] < 20
    before = {name: app.conf[name] for name in settings_for(PROGRAM)}
    try:
        celeryd_init.send("other@host", instance=SimpleNamespace(app=ours))
        assert app.conf.result_backend_max_retries < 20
        celeryd_init.send("w1@host", instance=SimpleNamespace(app=app))
        assert app.conf.result_backend_max_retries == 1_000
        assert app.conf.task_publish_retry_policy == WORKER
        # A new one: that of another test keeps the policy of its time, and may be of another kind.
        assert RedisBackend(app=app, url="redis://localhost/0").retry_policy["max_retries"] == 1_000
    finally:
        app.conf.update(before)


def test_messages_never_carry_code() -> None:
    assert celeryconfig.accept_content == ["json"]
    assert celeryconfig.task_serializer == celeryconfig.result_serializer == "json"


def test_a_message_outlives_the_worker_that_dies_with_it() -> None:
    assert celeryconfig.task_acks_late is True
    assert celeryconfig.task_reject_on_worker_lost is True


def test_a_stale_message_cannot_overwrite_a_failure_with_started() -> None:
    assert celeryconfig.task_track_started is False
