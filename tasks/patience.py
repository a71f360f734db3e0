"""How long a process waits for a broker or a result backend that is away: a worker, a program, or the command line.

A worker that loses patience turns a hop that is done into a failure, so it waits for the better part of an hour. A
program that calls `migrate_graph.delay()` has users of its own; it gets an error after some 20 seconds. Before Celery
5.7, each pending result also asks the backend once more when it is deleted, and a program that ended while Redis was
away did not end.
"""

from __future__ import annotations

from typing import Any, Final

WORKER: Final = {"max_retries": 1000, "interval_start": 0.2, "interval_step": 0.5, "interval_max": 3}
PROGRAM: Final = {"max_retries": 12, "interval_start": 0.2, "interval_step": 0.3, "interval_max": 2}
COMMAND: Final = {"max_retries": 2, "interval_start": 0.2, "interval_step": 0.2, "interval_max": 0.5}


def settings_for(policy: dict[str, float]) -> dict[str, Any]:
    """Celery's settings by which it waits as a policy says."""
    return {
        "task_publish_retry_policy": policy,
        "result_backend_max_retries": policy["max_retries"],
        "result_backend_transport_options": {"retry_policy": policy},
    }
