"""A scripted run: a test says who does what, and where each is held up, struck or killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from graph_migrator import HopContext
from tests.simulation.actors import Actor
from tests.simulation.broker import Message, Step
from tests.simulation.connections import Link
from tests.simulation.explorer import come_to_rest
from tests.simulation.world import Platform, Process, World


class Script:
    """Nothing happens that the test did not ask for."""

    def __init__(self) -> None:
        self.strikes: dict[str, str] = {}
        self.raises: list[str | Callable[[HopContext], Any]] = []
        self.redelivers = False
        self.sees_deaths = False

    def at(self, actor: Actor, point: str, link: Link | None, last: Callable[[], Any] | None) -> str:
        strike = self.strikes.pop(point, None)
        return strike or ("switch" if point in actor.stops else "go")

    def in_hop(self, actor: Actor) -> str | Callable[[HopContext], Any]:
        return self.raises.pop(0) if self.raises else "go"

    def requeued(self, message: Message) -> bool:
        return self.redelivers

    def seen_to_die(self) -> bool:
        return self.sees_deaths


class Story(World):
    """A world that takes the steps that a test names."""

    def __init__(self, platform: Platform, kind: str = "plain") -> None:
        self.script = Script()
        self.last_call = Message("", "")
        super().__init__(platform, kind, self.script, workers=3)
        self.observe()

    # ── doing ───────────────────────────────────────────────────────────────────────────────────────

    def find(self, task: str = "run_hop") -> Message:
        """The first such message in the queue."""
        return next(message for message in self.queue if message.task == task)

    def take(
        self,
        what: str | Message = "run_hop",
        *,
        until: str | None = None,
        keep: bool = False,
        code: str | None = None,
    ) -> Actor:
        """A free worker takes a message and carries it out, to the end or until it is held up at a point."""
        message = what if isinstance(what, Message) else self.find(what)
        keep = keep or message not in self.queue  # an old copy turns up
        process = next(each for each in self.workers if each.idle)
        if code is not None:
            process.code = code
        return self.go(self.deliver(message, process, keep=keep), until)

    def go(self, actor: Actor, until: str | None = None) -> Actor:
        """An actor goes on, to the end or until it is held up at a point."""
        actor.stops = frozenset({until} if until else ())
        self.resume(actor)
        self.raise_violation()
        if until is not None:
            assert actor.point == until, f"{actor} is {actor.point} instead of {until}"
            assert not actor.done
        return actor

    def goes_to_its_end(self, actor: Actor) -> Any:
        """The actor is through, and was not blocked; what it ended with."""
        self.go(actor)
        assert actor.done, f"{actor} waits at {actor.point}"
        return actor.outcome

    def strike(self, point: str, how: str) -> None:
        """Once, at this point: die, lose, in_flight, terminate …"""
        self.script.strikes[point] = how

    def begun(self, target: int | None = None, *, wiped: bool = False) -> Message:
        """A migration that has begun; its `migrate_graph` message."""
        message = self.last_call = self.call("migrate_graph", target=target)
        self.take("migrate_graph")
        if wiped:
            self.queue.clear()
        return message

    def migration_step(self, from_version: int, tail: Message) -> Message:
        """The `run_hop` that came before `tail` in its chain."""
        first = Step(from_version, from_version + 1, self.next_id("hop-"))
        return replace(tail, id=first.id, chain=(first, *tail.chain))

    def failed(self, target: int | None = None) -> Message:
        """A migration whose first hop has failed."""
        message = self.begun(target)
        self.script.raises.append("error")
        self.take()
        assert self.status == "failed"
        return message

    def do(self, verb: str, **arguments: Any) -> Any:
        """An operator's command, to its end."""
        return self.goes_to_its_end(self.command(verb, **arguments))

    def swept(self, *, until: str | None = None) -> Any:
        """A sweep: to its end, or until it is held up."""
        return self.go(self.sweep(), until)

    def reported(self) -> None:
        """A worker's main process records how its pool's process died."""
        self.goes_to_its_end(self.report())

    def rest(self) -> None:
        """All that is under way ends; then everything must be in order."""
        come_to_rest(self)
        self.check_end()

    # ── seeing ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def migration(self) -> dict[str, Any]:
        """The latest migration."""
        latest: dict[str, Any] = self.snapshot()["migrations"][-1]
        return latest

    @property
    def status(self) -> str:
        return str(self.migration["status"])

    @property
    def dispatch(self) -> int:
        return int(self.migration["dispatch"])

    @property
    def version(self) -> int:
        return int(self.snapshot()["graph"]["version"])

    @property
    def partially_migrated(self) -> Any:
        return self.snapshot()["graph"]["half"]

    @property
    def attempts(self) -> list[str]:
        """All attempts, as ``1>2 lost``."""
        return _attempts_in(self.snapshot())

    @property
    def all_attempts(self) -> list[list[str]]:
        """Those of each graph, the main one's first."""
        return [_attempts_in(self.snapshot(graph)) for graph in self.graphs]

    @property
    def all_statuses(self) -> list[str]:
        """That of the latest migration of each graph."""
        return [str(self.snapshot(graph)["migrations"][-1]["status"]) for graph in self.graphs]

    def answer(self, message: Message) -> str:
        return self.results.state(message.id)


def _attempts_in(found: dict[str, Any]) -> list[str]:
    return [f"{a['from']}>{a['to']} {a['status']}" for a in found["attempts"]]


__all__ = ["Process", "Story"]


DONE = ["1>2 succeeded", "2>3 succeeded", "3>4 succeeded"]
