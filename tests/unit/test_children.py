"""What a worker's main process sees of its pool: which processes died, and how."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from graph_migrator.tasks.children import Children
from tests.waiting import until


@dataclass(eq=False)
class Process:
    """As billiard keeps it: its exit code is there once it is out of the pool."""

    pid: int
    exitcode: int | None = None
    _controlled_termination: bool = False


@pytest.mark.parametrize(
    ("exitcode", "how"),
    [(-9, "signal 9 (SIGKILL)"), (-11, "signal 11 (SIGSEGV)"), (3, "exit code 3"), (-63, "signal 63")],
)
def test_a_process_that_leaves_the_pool_is_reported_once_and_how_it_died(exitcode: int, how: str) -> None:
    pool = [Process(1), Process(2)]
    children = Children(lambda: pool)
    assert children.deaths() == []
    pool.pop().exitcode = exitcode
    pool.append(Process(3))
    (death,) = children.deaths()
    assert (death.pid, death.how) == (2, how)
    assert children.deaths() == []


@pytest.mark.parametrize("exitcode", [0, 155])
def test_a_process_that_ended_in_order_is_no_death(exitcode: int) -> None:
    pool = [Process(1)]
    children = Children(lambda: pool)
    children.deaths()
    pool.pop().exitcode = exitcode
    assert children.deaths() == []


def test_a_process_that_the_worker_ended_itself_is_no_death() -> None:
    pool = [Process(1)]
    children = Children(lambda: pool)
    children.deaths()
    pool[0]._controlled_termination = True
    pool.pop().exitcode = -15
    assert children.deaths() == []


def test_a_pid_that_comes_again_is_another_process() -> None:
    pool = [Process(7)]
    children = Children(lambda: pool)
    children.deaths()
    pool.pop().exitcode = -9
    pool.append(Process(7))
    (death,) = children.deaths()
    assert death.pid == 7
    pool.pop().exitcode = -6
    (death,) = children.deaths()
    assert death.how == "signal 6 (SIGABRT)"


def test_a_process_that_was_forked_and_died_between_two_looks_is_reported_once() -> None:
    pool: list[Process] = [Process(1)]
    children = Children(lambda: pool)
    children.deaths()
    children.went_down(Process(2, exitcode=-9))
    (death,) = children.deaths()
    assert (death.pid, death.how) == (2, "signal 9 (SIGKILL)")
    first = pool.pop()
    first.exitcode = -9
    assert [each.pid for each in children.deaths()] == [1]
    children.went_down(first)
    assert children.deaths() == []


def test_a_process_that_ended_is_reported_before_the_pool_has_noticed_and_is_left_to_be_reaped() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    )
    pool = [Process(child.pid)]
    children = Children(lambda: pool)
    found = until(children.deaths, "it died")
    assert [(each.pid, each.how) for each in found] == [(child.pid, "signal 9 (SIGKILL)")]
    assert child.wait() == -9
    pool.pop().exitcode = -9
    assert children.deaths() == []


def test_a_process_that_is_about_to_be_forked_has_no_pid_yet() -> None:
    pool = [Process(None)]  # type: ignore[arg-type] # as billiard lists it
    children = Children(lambda: pool)
    assert children.deaths() == children.deaths() == []
