"""Threads of which one runs at a time: the baton goes from the scheduler to an actor and back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.connections import Server
    from tests.simulation.world import Process


PATIENT = 20.0
"""Seconds that the server may take for anything; more, and somebody waits for ever."""


class Killed(BaseException):
    """The actor's process has died. Not an `Exception`: nothing in the core may catch it."""


class Actor:
    """One thing that a process does: carry out a message, sweep, or an operator's verb."""

    def __init__(self, stage: Stage, name: str, process: Process, body: Callable[[], Any]) -> None:
        self.stage = stage
        self.name = name
        self.process = process
        self.code = process.code  # a process ends what it does with the code that it began it with
        self.body = body
        self.baton = threading.Semaphore(0)
        self.pid: int | None = None  # of the server's process, while a statement runs in it
        self.blocked = False
        self.doomed = False
        self.died = False
        self.done = False
        self.calm = 0  # above zero: neither switched nor struck
        self.point = "start"
        self.stops: frozenset[str] = frozenset()
        self.outcome: Any = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        return self.name

    @property
    def runnable(self) -> bool:
        """Whether it would get on if it were given the baton."""
        return not self.done and (not self.blocked or self.pid is None)

    def _run(self) -> None:
        self.baton.acquire()
        _current.actor = self
        try:
            if not self.doomed:
                self.outcome = self.body()
                if self.doomed:
                    self.stage.unexpected(self, RuntimeError("its death was swallowed"))
            else:
                self.died = True
        except Killed:
            self.died = True
        except BaseException as error:
            self.outcome = error
            self.stage.unexpected(self, error)
        finally:
            self.done = True
            self.stage.returned.release()

    def switch(self) -> None:
        """Give the baton back and wait for it."""
        self.stage.returned.release()
        self.baton.acquire()
        if self.doomed:
            raise Killed

    def in_statement(self, pid: int, do: Callable[[], Any]) -> Any:
        """Run a statement that may block in the server; then somebody else gets the baton meanwhile."""
        with self.stage.mutex:
            self.pid = pid
        try:
            return do()
        finally:
            with self.stage.mutex:
                self.pid = None
                was_blocked = self.blocked
            if was_blocked:
                self.baton.acquire()
                self.blocked = False
                if self.doomed:
                    raise Killed


class Stage:
    """Where the actors are. The scheduler's side of the baton."""

    def __init__(self, server: Server, unexpected: Callable[[Actor, BaseException], None]) -> None:
        self.server = server
        self.unexpected = unexpected
        self.mutex = threading.Lock()
        self.returned = threading.Semaphore(0)
        self.actors: list[Actor] = []

    def resume(self, actor: Actor) -> None:
        """Let an actor run until it gives the baton back, ends, or blocks in the server."""
        actor.baton.release()
        self._await(actor)
        self.actors = [each for each in self.actors if not each.done]
        self._settle()

    def _await(self, actor: Actor) -> None:
        deadline = time.monotonic() + PATIENT
        while not self.returned.acquire(timeout=0.008):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{actor} does not come back from {actor.point}")
            pid = actor.pid
            if pid is not None and self.server.is_blocked(pid):
                with self.mutex:
                    if actor.pid is not None:
                        actor.blocked = True
                        return

    def _settle(self) -> None:
        """Wait until each blocked actor is known to be blocked still, or to be through."""
        deadline = time.monotonic() + PATIENT
        for actor in self.actors:
            while actor.blocked and (pid := actor.pid) is not None and not self.server.is_blocked(pid):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{actor} is not through, nor blocked, at {actor.point}")
                _pause.wait(0.0005)

    def settle_one(self) -> None:
        """All are blocked, by each other or by a time-out: wait until the server lets one of them go."""
        deadline = time.monotonic() + PATIENT
        while not any(actor.runnable for actor in self.actors):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{[f'{actor} at {actor.point}' for actor in self.actors]} wait for ever")
            _pause.wait(0.001)

    def settle(self) -> None:
        """The same, after something else than an actor has let go of a lock."""
        self._settle()


_current = threading.local()
_pause = threading.Event()


def current() -> Actor | None:
    """The actor whose thread this is; None for the scheduler."""
    return getattr(_current, "actor", None)
