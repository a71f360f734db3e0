"""Where each millisecond of a migration goes: the bare Celery chain and ours, side by side.

    python -m bench.profile [--graphs 100] [--rounds 6] [--write]

Loaded: the CPU time of every process, that of the workers by what they do, and what was left idle; the sum is the
machine's time. Unloaded: one migration at a time, by what it waits for; the sum is its duration. Workers import
this module (``-I``), which puts a clock around the calls that are named in `_PARTS`. `--write` puts the tables into
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib
import mmap
import os
import re
import signal
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any

FOLDER, LINES = os.environ.get("BENCH_PROFILE"), "BENCH_PROFILE_LINES" in os.environ
SQL, HOP, PUBLISH, BODY, TRACE = (
    "our calls to Postgres",
    "the hop's statement",
    "publishing",
    "the task's code",
    "tracing it",
)
_PARTS = {
    "celery.app.base:Celery.send_task": PUBLISH,
    "celery.backends.base:Backend.store_result": "storing the result",
    "billiard.einfo:ExceptionInfo.__init__": "rendering the exception of `replace`",
    "logging:Logger._log": "log lines",
    "bench.peers:commit_hop": HOP,
    "kombu.transport.redis:Channel._brpop_read": "receiving messages",
    "kombu.transport.redis:QoS.append": "Redis: unacknowledged, acknowledged",
    "kombu.transport.redis:QoS.ack": "Redis: unacknowledged, acknowledged",
    "kombu.transport.redis:Channel._create_client": "making client objects of the Redis driver",
    "celery.worker.worker:WorkController._process_task": "handing them to the pool",
}
_OURS = {
    "graph_migrator.core.events.types:emit": "events",
    "graph_migrator.core.store.session:Executor._send": SQL,
    "graph_migrator.core.graph_types.context:HopContext.execute": HOP,
    "graph_migrator.tasks.recover:sweep_once": "recovery's sweeps",
}
_NAMES = list(dict.fromkeys([TRACE, BODY, *_PARTS.values(), *_OURS.values()]))
"""In the order of a process's totals."""

# ── in the workers ──────────────────────────────────────────────────────────────────────────────────


class _Clock(threading.local):
    """The parts that a thread is in, the innermost last, and its CPU time when that began."""

    def __init__(self) -> None:
        self.inside: list[int] = []
        self.since = 0.0


class _Totals:
    """CPU seconds by part, in a file that the benchmark reads."""

    def __init__(self) -> None:
        self.open()
        self._clock = _Clock()

    def open(self, **_: object) -> None:
        """In each process once more."""
        path = Path(str(FOLDER)) / str(os.getpid())
        path.write_bytes(bytes(8 * len(_NAMES)))
        with path.open("r+b") as file:
            self._seconds = memoryview(mmap.mmap(file.fileno(), 0)).cast("d")
        self._lines = path.with_suffix(".lines").open("a", buffering=1) if LINES else None

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same, with a clock around it: what is inside of another part is not that one's."""
        index = _NAMES.index(part)

        @wraps(call)
        def within(*args: Any, **kwargs: Any) -> Any:
            clock = self._clock
            self._turn(clock)
            clock.inside.append(index)
            self.line("+", part, args)
            try:
                return call(*args, **kwargs)
            finally:
                self.line("-", part)
                self._turn(clock)
                clock.inside.pop()

        return within

    def _turn(self, clock: _Clock) -> None:
        now = time.thread_time()
        if clock.inside:
            self._seconds[clock.inside[-1]] += now - clock.since
        clock.since = now

    def line(self, sign: str, part: str, args: Any = ()) -> None:
        """Write when it was."""
        if self._lines is not None:
            functions = re.findall(r'graph_migrator\.(\w+)"?\(', args[1]) if args and part == SQL else []
            named = " + ".join(each for each in functions if each != "forget_session")
            self._lines.write(
                f"{time.perf_counter()}|{os.getpid()}|{sign}|{part}{f': {named}' if named else ''}\n"
            )


def _install() -> None:
    from celery import signals

    totals = _Totals()
    for where, part in (_PARTS if "BENCH_BARE" in os.environ else _PARTS | _OURS).items():
        module, _, path = where.partition(":")
        *owners, name = path.split(".")
        owner: Any = importlib.import_module(module)
        for each in owners:
            owner = getattr(owner, each)
        setattr(owner, name, totals.timed(part, getattr(owner, name)))

    def in_the_pool(**_: object) -> None:
        from celery import current_app

        totals.open()
        for task in current_app.tasks.values():
            task.__trace__ = totals.timed(TRACE, task.__trace__)
            task.run = totals.timed(BODY, task.run)

    signals.worker_process_init.connect(in_the_pool, weak=False)
    signals.task_received.connect(lambda **_: totals.line("received", ""), weak=False)


if FOLDER is not None:
    _install()


# ── in the benchmark ────────────────────────────────────────────────────────────────────────────────

_WARM = 10
"""Migrations before each round, which are not counted."""
REST, OTHERS, IDLE = "the rest", "other programs", "idle"


class _Machine:
    """Who has used the processors, in CPU seconds since each was started."""

    def __init__(self, postgres: int, redis: int, folder: Path) -> None:
        self._postgres, self._redis, self._folder = postgres, redis, folder

    def look(self, contender: Any) -> Counter[str]:
        """Everybody by name; of processes of workers, each part besides."""
        import psutil

        seen: Counter[str] = Counter()
        for root in (psutil.Process(each.pid) for each in contender.running):
            self._add(seen, "worker: main process", root)
            for child in root.children():
                self._add(seen, "worker: pool processes", child)
        server = psutil.Process(self._postgres)
        times = server.cpu_times()
        seen["Postgres"] = times.user + times.system + times.children_user + times.children_system
        seen["Postgres"] += sum(sum(each.cpu_times()[:2]) for each in server.children())
        seen["Redis"] = sum(psutil.Process(self._redis).cpu_times()[:2])
        seen["client"] = sum(psutil.Process().cpu_times()[:2])
        machine = psutil.cpu_times()
        seen[IDLE] = machine.idle + machine.iowait
        return seen

    def _add(self, seen: Counter[str], name: str, process: Any) -> None:
        whole = sum(process.cpu_times()[:2])
        parts = struct.unpack(f"{len(_NAMES)}d", (self._folder / str(process.pid)).read_bytes())
        for part, seconds in zip([*_NAMES, REST], [*parts, whole - sum(parts)], strict=True):
            seen[f"{name}: {part}"] += seconds
        seen[name] += whole


def run(graphs: int, rounds: int) -> str:
    """The tables, as Markdown."""
    from bench.chain import _contenders, _Race
    from bench.database import connect, environment, server
    from graph_migrator.core.embedded import Redis
    from graph_migrator.core.store.schema import upgrade

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres = stack.enter_context(server(track_functions="all"))
        redis = stack.enter_context(Redis())
        upgrade(postgres.url)
        os.environ |= environment(postgres, redis)
        race = _Race(connect(postgres.url))
        contenders = [
            c for c in _contenders(postgres.url) if c.name in ("bare Celery chain", "graph-migrator")
        ]
        for contender in contenders:
            contender.command = [*(contender.command or ()), "-I", "bench.profile"]
            contender.environment |= {"BENCH_PROFILE": str(folder)}
        machine = _Machine(postgres.pid or 0, redis.pid or 0, folder)
        loaded = _loaded(contenders, race, machine, graphs, rounds)
        for contender in contenders:
            contender.environment |= {"BENCH_PROFILE_LINES": ""}
        alone = [_alone(contender, race, folder) for contender in contenders]
        titles = [contender.name for contender in contenders]
        return "\n".join(
            [
                f"Core-milliseconds a migration, {graphs} at once, {rounds} rounds; {os.cpu_count()} cores:\n",
                *_table(titles, loaded[:2], "the machine's time"),
                "\nOf Postgres's time, by function of the schema (clock time, its callees apart), ours:\n",
                *_table([titles[1]], loaded[2:], "in functions of the schema"),
                "\nMilliseconds of one migration in an idle system, in the mean of those between the quartiles:\n",
                *_table(titles, alone, "from the call until the client sees it"),
            ]
        )


def _table(titles: list[str], columns: list[Counter[str]], total: str) -> list[str]:
    """Those that are parts of others (`a: b: c` of `a: b`) do not count in the sum."""
    names = [name for name in dict.fromkeys(each for column in columns for each in column)]
    whole = [name for name in names if not any(name.startswith(f"{each}: ") for each in names)]
    rows = [f"| | {' | '.join(titles)} |", f"|---|{'---|' * len(titles)}"]
    little = [name for name in whole if max(column[name] for column in columns) < 0.05 and name != IDLE]
    for name in whole:
        parts = [each for each in names if each.startswith(f"{name}: ")]
        for each in () if name in little else (name, *sorted(parts, key=lambda part: -columns[-1][part])):
            if each == name or max(column[each] for column in columns) >= 0.05:
                shown = each if each == name else f"… {each.removeprefix(f'{name}: ')}"
                rows.append(_row(shown, [column[each] for column in columns]))
    if little:
        rows.append(
            _row(f"{len(little)} others", [sum(column[name] for name in little) for column in columns])
        )
    rows.append(_row(f"**{total}**", [sum(column[name] for name in whole) for column in columns]))
    return rows


def _row(name: str, numbers: list[float]) -> str:
    return f"| {name} | {' | '.join(f'{each:.2f}' if each else '' for each in numbers)} |"


# ── loaded ──────────────────────────────────────────────────────────────────────────────────────────


def _loaded(
    contenders: list[Any], race: Any, machine: _Machine, graphs: int, rounds: int
) -> list[Counter[str]]:
    """Of each contender; then the functions of the schema."""
    from bench.chain import _signal, _start, _stop

    used: list[Counter[str]] = [Counter() for _ in contenders]
    for contender in contenders:
        _start(contender)
        race.run(contender, 40, record=False)
        _signal(contender, signal.SIGSTOP)
    race.cursor.execute("SELECT pg_stat_reset()")
    for turn in range(rounds):
        for place in range(2) if turn % 2 == 0 else (1, 0):
            contender = contenders[place]
            _signal(contender, signal.SIGCONT)
            race.run(contender, _WARM, record=False)
            ids = race._graphs(contender, graphs)
            before, began = machine.look(contender), time.perf_counter()
            for graph in ids:
                contender.send(graph)
            race._wait(contender, ids, 0.01)
            seconds, after = time.perf_counter() - began, machine.look(contender)
            after.subtract(before)
            own = sum(value for name, value in after.items() if name.count(": ") < 2)
            after[OTHERS] = (os.cpu_count() or 1) * seconds - own  # type: ignore[assignment] # a Counter of seconds
            used[place].update(after)
            _signal(contender, signal.SIGSTOP)
    for contender in contenders:
        _stop(contender)
    time.sleep(1.5)  # the server's counters come late
    race.cursor.execute("SELECT funcname, self_time / 1e3 FROM pg_stat_user_functions ORDER BY 2 DESC")
    functions = Counter(
        {name: seconds * graphs / (graphs + _WARM) for name, seconds in race.cursor.fetchall()}
    )
    return [_each(column, graphs * rounds) for column in [*used, functions]]


def _each(seconds: Counter[str], count: int) -> Counter[str]:
    """Milliseconds of one of so many."""
    return Counter({name: value / count * 1e3 for name, value in seconds.items()})


# ── one at a time ───────────────────────────────────────────────────────────────────────────────────

SENDING, WAY, MAIN, SEEN = (
    "client: sending",
    "on its way through Redis",
    "worker: main process",
    "until the client looks",
)


def _alone(contender: Any, race: Any, folder: Path, count: int = 40) -> Counter[str]:
    from bench.chain import _start, _stop

    _start(contender)
    race.run(contender, 40, record=False)
    calls = []
    for graph in race._graphs(contender, count):
        time.sleep(0.1)
        began = time.perf_counter()
        contender.send(graph)
        sent = time.perf_counter()
        race._wait(contender, [graph], 0.001)
        calls.append((began, sent, time.perf_counter()))
    time.sleep(0.2)
    _stop(contender)
    lines = [line.split("|") for path in folder.glob("*.lines") for line in path.read_text().splitlines()]
    points = sorted((float(at), pid, sign, part) for at, pid, sign, part in lines)
    calls.sort(key=lambda call: call[2] - call[0])
    spent: Counter[str] = Counter()
    middle = calls[count // 4 : -(count // 4)]
    for call in middle:
        spent.update(_timeline(call, [point for point in points if call[0] <= point[0] <= call[2]]))
    for path in folder.glob("*.lines"):
        path.unlink()
    return _each(spent, len(middle))


def _timeline(call: tuple[float, float, float], points: list[tuple[float, str, str, str]]) -> Counter[str]:
    """What the migration was waiting for, from point to point: always for one process alone.

    What a process still does once it has published the next message, nobody waits for.
    """
    began, sent, seen = call
    spans: list[tuple[str, float]] = []
    inside, active, since = [SENDING], "client", began
    for at, pid, sign, part in sorted([*points, (sent, "client", "-", PUBLISH), (seen, "", "seen", "")]):
        spans.append((inside[-1], at - since))
        since = at
        if sign == "received":
            inside, active = [MAIN], ""
        elif sign == "+" and part == TRACE:
            inside, active = [TRACE], pid
        elif pid == active and sign == "+":
            inside.append(part)
        elif pid == active and part == PUBLISH:
            inside, active = [WAY], ""
        elif pid == active and sign == "-":
            inside.pop()
            inside = inside or [REST]
    ends = [place for place, (name, _) in enumerate(spans) if name.startswith((SQL, HOP))]
    last = ends[-1] if ends else len(spans)
    spent: Counter[str] = Counter()
    for place, (name, seconds) in enumerate(spans):
        label = name if place <= last else SEEN
        spent[label] += seconds  # type: ignore[assignment]
        if ": " in label and label.startswith(SQL):
            spent[SQL] += seconds  # type: ignore[assignment]
    return spent


# ── the page ────────────────────────────────────────────────────────────────────────────────────────

MARKS = ("<!-- profile: written by `python -m bench.profile --write` -->\n", "<!-- end of profile -->\n")


def main() -> None:
    """Measure, print, and perhaps write."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--graphs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    given = parser.parse_args()
    tables = run(given.graphs, given.rounds)
    print(tables)
    if given.write:
        page = Path(__file__).parents[1] / "docs" / "benchmarks.md"
        before, rest = page.read_text().split(MARKS[0])
        page.write_text(f"{before}{MARKS[0]}{tables}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


if __name__ == "__main__":
    main()
