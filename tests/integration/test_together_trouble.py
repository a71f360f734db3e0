"""Graphs that share transactions, and what hits one of them, or all: each ends as it would have ended alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Engine, text

from graph_migrator import GraphType, HopContext
from graph_migrator.core.audit.digests import verify_data
from graph_migrator.core.decisions import Later
from graph_migrator.core.execution import failpoints, operations
from graph_migrator.core.execution.in_process import _wait_for_the_end, run_graph_migration
from graph_migrator.core.execution.model import Applied, Caller, Failed
from graph_migrator.core.graph_types import registry
from graph_migrator.core.settings import settings
from graph_migrator.core.store.protocol import BeginTogether, ReportDeath
from graph_migrator.core.store.session import Executor, Executors
from tests.integration.scripted import Flaky, Script, fails, leave_mark, trails
from tests.integration.together import (
    assert_sound,
    have_parted,
    move,
    on,
    run,
)
from tests.rows import add_graph, advisory_locks, attempts, graph_row, migration_of, rows
from tests.waiting import until

SLUGS = ("a", "b", "c")
HOPS = ("one", "two", "three")


@pytest.fixture
def three(engine: Engine, script: Script, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Three graphs of `plain`, and a type for the graph that uses the session next."""
    monkeypatch.setenv("GRAPH_MIGRATOR_WRITER_DRAIN_SECONDS", "0.2")
    monkeypatch.setenv("GRAPH_MIGRATOR_DEADLINE_SECONDS", "1")  # what recovery does comes soon
    settings.cache_clear()
    after = GraphType("next")
    after.hop(1, 2)(leave_mark)
    registry.register(after)
    for slug in SLUGS:
        add_graph(engine, slug, "plain", nodes=2)
    return script


@pytest.fixture
def hooked() -> Iterator[Callable[[Callable[[str], None]], None]]:
    """Calls something at every failpoint of this process."""

    def set_hook(hook: Callable[[str], None]) -> None:
        failpoints.hook = hook

    yield set_hook
    failpoints.hook = None


def at(place: str, do: Callable[[], Any]) -> Callable[[str], None]:
    """Do something once, at a failpoint (``point`` or ``point:nth``)."""
    point, _, nth = place.partition(":")
    left = [int(nth or 1)]

    def hook(reached: str) -> None:
        if reached == point and left:
            left[0] -= 1
            if not left[0]:
                left.clear()
                do()

    return hook


def assert_moved(engine: Engine, *slugs: str, hops: Sequence[str] = HOPS) -> None:
    """At its target, each effect and each finished attempt once, and no more attempts than a group costs."""
    for slug in slugs:
        assert trails(engine, slug) == {" ".join(hops)}, slug
        seen = attempts(engine, slug)
        assert [hop for hop, status in seen if status == "succeeded"] == list(hops), seen
        assert {status for _, status in seen} <= {"succeeded", "stopped", "lost", "failed"}, seen
        assert len(seen) <= len(hops) + 1, seen
        graph = graph_row(engine, slug)
        assert (graph.version, graph.migration_id) == (1 + len(hops), None)
        assert migration_of(engine, slug).status == "succeeded"


def end_all(executors: Executors, engine: Engine) -> None:
    """As recovery does in the end: whatever still runs."""
    for (migration,) in rows(
        engine, "SELECT id FROM migrations WHERE status IN ('queued', 'running', 'pausing', 'cancelling')"
    ):
        with suppress(Exception):
            _wait_for_the_end(executors, migration)


# ── a hop that raises ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("hop", HOPS)
@pytest.mark.parametrize("who", SLUGS)
def test_a_hop_that_raises_fails_its_graph_and_costs_the_others_an_attempt(
    engine: Engine, executors: Executors, three: Script, who: str, hop: str
) -> None:
    three.on[hop] = on(**{who: fails(ValueError("half-way"))})
    outcomes = move(executors, engine, SLUGS, 4)
    done = list(HOPS[: HOPS.index(hop)])
    assert isinstance(outcomes[who], Failed)
    assert attempts(engine, who) == [
        *((each, "succeeded") for each in done),
        (hop, "stopped"),
        (hop, "failed"),
    ]
    assert (graph_row(engine, who).version, trails(engine, who)) == (1 + len(done), {" ".join(done)})
    others = [slug for slug in SLUGS if slug != who]
    assert_moved(engine, *others)
    for slug in others:
        assert [each for each in attempts(engine, slug) if each[1] != "succeeded"] == [(hop, "stopped")]
        numbers = rows(
            engine,
            "SELECT a.hop_name, a.attempt FROM hop_attempts a JOIN graphs g ON g.id = a.graph_id "
            "WHERE slug = :s AND a.status = 'succeeded' ORDER BY a.id",
            s=slug,
        )
        assert numbers == [(each, 2 if each == hop else 1) for each in HOPS]
    assert_sound(engine, executors)


def _owing(ctx: HopContext) -> None:
    ctx.execute("INSERT INTO public.q VALUES (1)")


@pytest.mark.parametrize("who", SLUGS)
def test_what_shows_at_the_commit_fails_the_graph_that_caused_it(
    engine: Engine, executors: Executors, three: Script, who: str
) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE public.p (id int PRIMARY KEY)"))
        connection.execute(
            text("CREATE TABLE public.q (id int REFERENCES public.p DEFERRABLE INITIALLY DEFERRED)")
        )
    three.on["two"] = on(**{who: _owing})
    outcomes = move(executors, engine, SLUGS, 4)
    assert isinstance(outcomes[who], Failed)
    assert attempts(engine, who) == [("one", "succeeded"), ("two", "stopped"), ("two", "failed")]
    assert_moved(engine, *(slug for slug in SLUGS if slug != who))
    assert not rows(engine, "SELECT FROM public.q")
    assert_sound(engine, executors)


CAREFUL = ("d", "e", "f")


def careful(engine: Engine) -> None:
    for slug in CAREFUL:
        add_graph(engine, slug, "careful", nodes=2)


@pytest.mark.parametrize("who", CAREFUL)
def test_a_check_that_fails_and_a_time_limit_are_those_of_one_graph(
    engine: Engine, executors: Executors, three: Script, who: str
) -> None:
    careful(engine)
    three.on["check"] = lambda ctx: "no" if ctx.graph.slug == who else None
    outcomes = move(executors, engine, CAREFUL, 3)
    assert isinstance(outcomes[who], Failed)
    assert_moved(engine, *(slug for slug in CAREFUL if slug != who), hops=("guarded", "plain_end"))
    assert_sound(engine, executors)


@pytest.mark.parametrize("sleep", ["SELECT pg_sleep(30)", None], ids=["in Postgres", "in Python"])
def test_a_hop_that_takes_too_long_is_ended_alone_and_the_next_has_its_own_time(
    engine: Engine, executors: Executors, three: Script, sleep: str | None
) -> None:
    careful(engine)

    def wait(ctx: HopContext) -> None:
        if sleep is not None:
            ctx.execute(sleep)
        else:
            while True:
                pass

    three.on["guarded"] = on(e=wait)
    outcomes = move(executors, engine, CAREFUL, 3)
    assert isinstance(outcomes["e"], Failed)
    assert type(outcomes["e"].error).__name__ == "HopTimedOut"
    assert_moved(engine, "d", "f", hops=("guarded", "plain_end"))
    # None of them takes too long by itself; together they would.
    for slug in ("x", "y", "z"):
        add_graph(engine, slug, "careful")
    three.on["guarded"] = lambda ctx: ctx.execute("SELECT pg_sleep(0.15)")
    outcomes = move(executors, engine, ("x", "y", "z"), 3)
    assert all(isinstance(each, Applied) for each in outcomes.values())
    assert not rows(engine, "SELECT FROM hop_attempts a JOIN graphs g ON g.id = a.graph_id "
                    "WHERE g.slug IN ('x', 'y', 'z') AND a.status <> 'succeeded'")  # fmt: skip
    assert_sound(engine, executors)


def test_a_graph_whose_hop_is_skipped_stays_with_the_others(
    engine: Engine, executors: Executors, three: Script
) -> None:
    careful(engine)
    three.on["when"] = lambda ctx: ctx.graph.slug != "e"
    outcomes = move(executors, engine, CAREFUL, 3)
    assert all(isinstance(each, Applied) for each in outcomes.values())
    assert not have_parted(engine)
    assert attempts(engine, "e") == [("guarded", "skipped"), ("plain_end", "succeeded")]
    report = outcomes["e"].report  # type: ignore[union-attr]
    assert report is not None
    assert [hop.status for hop in report.hops] == ["skipped", "succeeded"]
    assert_moved(engine, "d", "f", hops=("guarded", "plain_end"))
    assert_sound(engine, executors)


@pytest.mark.parametrize("often", [1, 2])
def test_an_error_worth_another_try_has_one_in_any_case(
    engine: Engine, executors: Executors, three: Script, often: int
) -> None:
    careful(engine)

    def flaky(ctx: HopContext) -> None:
        leave_mark(ctx)
        if ctx.attempt <= often:
            raise Flaky
        ctx.execute("UPDATE nodes SET properties = '{}' WHERE graph_id = :graph_id")

    three.on["guarded"] = on(e=flaky)
    outcomes = move(executors, engine, CAREFUL, 3)
    assert isinstance(outcomes["e"], Applied if often == 1 else Later)
    assert attempts(engine, "e")[:often] == [("guarded", "stopped"), ("guarded", "failed")][:often]
    end_all(executors, engine)
    assert trails(engine, "e") == {"guarded plain_end"}
    assert_moved(engine, "d", "f", hops=("guarded", "plain_end"))
    assert_sound(engine, executors)


def test_digests_are_those_of_each_graph(engine: Engine, executors: Executors, three: Script) -> None:
    proven = GraphType("proven", digest=True)
    proven.hop(1, 2)(leave_mark)

    @proven.hop(2, 3)
    def label(ctx: HopContext) -> None:
        if ctx.graph.slug == "e" and ctx.attempt == 1:
            raise ValueError("once")
        ctx.execute("UPDATE nodes SET label = :slug WHERE graph_id = :graph_id", {"slug": ctx.graph.slug})

    registry.register(proven)
    for number, slug in enumerate(CAREFUL):
        add_graph(engine, slug, "proven", nodes=2 + number)
    outcomes = move(executors, engine, CAREFUL, 3)
    assert all(isinstance(each, Applied) for each in outcomes.values())
    found = verify_data(engine, CAREFUL)
    assert (found.graphs, len(found.differences)) == (3, 0)
    broken = rows(
        engine,
        "SELECT a.id FROM hop_attempts a LEFT JOIN hop_attempts b ON b.graph_id = a.graph_id AND b.to_version = 2 "
        "WHERE a.to_version = 3 AND a.status = 'succeeded' AND (a.digest_before IS DISTINCT FROM b.digest_after "
        "OR a.digest_after IS NULL OR a.digest_after = a.digest_before)",
    )
    assert broken == []
    assert_sound(engine, executors)


# ── a session that is lost ──────────────────────────────────────────────────────────────────────────


def end_sessions(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )


POINTS = (
    *(f"hop_opened:{n}" for n in (1, 2, 3)),
    *(f"hop_before_data:{n}" for n in (1, 2, 3, 4, 9)),
    *(f"hop_in_data:{n}" for n in (1, 3, 6)),
    *(f"hop_after_data:{n}" for n in (2, 9)),
    *(f"hop_before_commit:{n}" for n in (1, 2, 3)),
    *(f"hop_committed:{n}" for n in (1, 2, 3)),
    *(f"hop_left:{n}" for n in (1, 3, 5, 9)),
)


@pytest.mark.parametrize("place", POINTS)
def test_a_session_that_is_ended_costs_each_graph_one_attempt(
    engine: Engine, executors: Executors, three: Script, hooked: Any, place: str
) -> None:
    hooked(at(place, lambda: end_sessions(engine)))
    outcomes = move(executors, engine, SLUGS, 4)
    failpoints.hook = None
    for slug in SLUGS:
        assert isinstance(outcomes[slug], Applied | Later), outcomes
    end_all(executors, engine)
    assert_moved(engine, *SLUGS)
    assert_sound(engine, executors)


@pytest.mark.parametrize("answered", [False, True], ids=["before it", "after it, the answer lost"])
def test_a_session_that_is_ended_at_any_message_costs_each_graph_one_attempt(
    engine: Engine, executors: Executors, three: Script, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    """Every message of our own, one after another: the begin, each turn, each finish with its commit."""
    send = Executor._send
    left = [0]
    sent: list[str] = []

    def cut(self: Executor, statement: str, arguments: tuple[Any, ...] = ()) -> dict[str, Any]:
        left[0] -= 1
        if left[0] != 0:
            return send(self, statement, arguments)
        sent.append(statement)
        if answered:
            send(self, statement, arguments)
        self._raw.close()
        raise psycopg2.OperationalError("server closed the connection unexpectedly")

    number = 0
    while True:
        number += 1
        slugs = [f"{slug}{number}" for slug in SLUGS]
        for slug in slugs:
            add_graph(engine, slug, "plain", nodes=2)
        left[0] = number
        begun = True
        with monkeypatch.context() as patched:
            patched.setattr(Executor, "_send", cut)
            try:
                move(executors, engine, slugs, 4)
            except psycopg2.OperationalError:
                begun = False
            is_over = left[0] > 0
        end_all(executors, engine)
        for slug in slugs:
            if not begun and graph_row(engine, slug).version == 1:
                assert not attempts(engine, slug)
            else:
                assert_moved(engine, slug)
        if is_over:
            break
    assert any("finish_together" in each for each in sent)
    assert any("begin_together" in each for each in sent)
    assert_sound(engine, executors)


# ── an operator ─────────────────────────────────────────────────────────────────────────────────────

WHEN = (
    "hop_opened:1",
    "hop_before_data:1",
    "hop_before_data:2",
    "hop_before_data:5",
    "hop_after_data:3",
    "hop_before_commit:1",
    "hop_before_commit:2",
    "hop_before_commit:3",
    "hop_committed:1",
    "hop_committed:2",
    "hop_committed:3",
    "hop_left:2",
)


LATE = {"hop_before_commit:3", "hop_committed:2", "hop_committed:3"}
"""The last hop is open already, or committed."""


def _pause(executor: Executor, slug: str) -> None:
    operations.pause(executor, slug, Caller("p"))


def _cancel(executor: Executor, slug: str) -> None:
    operations.cancel(executor, slug, Caller("c"))


def _release(executor: Executor, slug: str) -> None:
    operations.release(executor, slug, Caller("r"), force=True, terminate=True)


def _lock(executor: Executor, slug: str) -> None:
    operations.set_read_only(executor, slug, Caller("l"), on=True)


VERBS: dict[str, tuple[Callable[[Executor, str], None], set[str]]] = {
    "pause": (_pause, {"paused", "succeeded"}),
    "cancel": (_cancel, {"cancelled", "succeeded"}),
    "release": (_release, {"released", "succeeded"}),
    "lock": (_lock, {"succeeded"}),
}


@pytest.mark.parametrize("place", WHEN)
@pytest.mark.parametrize("verb", VERBS)
def test_what_an_operator_asks_of_one_graph_is_done_to_that_one(
    engine: Engine, executors: Executors, three: Script, hooked: Any, verb: str, place: str
) -> None:
    who = "b"
    ask, ends = VERBS[verb]
    operator = Executors(engine)
    refused: list[Exception] = []

    def intervene() -> None:
        try:
            with operator.borrow() as executor:
                ask(executor, who)
        except Exception as error:
            refused.append(error)

    hooked(at(place, intervene))
    outcomes = move(executors, engine, SLUGS, 4)
    failpoints.hook = None
    operator.close()
    end_all(executors, engine)
    others = [slug for slug in SLUGS if slug != who]
    assert_moved(engine, *others)
    status = migration_of(engine, who).status
    assert status in ends, outcomes[who]
    if refused:
        assert status == "succeeded"
    graph = graph_row(engine, who)
    assert trails(engine, who) == {" ".join(HOPS[: graph.version - 1])}
    assert (graph.migration_id is None) == (status != "paused")
    assert graph.owner_read_only == (verb == "lock")
    if verb != "lock" and place not in LATE:
        assert status != "succeeded"
    if status == "paused":
        with executors.borrow() as executor:
            operations.resume(executor, who, Caller("go on"))
        end_all(executors, engine)
    elif status in {"cancelled", "released"}:
        run_graph_migration(executors, who, 4)
    assert trails(engine, who) == {"one two three"}
    assert_sound(engine, executors)


# ── between the look and the begin ──────────────────────────────────────────────────────────────────


def _sql(statement: str) -> Callable[[Engine, ExitStack], Any]:
    def do(engine: Engine, _: ExitStack) -> None:
        with engine.begin() as connection:
            connection.execute(text(statement))

    return do


def _hold(statement: str) -> Callable[[Engine, ExitStack], Any]:
    def do(engine: Engine, stack: ExitStack) -> None:
        other = stack.enter_context(engine.connect())
        stack.callback(other.rollback)
        other.execute(text(statement))

    return do


MEANWHILE: dict[str, Callable[[Engine, ExitStack], Any]] = {
    "deleted": _sql("DELETE FROM graphs WHERE slug = 'b'"),
    "moved": lambda engine, _: run_graph_migration(engine, "b", 2),
    "locked": _hold("SELECT pg_advisory_xact_lock(lock_key(id)) FROM graphs WHERE slug = 'b'"),
    "being written": _hold(
        "UPDATE nodes SET label = 'open' WHERE graph_id = (SELECT id FROM graphs WHERE slug = 'b')"
    ),
    "renamed": _sql("UPDATE graphs SET slug = 'b2' WHERE slug = 'b'"),
    "configured": _sql("UPDATE graphs SET config = '{\"n\": 7}' WHERE slug = 'b'"),
}


@pytest.mark.parametrize("what", MEANWHILE)
def test_a_graph_that_is_no_longer_as_it_was_read_is_left_out(
    engine: Engine, executors: Executors, three: Script, what: str
) -> None:
    seen: list[Any] = []
    three.on["one"] = on(
        b=lambda ctx: seen.append(ctx.graph.config), b2=lambda ctx: seen.append(ctx.graph.slug)
    )
    with ExitStack() as stack:

        def begin(calls: Any) -> Any:
            MEANWHILE[what](engine, stack)
            return BeginTogether.of(calls)

        ended = run(executors, engine, SLUGS, 4, begin=begin)
        assert_moved(engine, "a", "c")
        assert not have_parted(engine)
        if what in {"renamed", "configured"}:  # read under its lock
            assert seen == ["b2" if what == "renamed" else {"n": 7}]
            assert ended[1] is not None
        else:
            assert ended[1] is None
        assert len(advisory_locks(engine)) == (what in {"locked", "being written"})
    assert_sound(engine, executors)


def test_where_nothing_is_begun_nothing_is_left_open(
    engine: Engine, executors: Executors, three: Script
) -> None:
    def begin(calls: Any) -> Any:
        _sql("DELETE FROM graphs")(engine, ExitStack())
        return BeginTogether.of(calls)

    assert run(executors, engine, SLUGS, 4, begin=begin) == [None] * 3
    assert not rows(engine, "SELECT FROM migrations")
    assert_sound(engine, executors)


# ── a process that dies ─────────────────────────────────────────────────────────────────────────────


class PowerCut(BaseException):
    """Nothing catches it."""


@pytest.mark.parametrize("place", ["hop_opened:1", "hop_in_data:2", "hop_opened:2", "hop_before_commit:3"])
@pytest.mark.parametrize("found", ["running", "lost"])
def test_a_death_is_recorded_with_every_attempt_that_the_process_had_open(
    engine: Engine, executors: Executors, three: Script, hooked: Any, place: str, found: str
) -> None:
    add_graph(engine, "early", "plain")
    early: list[Any] = []

    def die_early(_: HopContext) -> None:
        raise PowerCut

    three.on["one"] = on(early=die_early)
    with pytest.raises(PowerCut):  # lost, but not by this death: others began after it was found
        run(executors, engine, ["early"], 4)
    lose(engine)
    early = rows(engine, "SELECT id FROM hop_attempts")

    def die() -> None:
        raise PowerCut

    three.on.clear()
    hooked(at(place, die))
    with pytest.raises(PowerCut):
        move(executors, engine, SLUGS, 4)
    failpoints.hook = None
    until(lambda: not advisory_locks(engine), "the session has ended")
    if found == "lost":
        lose(engine)
    with executors.borrow() as executor:
        pid = rows(engine, "SELECT DISTINCT pid FROM hop_attempts")[0][0]
        report = ReportDeath(worker="w", pid=pid, how="signal 9", alive_seconds=600)
        said = executor.call(report)
        assert executor.call(report) == said
        assert executor.call(ReportDeath(worker="x", pid=pid, how="signal 9", alive_seconds=600)) is None
    open_then = rows(engine, "SELECT id FROM hop_attempts WHERE status IN ('running', 'lost') ORDER BY id")
    died = [each for each in open_then if each not in early]
    assert len(died) == 3
    assert said == died[-1][0]
    assert rows(engine, "SELECT attempt_id FROM losses WHERE because = 'process' ORDER BY 1") == died
    end_all(executors, engine)
    assert_moved(engine, *SLUGS)


def lose(engine: Engine) -> None:
    """As recovery does."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE hop_attempts SET status = 'lost', finished_at = clock_timestamp() WHERE status = 'running'"
            )
        )
