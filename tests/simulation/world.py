"""The simulated world: processes that run the real core, a broker, a clock that only moves on request.

Everything between Celery and the core that `tasks/` does is done here in the same order: what is published,
what is stored in the result store, what is requeued.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Protocol
from unittest.mock import patch
from uuid import UUID

import psycopg2
import psycopg2.errors
from psycopg2.extensions import TRANSACTION_STATUS_IDLE
from sqlalchemy import Engine, event

from graph_migrator import HopContext, MigrationReport
from graph_migrator.core.decisions import HopMessage, Ignored, Later
from graph_migrator.core.errors import GraphBusy, GraphMigratorError
from graph_migrator.core.execution import begin, failpoints, operations, recovery, straight, together
from graph_migrator.core.execution.model import (
    Applied,
    Caller,
    Dispatch,
    Failed,
    HopOutcome,
    Sharded,
    Worker,
)
from graph_migrator.core.execution.run_hop import run_hop as run_one_hop
from graph_migrator.core.execution.straight import FreeGraph, Straight, run_straight
from graph_migrator.core.execution.together import run_together
from graph_migrator.core.graph_types import registry
from graph_migrator.core.planning import make_plan
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import Verb
from graph_migrator.core.store import locks
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.errors import Failure, classify
from graph_migrator.core.store.locks import Wait
from graph_migrator.core.store.protocol import BeginTogether, ReportDeath
from graph_migrator.core.store.session import Executors
from tests.simulation import kinds
from tests.simulation.actors import PATIENT, Actor, Killed, Stage, current
from tests.simulation.broker import Message, Results, Step
from tests.simulation.connections import Link, Server
from tests.simulation.invariants import MARKS, REQUESTS, SNAPSHOT, Violation, check, check_end

SETTINGS = {
    "GRAPH_MIGRATOR_MAX_CRASHES": "3",
    "GRAPH_MIGRATOR_MAX_INTERRUPTIONS": "6",
    "GRAPH_MIGRATOR_MAX_TRANSIENT_TRIES": "4",
    # Postgres counts this time, and simulated time does not pass there: the second mismatch ends the wait.
    "GRAPH_MIGRATOR_DEPLOY_SECONDS": "0.000001",
    "GRAPH_MIGRATOR_BATCH_TARGET_SECONDS": "0.000001",  # batches stay as small as they are declared
}


class Chooser(Protocol):
    """Decides what happens at a point that an actor passes."""

    def at(self, actor: Actor, point: str, link: Link | None, last: Callable[[], Any] | None) -> str:
        """One of go, switch, die, linger, lose, terminate, in_flight."""
        ...

    def in_hop(self, actor: Actor) -> str | Callable[[HopContext], Any]:
        """One of go, error, shaky, serialization, stray, COMMIT, ROLLBACK; or what else it does."""
        ...

    def requeued(self, message: Message) -> bool:
        """Whether the broker delivers the message of a killed process again."""
        ...

    def seen_to_die(self) -> bool:
        """Whether a killed process's worker lives on, and will say so; else the whole worker is gone."""
        ...


class Process:
    """A worker's process, or a person's command: its code, its sessions, and what it does just now."""

    def __init__(self, world: World, name: str, code: str = "A") -> None:
        self.world = world
        self.name = name
        self.code = code
        self.links: list[Link] = []
        self.generation = 0
        self.executors = Executors(world.engine)
        self.actor: Actor | None = None
        self.message: Message | None = None

    @property
    def pid(self) -> int:
        """A new one after each death."""
        return 1 + self.generation

    @property
    def idle(self) -> bool:
        return self.actor is None or self.actor.done

    def cut(self, **how: Any) -> None:
        """All its sessions end; it lives on."""
        for link in [*self.links]:
            link.cut(**how)

    def kill(self, *, lingers: bool = False) -> None:
        """It is gone, with all it knew. A new one starts in its place."""
        if self.message is not None and self.world.chooser.seen_to_die():
            self.world.unreported.append((self.name, self.pid))
        self.generation += 1
        self.cut(lingers=lingers)
        self.links = []
        self.executors = Executors(self.world.engine)
        message, self.message = self.message, None
        if message is not None and self.world.chooser.requeued(message):
            self.world.queue.append(message)


class EndlessWait(Wait):
    """It ends when the lock is free, or in a deadlock.

    If it ended at a time, a machine that stands still for a while would make another run of the same seed.
    """

    def piece_ms(self) -> int:
        return 3_600_000

    def is_over(self) -> bool:
        return False

    def let_writers_pass(self) -> None:
        actor = current()
        if actor is not None and not actor.calm:
            actor.switch()


class Platform:
    """What all worlds share: a database with our schema, its sessions, and an engine."""

    def __init__(self, url: str) -> None:
        self.server = Server(url)
        self.server.query("SET deadlock_timeout = '20ms'")
        ((database,),) = self.server.query("SELECT current_database()")
        self.server.query(f"ALTER DATABASE {database} SET deadlock_timeout = '20ms'")
        self.server.query(f"PREPARE snapshot (uuid) AS {SNAPSHOT}")
        self.server.query(f"PREPARE marks (uuid[]) AS {MARKS}")
        self.releases = kinds.releases()
        self.world: World | None = None
        self.engine = self._make_engine(url)
        self.worlds = 0

    def _make_engine(self, url: str) -> Engine:
        engine = make_engine(url, use_native_hstore=False)
        engine.connect().close()  # SQLAlchemy asks the server for its version once
        # From here on connections are ours; what SQLAlchemy registers on real ones, the core has registered.
        engine.pool.dispatch.connect.clear()

        @event.listens_for(engine, "do_connect")
        def _connect(*_: Any) -> Any:
            actor = current()
            assert self.world is not None
            assert actor is not None
            return Link(self.world, actor.process)

        return engine

    @contextmanager
    def running(self) -> Iterator[None]:
        """Simulated time and settings, for this process, until it is left."""
        with (
            patch.dict(os.environ, SETTINGS),
            patch.object(begin, "Wait", EndlessWait),
            patch.object(locks, "Wait", EndlessWait),
            patch.object(failpoints, "hook", lambda point: self.world and self.world.at(point)),
            patch.object(kinds, "meddle", lambda ctx: self.world and self.world.in_hop(ctx)),
            patch.object(together, "LONGEST_SECONDS", 3_600.0),  # as of an EndlessWait
            patch.object(begin, "uuid4", lambda: self.world and self.world.new_id()),
            patch.object(straight, "uuid4", lambda: self.world and self.world.new_id()),
        ):
            settings.cache_clear()
            try:
                yield
            finally:
                settings.cache_clear()
                registry.reset()

    def clean(self) -> None:
        """Forget all graphs there ever were."""
        tables = (
            "graphs",
            "nodes",
            "edges",
            "migrations",
            "hop_attempts",
            "losses",
            "checkpoints",
            "shards",
            "rebuilds",
            "rebuilt_rows",
            "rebuild_changes",
            "requests",
        )
        guarded = ("graphs", "nodes", "edges", "migrations", "hop_attempts", "losses")
        self.server.query(
            "BEGIN; "
            + "".join(f"ALTER TABLE {table} DISABLE TRIGGER USER; " for table in guarded)
            + f"TRUNCATE {', '.join(tables)}; "
            + "".join(f"ALTER TABLE {table} ENABLE TRIGGER USER; " for table in guarded)
            + "".join(
                f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}; "
                for table, name in self.server.query(
                    "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE tgenabled = 'A' "
                    "AND tgrelid::regclass::text = ANY (%s)",
                    list(guarded),
                )
            )
            + "COMMIT"
        )

    def close(self) -> None:
        self.server.close()
        self.engine.dispose()


@dataclass
class Tracked:
    """A graph whose invariants are looked at after every commit."""

    id: UUID
    slug: str
    start: int
    """The version that it was made at."""
    mended: bool = False
    before: dict[str, Any] | None = None
    mark: str = ""


class World:
    """One run: one graph and those that were moved together with it, some processes, a broker, a result store."""

    def __init__(self, platform: Platform, kind: str, chooser: Chooser, *, workers: int = 2) -> None:
        self.platform = platform
        platform.world = self
        self.server = platform.server
        self.engine = platform.engine
        self.chooser = chooser
        self.kind = kind
        self.stage = Stage(self.server, self._unexpected)
        self.queue: list[Message] = []
        self.results = Results()
        self.lingering: list[tuple[Any, Callable[[], Any] | None]] = []
        self.unreported: list[tuple[str, int]] = []
        self.points: Counter[str] = Counter()
        self.trace: list[str] = []
        self.violation: Violation | None = None
        self.ends: set[tuple[str, str]] = set()
        self._ids = itertools.count(1)
        self.workers = [Process(self, f"w{i}") for i in range(1, workers + 1)]
        self._uuids = Random(0)
        platform.worlds += 1
        self.slug = f"g{platform.worlds}"
        self.graphs = [Tracked(self._make_graph(self.slug, 1), self.slug, 1)]
        self.groups: dict[str, list[Tracked]] = {}

    @property
    def graph_id(self) -> UUID:
        """The graph that everything is about."""
        return self.graphs[0].id

    @property
    def before(self) -> dict[str, Any] | None:
        """All there was about it after the last commit."""
        return self.graphs[0].before

    def new_id(self) -> UUID:
        """In the same order in each run of the same seed, as the server may go by it; and in no other world."""
        return UUID(int=self._uuids.getrandbits(64) << 64 | self.platform.worlds)

    def _make_graph(self, slug: str, version: int) -> UUID:
        graph_id = self.new_id()
        self.server.query(
            "INSERT INTO graphs (id, slug, graph_type, version) VALUES (%s, %s, %s, %s)",
            str(graph_id), slug, self.kind, version,
        )  # fmt: skip
        self.server.query(
            "INSERT INTO nodes (graph_id, id, label, properties) "
            "SELECT %s, unnest(%s), 'Node', '{\"trail\": []}'", str(graph_id), list(kinds.NODES),
        )  # fmt: skip
        return graph_id

    # ── the points that actors pass ─────────────────────────────────────────────────────────────────

    def at(self, point: str, link: Link | None = None, last: Callable[[], Any] | None = None) -> None:
        """An actor passes a point: let it go on, or not."""
        actor = current()
        if actor is None:
            return
        if link is None:
            self.points[point] += 1
        actor.point = point
        if actor.calm:
            return
        if self.violation is not None:
            raise Killed
        what = self.chooser.at(actor, point, link, last)
        if what == "go":
            return
        if what == "switch":
            self.note(f"{actor} is held up {_at(point)}")
            actor.switch()
            return
        self.points[f"*{point}"] += 1
        if what in {"die", "linger"}:
            self.note(f"{actor} dies {_at(point)}" + (", its sessions linger" if what == "linger" else ""))
            actor.process.kill(lingers=what == "linger")
            actor.doomed = True
            raise Killed
        if what == "lose":
            self.note(f"{actor} loses its connection {_at(point)}")
            actor.process.cut()
        elif what == "terminate":
            self.note(f"{actor}'s session is terminated {_at(point)}")
            for each in actor.process.links:
                each.terminate()
        else:
            assert what == "in_flight"
            assert link is not None
            self.note(f"{actor} loses its connection {_at(point)}, which is in flight")
            link.cut(lingers=True, last=last)

    def in_hop(self, ctx: HopContext) -> Callable[[HopContext], None] | None:
        """A hop's code runs: it may raise. Returns what it does at its end."""
        actor = current()
        assert actor is not None
        what = "go" if actor.calm else self.chooser.in_hop(actor)
        if what == "go":
            return None
        if callable(what):
            return what(ctx)
        self.note(f"{actor}: the hop raises ({what})")
        if what == "error":
            raise ValueError("the hop has a bug")
        if what == "shaky":
            raise kinds.Shaky("try again")
        if what == "stray":
            self._write_to_another(ctx)
            return None
        if what in {"COMMIT", "ROLLBACK"}:
            ctx.connection.exec_driver_sql(what)
            raise ValueError("the hop has a bug")
        ctx.connection.exec_driver_sql("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$")
        return None

    def _write_to_another(self, ctx: HopContext) -> None:
        """The hop writes rows of a graph that another migration has taken: that is refused."""
        for each in self.graphs:
            if each.id != ctx.graph.id and each.before and each.before["graph"]["claim"] is not None:
                ctx.execute("UPDATE nodes SET label = label WHERE graph_id = :other", {"other": str(each.id)})
                claimed = "SELECT 1 FROM graphs WHERE id = %s AND migration_id IS NOT NULL"
                if self.server.query(claimed, str(each.id)):
                    raise Violation(f"the hop of {ctx.graph.slug} wrote rows of {each.slug}")
                return

    def observe(self) -> None:
        """Check what holds after every commit."""
        if self.violation is not None:
            return
        waited = any(actor.blocked for actor in self.stage.actors)
        marks = dict(
            self.server.query("EXECUTE marks (%s::uuid[])", [str(graph.id) for graph in self.graphs])
        )
        for graph in self.graphs:
            if graph.mark == marks[graph.id]:
                continue
            graph.mark = marks[graph.id]
            now = self.snapshot(graph)
            try:
                check(now, graph.before, start=graph.start, mended=graph.mended, waited=waited)
            except Violation as violation:
                self.violation = (
                    violation
                    if graph is self.graphs[0]
                    else Violation(f"{graph.slug}, moved together with others: {violation}")
                )
            graph.before = now
            self.ends |= {(m["id"], m["status"]) for m in now["migrations"]}

    def snapshot(self, graph: Tracked | None = None) -> dict[str, Any]:
        """All there is about a graph; about the one that everything is about, by default."""
        graph = graph or self.graphs[0]
        found: dict[str, Any] = self.server.query("EXECUTE snapshot (%s)", str(graph.id))[0][0]
        return found

    def note(self, what: str) -> None:
        """Write a line of the trace."""
        what = _OF_THIS_RUN.sub("…", what)
        self.trace.append(what.replace(f"/{self.slug}", "").replace(self.slug, "graph"))

    def _unexpected(self, actor: Actor, error: BaseException) -> None:
        if self.violation is None:
            self.violation = Violation(f"{actor} ended with {type(error).__name__}: {error}")
            self.violation.__cause__ = error

    # ── what the scheduler can do ───────────────────────────────────────────────────────────────────

    def start(self, process: Process, name: str, body: Callable[[], Any]) -> Actor:
        """Let a process do something; it does not run yet."""
        actor = Actor(self.stage, name, process, body)
        process.actor = actor
        self.stage.actors.append(actor)
        return actor

    def resume(self, actor: Actor) -> None:
        """Let an actor go on until it stops."""
        if registry._registered != self.platform.releases[actor.code]:
            registry._registered.clear()
            registry._registered.update(self.platform.releases[actor.code])
        self.stage.resume(actor)

    def publish(self, message: Message) -> None:
        self.queue.append(message)

    def deliver(self, message: Message, process: Process, *, keep: bool = False) -> Actor:
        """Hand a message to a worker's process. `keep`: it is delivered again, too."""
        if not keep:
            self.queue.remove(message)
        process.message = message
        self.note(f"{process.name} takes {message}" + (" (it stays in the queue, too)" if keep else ""))
        return self.start(
            process, f"{process.name}: {message.task}", lambda: self._carry_out(process, message)
        )

    def kill(self, actor: Actor, *, lingers: bool = False) -> None:
        """Kill a process from outside, while its actor is held up."""
        self.note(f"{actor} is killed {_at(actor.point)}" + (", its sessions linger" if lingers else ""))
        self.points[f"*{actor.point}"] += 1
        actor.process.kill(lingers=lingers)
        actor.doomed = True
        self.stage.resume(actor)

    def end_lingering(self) -> None:
        """A session whose client is gone notices it; what it had in hand is done."""
        real, last = self.lingering.pop(0)
        if last is not None:
            try:
                if real.info.transaction_status == TRANSACTION_STATUS_IDLE:
                    with real.cursor() as cursor:
                        cursor.execute("SET lock_timeout = '20ms'")
                last()
            except (psycopg2.Error, Killed) as error:
                self.note(f"what was in flight failed: {type(error).__name__}")
        self.server.release_claim(real)
        self.observe()
        self.stage.settle()

    def time_passes(self) -> None:
        """An hour, for every deadline."""
        self.server.query(
            "UPDATE migrations SET deadline = deadline - interval '1 h' WHERE id IN "
            "(SELECT id FROM migrations WHERE graph_id = ANY (%s::uuid[]) AND finished_at IS NULL "
            "FOR NO KEY UPDATE SKIP LOCKED)",
            [str(graph.id) for graph in self.graphs],
        )

    def next_id(self, stem: str) -> str:
        return f"{stem}{next(self._ids)}/{self.slug}"

    # ── what tasks/ does ────────────────────────────────────────────────────────────────────────────

    def call(self, task: str, **arguments: Any) -> Message:
        """Somebody calls a task with ``.delay()``."""
        message = Message(self.next_id(f"{task}-"), task, arguments)
        self.note(f"somebody sends {message}")
        self.publish(message)
        return message

    def send(self, dispatch: Dispatch) -> None:
        """tasks.migrate.send: publish the chain; its last task bears the caller's id."""
        if dispatch.steps:
            self.publish(self._chain(dispatch))

    def send_shard(self, message: HopMessage) -> None:
        """tasks.migrate.send_shard."""
        step = Step(message.from_version, message.to_version, self.next_id("shard-"))
        self.publish(
            Message(step.id, "run_shard", {}, message.migration_id, message.dispatch, (step,), message.shard)
        )

    def _chain(self, dispatch: Dispatch) -> Message:
        ids = [self.next_id("hop-") for _ in dispatch.steps]
        if dispatch.task_id is not None:
            ids[-1] = dispatch.task_id
        steps = tuple(
            Step(m.from_version, m.to_version, id_) for m, id_ in zip(dispatch.messages(), ids, strict=True)
        )
        return Message(ids[0], "run_hop", {}, dispatch.migration_id, dispatch.number, steps)

    def _carry_out(self, process: Process, message: Message) -> Any:
        if message.task in {"run_hop", "run_shard"}:
            outcome = self._run_hop(process, message)
        elif message.task == "migrate_graph":
            outcome = self._migrate_graph(process, message)
        elif message.task == "migrate_straight":
            outcome = self._migrate_straight(process, message)
        elif message.task == "migrate_together":
            outcome = self._migrate_together(process, message)
        else:
            outcome = self._verb(process, message)
        process.message = None
        return outcome

    def _migrate_graph(self, process: Process, message: Message) -> Any:
        caller, target = Caller(message.id), message.arguments.get("target")
        try:
            with process.executors.borrow() as executor:
                begun = begin.begin_migration(executor, self._slug_in(message), target, caller=caller)
        except Exception as error:
            return self._ended_with(process, message, error)
        if isinstance(begun, Dispatch):
            self.publish(self._chain(begun))
            failpoints.hit("begin_dispatched")
        elif isinstance(begun, MigrationReport):
            self.results.store(message.id, "SUCCESS", begun.status)
        self.note(f"{process.name}: {_described(begun)}")
        return begun

    def _migrate_straight(self, process: Process, message: Message) -> Any:
        """What a pack does with one graph; what its process would do next goes into the queue instead."""
        kind = registry.graph_type(self.kind)
        ((version, claim),) = self.server.query(
            "SELECT version, migration_id FROM graphs WHERE id = %s", str(self.graph_id)
        )
        target = message.arguments.get("target") or kind.newest
        if claim is not None or version == target:
            return self._migrate_graph(process, message)
        try:
            straight = run_straight(
                process.executors,
                kind,
                FreeGraph(self.graph_id, self.slug, version),
                make_plan(self.slug, kind, version, target),
                caller=Caller(message.id),
                worker=Worker(process.name, process.pid, message.id),
            )
        except Exception as error:
            return self._ended_with(process, message, error)
        if straight is None:
            return self._migrate_graph(process, message)
        self.note(f"{process.name}: {_described(straight.outcome)} after {straight.applied} hops")
        rest = replace(straight.begun, steps=straight.begun.steps[straight.applied :])
        match straight.outcome:
            case Applied(report) if report is not None:
                self.results.store(message.id, "SUCCESS", report.status)
            case Failed(error):
                self.results.store(message.id, "FAILURE", error)
            case None | Later():
                self.publish(self._chain(rest))
        return straight.outcome

    def _slug_in(self, message: Message) -> str:
        return self.graphs[message.arguments.get("graph") or 0].slug

    def _migrate_together(self, process: Process, message: Message) -> list[Any]:
        """What a pack does with several graphs. What it would leave to others goes into the queue."""
        kind = registry.graph_type(self.kind)
        target = message.arguments.get("target") or kind.newest
        group = self._group(message)
        found = dict(
            self.server.query(
                "SELECT id, ARRAY[version::text, migration_id::text] FROM graphs WHERE id = ANY (%s::uuid[])",
                [str(each.id) for each in group],
            )
        )
        version, _ = found[self.graph_id]
        calls = []
        for each in group:
            number = self.graphs.index(each)
            arguments = {"target": message.arguments.get("target"), "graph": number}
            task_id = message.id if number == 0 else f"{message.id}+{each.slug}"
            calls.append((each, Message(task_id, "migrate_graph", arguments)))
        free = [
            (each, call)
            for each, call in calls
            if found[each.id] == [version, None] and int(version) != target
        ]
        outcomes: dict[str, Straight | None] = {}
        if free:
            try:
                straights = run_together(
                    process.executors,
                    kind,
                    [(FreeGraph(each.id, each.slug, int(version)), Caller(call.id)) for each, call in free],
                    make_plan(self.slug, kind, int(version), target),
                    worker=Worker(process.name, process.pid, message.id),
                    begin=BeginTogether.of,
                )
            except Exception as error:
                return [self._ended_with(process, message, error)]
            outcomes = {call.id: straight for (_, call), straight in zip(free, straights, strict=True)}
        ended: list[Any] = []
        for _, call in calls:
            has_failed = any(isinstance(outcome, Failed) for outcome in ended)
            straight = outcomes.get(call.id)
            ended.append(
                self._migrate_graph(process, call)
                if straight is None
                else self._go_on_alone(process, call, straight, has_failed=has_failed)
            )
        return ended

    def _group(self, message: Message) -> list[Tracked]:
        """The graphs of a message; those that go with the one that everything is about are made when it comes first."""
        if message.id not in self.groups:
            made = []
            ((version,),) = self.server.query("SELECT version FROM graphs WHERE id = %s", str(self.graph_id))
            for _ in range(message.arguments.get("companions") or 1):
                slug = f"{self.slug}c{len(self.graphs)}"
                self.graphs.append(Tracked(self._make_graph(slug, version), slug, version))
                made.append(self.graphs[-1])
            made.insert(message.arguments.get("place") or 0, self.graphs[0])
            self.groups[message.id] = made
            self.observe()
        return self.groups[message.id]

    def _go_on_alone(
        self, process: Process, call: Message, straight: Straight, *, has_failed: bool
    ) -> HopOutcome | None:
        outcome, left = straight.outcome, straight.begun.messages()[straight.applied :]
        if outcome is None and not has_failed:
            for each in left:
                worker = Worker(process.name, process.pid, call.id)
                outcome = run_one_hop(process.executors, each, worker=worker, may_cut=False)
                if not isinstance(outcome, Applied) or outcome.report is not None:
                    break
        self.note(f"{process.name}: {self._slug_in(call)}: {_described(outcome)}")
        match outcome:
            case Applied(report) if report is not None:
                self.results.store(call.id, "SUCCESS", report.status)
            case Failed(error):
                if not {(str(straight.begun.migration_id), end) for end in _FAILED} & self.ends:
                    raise Violation(f"{call} reported a failure that is none: {error}")
                self.results.store(call.id, "FAILURE", error)
            case None | Later() | Sharded():
                steps = straight.begun.steps[straight.applied :]
                if steps:
                    self.publish(self._chain(replace(straight.begun, steps=steps)))
            case Ignored(why, must_not_occur):
                if must_not_occur:
                    raise Violation(f"what must not occur: {why}")
        return outcome

    def _ended_with(self, process: Process, message: Message, error: Exception) -> Any:
        """What Celery does with a task that raises: its state is FAILURE, or it is sent once more."""
        if isinstance(error, GraphMigratorError | ValueError | kinds.Shaky | ConnectionError):  # a hop's, too
            self.note(f"{process.name}: {type(error).__name__}")
            self.results.store(message.id, "FAILURE", error)
            return error
        if classify(error) is Failure.PERMANENT:
            raise error
        self.note(f"{process.name}: again later: {type(error).__name__}")
        self.publish(message)
        return Later(1, str(error))

    def _run_hop(self, process: Process, message: Message) -> Any:
        hop = message.chain[0]
        assert message.migration_id is not None
        outcome = run_one_hop(
            process.executors,
            HopMessage(
                message.migration_id, hop.from_version, hop.to_version, message.dispatch, message.shard
            ),
            worker=Worker(process.name, process.pid, message.id),
        )
        self.note(f"{process.name}: {_described(outcome)}")
        match outcome:
            case Applied(report):
                following = message.next
                if following is not None:
                    self.publish(following)
                    failpoints.hit("hop_published")
                else:
                    self.results.store(message.id, "SUCCESS", report.status if report else None)
                    failpoints.hit("hop_result_stored")
            case Failed(error):
                if not {(str(message.migration_id), end) for end in _FAILED} & self.ends:
                    raise Violation(f"{message} reported a failure that is none: {error}")
                for step in message.chain:
                    self.results.store(step.id, "FAILURE", error)
            case Later():
                self.publish(message)
            case Sharded(messages, closing):
                for each in messages:
                    self.send_shard(each)
                if closing is not None:
                    self.send(closing)
                failpoints.hit("shards_sent")
            case Ignored(why, must_not_occur):
                if must_not_occur:
                    raise Violation(f"what must not occur: {why}")
        return outcome

    def _verb(self, process: Process, message: Message) -> Any:
        caller = Caller(message.id)
        try:
            try:
                with process.executors.borrow() as executor:
                    report, dispatch = self.verb(executor, message.task, message.arguments, caller)
            except GraphMigratorError as refusal:
                with process.executors.borrow() as executor:
                    verb = Verb(message.task)
                    begin.record_outcome(executor, caller, self._slug_in(message), None, refusal, verb=verb)
                raise
        except Exception as error:
            return self._ended_with(process, message, error)
        if dispatch is not None:
            self.send(dispatch)
        self.note(f"{process.name}: {report.message}")
        self.results.store(message.id, "SUCCESS", report)
        return report

    def verb(self, executor: Any, verb: str, arguments: dict[str, Any], caller: Caller) -> Any:
        """An operator's verb, as a task or as a command. `graph`: its number; that of the main one by default."""
        arguments = {**arguments}
        graph = self.graphs[arguments.pop("graph", None) or 0]
        if verb == "retry":
            return operations.retry(executor, graph.slug, caller, **arguments)
        if verb == "resume":
            return operations.resume(executor, graph.slug, caller)
        if verb == "release":
            if arguments.get("whole"):
                self._mend(graph)
            return operations.release(executor, graph.slug, caller, **arguments), None
        asked = {"pause": operations.pause, "cancel": operations.cancel}[verb]
        return asked(executor, graph.slug, caller), None

    def command(self, verb: str, process: Process | None = None, **arguments: Any) -> Actor:
        """An operator at a command line: no message, no task id."""
        process = process or Process(self, self.next_id("operator-"))
        self.note(f"{process.name}: {verb} {arguments or ''}")

        def act() -> Any:
            actor = current()
            assert actor is not None
            actor.calm += bool(arguments.get("whole"))  # people mend and declare with nobody else about
            try:
                with process.executors.borrow() as executor:
                    report, dispatch = self.verb(executor, verb, arguments, Caller())
            except Exception as error:
                if isinstance(error, GraphMigratorError) or classify(error) is not Failure.PERMANENT:
                    self.note(f"{process.name}: {type(error).__name__}")
                    return error
                raise
            if dispatch is not None:
                self.send(dispatch)
            self.note(f"{process.name}: {report.message}")
            return report

        return self.start(process, f"{process.name} ({verb})", act)

    def _mend(self, graph: Tracked) -> None:
        """People undo the part of a hop that a force-released graph has.

        Of another graph they declare nothing: it may be force-released while they wait for its lock.
        """
        graph.mended = True
        partial = "SELECT 1 FROM graphs WHERE id = %s AND partially_migrated IS NOT NULL"
        if not self.server.query(partial, str(graph.id)):
            raise GraphBusy(graph.slug, "somebody")
        try:
            self.server.query("SET lock_timeout = '20ms'")
            self._take_back_half_a_hop(graph)
        except psycopg2.errors.LockNotAvailable:
            raise GraphBusy(graph.slug, "somebody") from None
        finally:
            self.server.query("RESET lock_timeout")

    def _take_back_half_a_hop(self, graph: Tracked) -> None:
        self.server.query(
            "UPDATE nodes n SET properties = jsonb_set(n.properties, '{trail}', (n.properties->'trail') - -1) "
            "FROM graphs g WHERE g.id = %s AND n.graph_id = g.id AND g.partially_migrated IS NOT NULL "
            "AND n.id <= coalesce(g.partially_migrated->'cursor'->>0, n.id) "
            "AND n.properties->'trail'->>(-1) = "
            "(g.partially_migrated->>'from_version') || '>' || (g.partially_migrated->>'to_version')",
            str(graph.id),
        )

    def report(self) -> Actor:
        """A worker's main process records the death of one of its pool: tasks.children."""
        name, pid = self.unreported.pop(0)
        process = Process(self, self.next_id("main-"))
        self.note(f"{process.name} reports that process {pid} of {name} died")

        def act() -> Any:
            while True:
                try:
                    with process.executors.borrow() as executor:
                        return executor.call(
                            ReportDeath(worker=name, pid=pid, how="signal 9", alive_seconds=3_600)
                        )
                except Exception as error:
                    if classify(error) is Failure.PERMANENT:
                        raise

        return self.start(process, process.name, act)

    def sweep(self) -> Actor:
        """A worker's recovery thread sweeps: tasks.recover.sweep_once."""
        process = Process(self, self.next_id("recovery-"))
        self.note(f"{process.name} sweeps")

        def act() -> Any:
            try:
                return self._sweep(process)
            except Exception as error:
                if classify(error) is Failure.PERMANENT:
                    raise
                self.note(f"{process.name} did not finish: {type(error).__name__}")
                return error
            finally:
                process.executors.close()

        return self.start(process, process.name, act)

    def _sweep(self, process: Process) -> Any:
        with recovery.sweeping(process.executors) as executor:
            if executor is None:
                return None
            done = recovery.sweep(executor)
            calls = recovery.unanswered_calls(executor, grace=0)
        for error in done.errors:
            if classify(error) is Failure.PERMANENT:
                raise error
        for dispatch in done.to_send:
            self.note(f"{process.name} sends dispatch {dispatch.number}")
            self.send(dispatch)
        for message, _ in done.shards_to_send:
            self.note(f"{process.name} sends shard {message.shard}")
            self.send_shard(message)
        if done.settled or done.failed_by_recovery:
            self.note(f"{process.name} settled {done.settled}, failed {done.failed_by_recovery}")
        for call in calls:
            state = "SUCCESS" if call.succeeded else "FAILURE"
            if self.results.state(call.task_id) != state:
                with process.executors.borrow() as executor:
                    value = recovery.outcome_of(executor, call)
                if value is not None:
                    self.note(f"{process.name} answers {call.task_id} with {state}")
                    shown = value.status if isinstance(value, MigrationReport) else _status_in(value)
                    self.results.store(call.task_id, state, shown)
        if calls:
            with process.executors.borrow() as executor:
                recovery.mark_answered(executor, calls)
        return done, len(calls)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────

    def check_end(self) -> None:
        """Check what holds when all is quiet.

        Raises:
            Violation: Says what does not.
        """
        self.raise_violation()
        for process in self.workers:
            if process.executors._idle and not process.idle:
                raise Violation(f"{process.name} is still at work")
        locks = self.server.query(
            "SELECT l.pid, l.classid, l.objid, l.mode FROM pg_locks l WHERE l.locktype = 'advisory' "
            "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        for graph in self.graphs:
            requests = self.server.query(REQUESTS, str(graph.id))
            check_end(self.snapshot(graph), locks, requests, self.results)

    def raise_violation(self) -> None:
        if self.violation is not None:
            raise self.violation

    def tear_down(self) -> None:
        """End all actors and sessions, whatever state they are in."""
        for actor in [*self.stage.actors]:
            if actor.done:
                continue
            pid = actor.pid if actor.blocked else None
            actor.doomed = True
            if pid is not None:
                actor.process.generation += 1
                self.server.terminate_pid(pid)
            else:
                actor.process.kill()
            actor.baton.release()
            if not self.stage.returned.acquire(timeout=PATIENT):
                raise TimeoutError(f"{actor} at {actor.point} does not end")
        for real, _ in self.lingering:
            self.server.release_claim(real)
        self.lingering.clear()
        for process in self.workers:
            process.kill()
        self.platform.world = None


_FAILED = ("failed", "cancelled", "released")
_OF_THIS_RUN = re.compile(r"since \S+Z|migration [0-9a-f-]{36}|session \d+")
"""What errors say that another run of the same seed says otherwise."""


def _at(point: str) -> str:
    return point if point.startswith(("before ", "after ")) else f"at {point}"


def _status_in(value: Any) -> Any:
    return value.get("status") if isinstance(value, dict) else value


def _described(outcome: Any) -> str:
    match outcome:
        case Applied(report):
            return "applied" if report is None else f"the end: {report.status}"
        case Failed(error):
            return f"failed: {type(error).__name__}: {error}"
        case Ignored(why):
            return f"ignored: {why}"
        case Later(_, why):
            return f"again later: {why}"
        case Dispatch():
            return f"sends dispatch {outcome.number} of {len(outcome.steps)} hops"
        case Sharded(messages, closing):
            sent = [f"shard {each.shard}" for each in messages] + ["its chain"] * (closing is not None)
            return f"sends {', '.join(sent) or 'nothing'}"
        case MigrationReport():
            return f"nothing to do: {outcome.status}"
    return str(outcome)
