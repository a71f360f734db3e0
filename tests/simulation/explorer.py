"""Random runs: a seed makes a list of choices, a list of choices makes a run, a failing run gets a shorter list."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from graph_migrator.core.statuses import LIVE
from tests.simulation import kinds
from tests.simulation.actors import Actor
from tests.simulation.broker import Message
from tests.simulation.connections import Link
from tests.simulation.invariants import Violation
from tests.simulation.world import Platform, World

MOST_GRAPHS = 7
"""Of a run: fewer than that may still be moved together with new ones."""
STEPS = 45
"""What the scheduler does in a run before it lets everything come to rest."""


class Choices:
    """Random choices that are written down, or the written ones. Choice 0 is always the dull one."""

    def __init__(self, seed: str, given: list[int] | None = None) -> None:
        self._random = random.Random(seed)
        self._given = given
        self.made: list[int] = []

    def pick(self, weights: list[float]) -> int:
        """An index into `weights`; of written choices, the next one, and 0 when they are used up."""
        if self._given is None:
            (choice,) = self._random.choices(range(len(weights)), weights)
        elif len(self.made) < len(self._given):
            choice = min(self._given[len(self.made)], len(weights) - 1)
            if weights[choice] == 0:
                choice = 0
        else:
            choice = 0
        self.made.append(choice)
        return choice

    def one_of(self, count: int) -> int:
        return self.pick([1.0] * count)


_AT = ("go", "switch", "die", "lose", "linger", "terminate", "in_flight")
_IN_HOP = ("go", "error", "shaky", "serialization", "stray", "COMMIT", "ROLLBACK")
_EVENTS = (
    "go_on", "any", "sweep", "command", "verb", "migrate", "duplicate", "wipe", "time", "deploy", "idle", "kill",
    "linger", "report",
)  # fmt: skip
_IN_FLIGHT = frozenset(
    {
        "before finish_hop", "before open_hop", "before fail_attempt", "before begin_migration",
        "before lock_and_open_hop",
        "before retry_migration", "before fail_between_hops", "before release_lock", "before stop_migration",
        "before begin_and_open", "before finish_and_open", "before cut_shards", "before next_shards",
        "before save_shard_batch", "before stop_shard", "before fail_shard", "before prepare_rebuild",
        "before open_rebuild", "before save_rebuild_batch",
        "before begin_together", "before finish_together", "before part_company",
    }
)  # fmt: skip
_RARE = frozenset(
    {"fail_before_commit", "fail_committed", "hop_result_stored", "batch_committed", "recovery_committed"}
)


@dataclass
class Mood:
    """How a run goes: how often actors are held up and struck, and how busy the operators are."""

    held_up: float
    struck: float
    strikes: int
    raises: float
    operators: float
    cursed: str | None
    """A point at which every process dies."""


_MOODS = (
    Mood(0.05, 0.01, 3, 0.02, 1.0, None),
    Mood(0.15, 0.04, 6, 0.1, 1.0, None),
    Mood(0.3, 0.02, 4, 0.05, 3.0, None),
    Mood(0.1, 0.1, 12, 0.1, 0.5, None),
    Mood(0.1, 0.0, 8, 0.0, 1.0, "hop_in_data"),
    Mood(0.1, 0.0, 8, 0.0, 1.0, "batch_before_commit"),
    Mood(0.1, 0.03, 4, 0.5, 1.0, None),
    Mood(0.1, 0.0, 8, 0.0, 1.0, "shard_before_commit"),
)


class RandomChooser:
    """Chance, within a mood; nothing once all is to come to rest."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.mood = _MOODS[choices.pick([4, 4, 3, 3, 0.5, 0.5, 1, 0.3])]
        self.strikes = self.mood.strikes
        self.at_rest = False

    def at(self, actor: Actor, point: str, link: Link | None, last: Callable[[], Any] | None) -> str:
        if self.at_rest:
            return "go"
        mood = self.mood
        if point == mood.cursed and self.strikes:
            self.strikes -= 1
            return "die"
        struck = mood.struck if self.strikes else 0.0
        if actor.process.message is None:
            struck /= 3  # recovery and commands: less to break there
        if link is None:
            struck *= 8 if point in _RARE else 2
        flies = struck / 2 if last is not None and point in _IN_FLIGHT else 0.0
        weights = [1 - mood.held_up, mood.held_up, struck, struck, struck / 4, struck / 8, flies * 2]
        what = _AT[self.choices.pick(weights)]
        if what not in {"go", "switch"}:
            self.strikes -= 1
        return what

    def in_hop(self, actor: Actor) -> str:
        if self.at_rest:
            return "go"
        r = self.mood.raises
        return _IN_HOP[self.choices.pick([1 - r, r / 2, r / 2, r / 2, r / 4, r / 8, r / 8])]

    def requeued(self, message: Message) -> bool:
        return self.at_rest or self.choices.pick([3, 1]) == 0

    def seen_to_die(self) -> bool:
        return self.choices.pick([1, 2]) == 1


@dataclass
class Run:
    """How a run went."""

    seed: str
    choices: list[int]
    violation: Violation | None
    trace: list[str]
    points: Counter[str] = field(default_factory=Counter)
    ends: tuple[str, ...] = ()


def run(platform: Platform, seed: str, given: list[int] | None = None) -> Run:
    """One run from its seed, or from written choices."""
    choices = Choices(seed, given)
    chooser = RandomChooser(choices)
    kind = tuple(kinds.NEWEST)[choices.one_of(4)]
    world = World(platform, kind, chooser)
    violation = None
    try:
        _Driver(world, choices, chooser).drive()
    except Violation as found:
        violation = found
    finally:
        world.tear_down()
    if violation is not None:
        platform.clean()
    ends = tuple(m["status"] for m in (world.before or {"migrations": []})["migrations"])
    return Run(seed, choices.made, violation, _readable(world.trace), world.points, ends)


def _readable(trace: list[str]) -> list[str]:
    """Without the sweeps that found nothing."""
    return [
        line
        for line in trace
        if not line.endswith(" sweeps") or sum(line.split()[0] in other.split() for other in trace) > 1
    ]


class _Driver:
    """The scheduler of one run."""

    def __init__(self, world: World, choices: Choices, chooser: RandomChooser) -> None:
        self.world = world
        self.choices = choices
        self.chooser = chooser

    def drive(self) -> None:
        world = self.world
        world.observe()
        self._migrate()
        for step in range(STEPS):
            self._step()
            world.raise_violation()
            quiet = not (world.queue or world.stage.actors or world.lingering)
            if quiet and step > 10 and self.choices.pick([1, 3]):
                break
        self.chooser.at_rest = True
        world.note("— from here on nothing goes wrong any more —")
        code = "AB"[self.choices.one_of(2)]
        for process in world.workers:
            process.code = code
        come_to_rest(world)
        world.check_end()

    def _target(self) -> int | None:
        newest = kinds.NEWEST[self.world.kind]
        newest_or_oldest = [4.0, 0.3]
        if self.world.kind == "rebuilt" and self.world.before and self.world.before["graph"]["version"] > 1:
            newest_or_oldest = [0.5, 4.0]  # what was kept of a swap matters on the way back
        return [None, *range(1, newest + 1)][self.choices.pick(newest_or_oldest + [1.0] * (newest - 1))]

    def _step(self) -> None:
        world, o = self.world, self.chooser.mood.operators
        busy = bool(world.queue or world.stage.actors)
        found = world.before or {"migrations": []}
        live = any(
            m["status"] in LIVE for each in world.graphs if each.before for m in each.before["migrations"]
        )
        weights = {
            "go_on": 10.0 if busy else 4.0,
            "any": 8.0 if busy else 0.0,
            "sweep": 1.2 if live else 0.3,
            "command": 0.35 * o,
            "verb": 0.35 * o,
            "migrate": (2.5 if world.kind == "rebuilt" else 0.35) * o,
            "duplicate": 0.8 if world.queue else 0.0,
            "wipe": 0.2 if world.queue and found["migrations"] else 0.0,
            "time": 0.4 if live else 0.0,
            "deploy": 0.2,
            "idle": 0.1,
            "kill": 0.3 if world.stage.actors and self.chooser.strikes else 0.0,
            "linger": 1.0 if world.lingering else 0.0,
            "report": 2.0 if world.unreported else 0.0,
        }
        getattr(self, f"_{_EVENTS[self.choices.pick([weights[name] for name in _EVENTS])]}")()

    def _go_on(self) -> None:
        if not go_on(self.world):
            self.world.time_passes()
            self.world.resume(self.world.sweep())

    def _any(self) -> None:
        world = self.world
        runnable = [actor for actor in world.stage.actors if actor.runnable]
        free = [process for process in world.workers if process.idle]
        ways = len(runnable) + (len(world.queue) if free else 0)
        if not ways:
            return go_on(world)
        which = self.choices.one_of(ways)
        if which < len(runnable):
            return world.resume(runnable[which])
        process = free[self.choices.one_of(len(free))]
        return world.resume(world.deliver(world.queue[which - len(runnable)], process))

    def _duplicate(self) -> None:
        world = self.world
        message = world.queue[self.choices.one_of(len(world.queue))]
        free = [process for process in world.workers if process.idle]
        if free:
            world.resume(world.deliver(message, free[self.choices.one_of(len(free))], keep=True))

    def _sweep(self) -> None:
        self.world.resume(self.world.sweep())

    def _command(self) -> None:
        verb, arguments = self._some_verb()
        self.world.resume(self.world.command(verb, **arguments))

    def _verb(self) -> None:
        verb, arguments = self._some_verb()
        if not arguments.get("whole"):
            self.world.call(verb, **arguments)

    def _some_verb(self) -> tuple[str, dict[str, Any]]:
        verb, arguments = self._one_of_the_verbs()
        others = len(self.world.graphs) - 1
        number = self.choices.pick([2.0, *[2.0 / others] * others]) if others else 0
        return verb, (arguments | {"graph": number} if number else arguments)

    def _one_of_the_verbs(self) -> tuple[str, dict[str, Any]]:
        return [
            ("pause", {}),
            ("resume", {}),
            ("cancel", {}),
            ("retry", {}),
            ("retry", {"accept_new_code": True}),
            ("release", {}),
            ("release", {"force": True}),
            ("release", {"whole": True}),
        ][self.choices.pick([2, 2, 2, 2, 1, 1, 2, 1])]

    def _migrate(self) -> None:
        tasks = ("migrate_graph", "migrate_straight", "migrate_together")
        task = tasks[self.choices.pick([1.0, 1.0, 2.0 if len(self.world.graphs) < MOST_GRAPHS else 0.0])]
        target = self._target()
        if task == "migrate_together":
            companions = 1 + self.choices.one_of(3)
            place = self.choices.one_of(companions + 1)
            self.world.call(task, target=target, companions=companions, place=place)
        else:
            self.world.call(task, target=target)

    def _wipe(self) -> None:
        if self.choices.pick([2, 1]):
            self.world.note("the broker is wiped")
            self.world.queue.clear()
        else:
            lost = self.world.queue.pop(self.choices.one_of(len(self.world.queue)))
            self.world.note(f"the broker loses {lost}")

    def _time(self) -> None:
        self.world.note("an hour passes")
        self.world.time_passes()

    def _deploy(self) -> None:
        process = self.world.workers[self.choices.one_of(len(self.world.workers))]
        if process.idle:
            process.code = "B" if process.code == "A" else "A"
            self.world.note(f"{process.name} is started again with release {process.code}")
            process.kill()

    def _idle(self) -> None:
        process = self.world.workers[self.choices.one_of(len(self.world.workers))]
        if process.idle:
            process.cut()

    def _kill(self) -> None:
        ready = [actor for actor in self.world.stage.actors if not actor.blocked]
        if ready:
            self.chooser.strikes -= 1
            actor = ready[self.choices.one_of(len(ready))]
            self.world.kill(actor, lingers=self.choices.pick([3, 1]) == 1)

    def _linger(self) -> None:
        self.world.end_lingering()

    def _report(self) -> None:
        self.world.resume(self.world.report())


def go_on(world: World) -> bool:
    """The dull next thing: who has begun ends, else the first message is delivered. False: all is quiet."""
    for actor in world.stage.actors:
        if actor.runnable:
            world.resume(actor)
            return True
    if world.lingering:
        world.end_lingering()
        return True
    if world.unreported:
        world.resume(world.report())
        return True
    free = [process for process in world.workers if process.idle]
    if world.queue and free:
        world.resume(world.deliver(world.queue[0], free[0]))
        return True
    if world.stage.actors:  # all are blocked: the server itself has to end that
        world.stage.settle_one()
        return True
    return False


def come_to_rest(world: World) -> None:
    """Everything that is under way ends, time passes, recovery sweeps: until there is nothing to do.

    Raises:
        Violation: It never ends.
    """
    for _ in range(400):
        world.raise_violation()
        if go_on(world):
            continue
        world.time_passes()
        sweep = world.sweep()
        world.resume(sweep)
        while not sweep.done:
            go_on(world)
        world.raise_violation()
        done, answered = sweep.outcome if isinstance(sweep.outcome, tuple) else (None, 1)
        if done is not None and done.is_empty and not answered and not world.queue:
            return
    raise Violation("it does not come to rest")


def shorten(platform: Platform, failed: Run, *, most: int = 400) -> Run:
    """Fewer choices, and duller ones, that break an invariant still."""
    best = failed
    budget = most

    def fails(choices: list[int]) -> bool:
        nonlocal best, budget
        if budget <= 0 or choices == best.choices:
            return False
        budget -= 1
        again = run(platform, failed.seed, choices)
        if again.violation is None:
            return False
        while choices and choices[-1] == 0:
            choices = choices[:-1]
        best = again
        best.choices = choices
        return True

    choices = failed.choices
    length = len(choices)
    while length > 1:  # the end is often of no matter: the shortest list that still fails
        length //= 2
        while len(best.choices) > length and fails(best.choices[:-length]):
            pass
    size = max(1, len(best.choices) // 2)
    while size:
        place = 0
        while place < len(best.choices) and budget > 0:
            choices = best.choices
            if not fails(choices[:place] + choices[place + size :]):
                zeroed = choices[:place] + [0] * len(choices[place : place + size]) + choices[place + size :]
                fails(zeroed)
                place += size
        size //= 2
    return best
