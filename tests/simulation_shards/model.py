"""A sharded hop as a finite model: every order of its steps, with deaths, losses, duplicates and operators.

One graph, one hop cut into shards of some batches each. A state is a tuple; `successors` lists every step that any
process may take next, `explore` visits all states and looks at each. Locks are not stored: an executor holds what its
place in the protocol says, so that its death frees them in the same step, as Postgres does.

The protocol (docs/decisions, "Sharded hops"):

- The hop's message is the coordinator. Under the graph's exclusive lock it cuts the shards, sends those that are not
  done, or, when all are done, runs the closing attempt that moves the version.
- A shard's executor holds the graph's lock *shared* and the shard's own lock exclusively. Whoever takes the graph's
  lock exclusively has thereby proved that no shard's executor lives.
- A shard that ends looks at the others after its own commit and after its locks are free. Whoever sees all of them
  done sends the coordinator's message; two may, which is harmless.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from tests import states
from tests.states import Explored, Violated

MOST_LOST = 2


class Shard(NamedTuple):
    """A shard's row, and what was truly done to its rows."""

    status: str = "pending"  # running, done
    cursor: int = 0
    batches: int = 0
    lost: int = 0


class Executor(NamedTuple):
    """A session that works. `at` is the last thing that it did."""

    shard: int  # -1: the coordinator
    dispatch: int
    at: str = "locked"
    cursor: int = 0
    saw_all_done: bool = False  # in the draft that looks before its commit


class Message(NamedTuple):
    shard: int  # -1: the coordinator's
    dispatch: int


class State(NamedTuple):
    """All that Postgres, the broker and the processes know."""

    status: str = "running"
    dispatch: int = 1
    version: int = 2
    shards: tuple[Shard, ...] = ()
    closing: bool = False  # the closing attempt's row is running
    executors: tuple[Executor, ...] = ()
    messages: frozenset[Message] = frozenset({Message(-1, 1)})
    faults: int = 0
    verbs: int = 0


@dataclass(frozen=True)
class Rules:
    """The protocol's choices. The defaults are the protocol; each other value is a draft that broke."""

    shards: int = 2
    batches: int = 2
    faults: int = 1
    verbs: int = 1
    executors: int = 3
    recovers: bool = True
    holds_graph_shared: bool = True
    looks_after_commit: bool = True
    settles_under_exclusive: bool = True
    looks_at_status_of_shard: bool = True
    closes_when_all_done: bool = True


ACTIVE = {"running", "pausing", "cancelling"}
SETTLED = {"succeeded", "failed", "cancelled", "released"}
WRITABLE = ACTIVE | {"failed"}
"""A shard that runs while another one fails ends the batch that it has in hand."""


def successors(s: State, rules: Rules) -> Iterator[tuple[str, State]]:
    """Every step that may come next, by name."""
    yield from _deliveries(s, rules)
    for executor in s.executors:
        yield from _coordinate(s, executor, rules) if executor.shard < 0 else _work(s, executor, rules)
    if rules.recovers:
        yield from _recover(s, rules)
    if s.verbs < rules.verbs:
        yield from _verbs(s._replace(verbs=s.verbs + 1), rules)
    if s.faults < rules.faults:
        yield from _faults(s._replace(faults=s.faults + 1))


# ── locks ───────────────────────────────────────────────────────────────────────────────────────────


def _exclusive_is_free(s: State, rules: Rules) -> bool:
    """Whether the graph's lock could be taken exclusively."""
    holders = s.executors if rules.holds_graph_shared else [e for e in s.executors if e.shard < 0]
    return not holders


def _shard_is_free(s: State, shard: int) -> bool:
    return all(e.shard != shard for e in s.executors)


def _coordinator_works(s: State) -> bool:
    return any(e.shard < 0 for e in s.executors)


# ── messages ────────────────────────────────────────────────────────────────────────────────────────


def _deliveries(s: State, rules: Rules) -> Iterator[tuple[str, State]]:
    """A message is delivered; where the lock is taken it stays (it is delivered again later)."""
    if len(s.executors) >= rules.executors:
        return
    for message in s.messages:
        shard = message.shard
        free = _exclusive_is_free(s, rules) if shard < 0 else _shard_is_free(s, shard)
        if shard >= 0 and rules.holds_graph_shared and _coordinator_works(s):
            free = False
        if shard < 0 and _coordinator_works(s):
            free = False
        if free:
            yield f"deliver {message.shard}", _start(s, Executor(*message), s.messages - {message})


def _start(s: State, executor: Executor, messages: frozenset[Message]) -> State:
    return s._replace(executors=_sorted([*s.executors, executor]), messages=messages)


def _move(s: State, old: Executor, new: Executor | None) -> State:
    rest = list(s.executors)
    rest.remove(old)
    return s._replace(executors=_sorted([*rest, new] if new else rest))


def _sorted(executors: Iterable[Executor]) -> tuple[Executor, ...]:
    return tuple(sorted(executors))


def _send(s: State, *shards: int) -> State:
    return s._replace(messages=s.messages | {Message(shard, s.dispatch) for shard in shards})


def _with_shard(s: State, number: int, shard: Shard) -> State:
    return s._replace(shards=(*s.shards[:number], shard, *s.shards[number + 1 :]))


# ── the coordinator: cut, send, close ───────────────────────────────────────────────────────────────


def _coordinate(s: State, e: Executor, rules: Rules) -> Iterator[tuple[str, State]]:
    if e.at == "locked":
        if e.dispatch != s.dispatch or s.status not in ACTIVE:
            yield "ignore", _move(s, e, None)
        elif s.status != "running":
            yield "settle", _settle(_move(s, e, None), rules)
        elif not s.shards:
            yield "cut", _move(s._replace(shards=(Shard(),) * rules.shards), e, e._replace(at="cut"))
        elif _lost_too_often(found := _lose_dead(s, rules)):
            yield "poison", _move(found._replace(status="failed"), e, None)
        elif all(shard.status == "done" for shard in found.shards) or not rules.closes_when_all_done:
            yield "open closing", _move(found._replace(closing=True), e, e._replace(at="closing"))
        else:
            yield "gather", _move(found, e, e._replace(at="cut"))
    elif e.at == "cut":  # committed; locks are released, then messages go out
        pending = [k for k, shard in enumerate(s.shards) if shard.status != "done"]
        yield "send shards", _send(_move(s, e, None), *pending)
    else:
        done = s._replace(version=3, status="succeeded", closing=False)
        yield "close", _move(done, e, None)


def _lose_dead(s: State, rules: Rules) -> State:
    """Rows that run although nobody holds their lock: their executors are dead."""
    for number, shard in enumerate(s.shards):
        if shard.status == "running" and _shard_is_free(s, number):
            s = _with_shard(s, number, shard._replace(status="pending", lost=shard.lost + 1))
    return s._replace(closing=False) if s.closing and not any(e.at == "closing" for e in s.executors) else s


def _lost_too_often(s: State) -> bool:
    return any(shard.lost >= MOST_LOST for shard in s.shards)


def _settle(s: State, rules: Rules) -> State:
    """What an operator asked for is carried out; needs the graph's lock, exclusively."""
    s = _lose_dead(s, rules)
    if s.status == "pausing":
        return s._replace(status="paused")
    partial = any(shard.batches for shard in s.shards)
    return s._replace(status="failed" if partial else "cancelled")


# ── a shard's executor ──────────────────────────────────────────────────────────────────────────────


def _work(s: State, e: Executor, rules: Rules) -> Iterator[tuple[str, State]]:
    match e.at:
        case "locked":
            yield "open shard", _open(s, e, rules)
        case "opened":
            if s.status == "running":
                yield "open batch", _move(s, e, e._replace(at="batch"))
            else:
                stopped = _with_shard(s, e.shard, s.shards[e.shard]._replace(status="pending"))
                if not rules.settles_under_exclusive and s.status in ACTIVE:
                    stopped = _settle(stopped, rules)
                yield "stop shard", _move(stopped, e, e._replace(at="leaving"))
        case "batch" if not rules.looks_after_commit:
            others = all(o.status == "done" for k, o in enumerate(s.shards) if k != e.shard)
            yield "look", _move(s, e, e._replace(at="looked", saw_all_done=others))
        case "batch" | "looked":
            yield "commit batch", _commit(s, e, rules)
            if s.faults < rules.faults:
                failed = _with_shard(s, e.shard, s.shards[e.shard]._replace(status="pending"))
                failed = failed._replace(faults=s.faults + 1)
                if s.status in ACTIVE:
                    failed = failed._replace(status="failed")
                yield "hop raises", _move(failed, e, e._replace(at="leaving"))
        case _:
            yield "leave", _leave(s, e, rules)


def _open(s: State, e: Executor, rules: Rules) -> State:
    shard = s.shards[e.shard]
    if e.dispatch != s.dispatch or s.status not in ACTIVE:
        return _move(s, e, None)
    if shard.status == "done" and rules.looks_at_status_of_shard:
        return _move(s, e, e._replace(at="leaving"))
    if s.status != "running":
        return _move(s, e, e._replace(at="leaving"))
    lost = shard.lost + (shard.status == "running")  # its lock was free: that executor is dead
    if lost >= MOST_LOST:
        failed = _with_shard(s, e.shard, shard._replace(status="pending", lost=lost))
        return _move(failed._replace(status="failed"), e, e._replace(at="leaving"))
    opened = _with_shard(s, e.shard, shard._replace(status="running", lost=lost))
    return _move(opened, e, e._replace(at="opened", cursor=shard.cursor))


def _commit(s: State, e: Executor, rules: Rules) -> State:
    if s.status not in WRITABLE or s.version != 2:
        raise Violated(f"shard {e.shard} commits rows while the migration is {s.status}")
    shard = s.shards[e.shard]
    cursor = e.cursor + 1
    ended = cursor >= rules.batches
    # Progress: what was lost is counted anew.
    written = Shard("done" if ended else "running", cursor, shard.batches + 1)
    after = _with_shard(s, e.shard, written)
    if not ended:
        return _move(after, e, e._replace(at="opened", cursor=cursor))
    return _move(after, e, e._replace(at="leaving"))


def _leave(s: State, e: Executor, rules: Rules) -> State:
    """Its locks are free; it looks once more at what is left to do."""
    left = _move(s, e, None)
    if s.dispatch != e.dispatch:
        return left
    if s.status in ACTIVE - {"running"}:
        return _settle(left, rules) if _exclusive_is_free(left, rules) else left
    all_done = all(shard.status == "done" for shard in s.shards)
    sees = all_done if rules.looks_after_commit else e.saw_all_done
    return _send(left, -1) if s.status == "running" and sees else left


# ── recovery, operators, faults ─────────────────────────────────────────────────────────────────────


def _recover(s: State, rules: Rules) -> Iterator[tuple[str, State]]:
    """A sweep: one transaction, messages after its commit."""
    if s.status not in ACTIVE:
        return
    if _exclusive_is_free(s, rules):
        found = _lose_dead(s, rules)
        if s.status != "running":
            yield "recover: settle", _settle(found, rules)
        elif _lost_too_often(found):
            yield "recover: poison", found._replace(status="failed")
        elif not any(m.dispatch == s.dispatch for m in s.messages):
            yield "recover: send", _send(found, -1)
    # Whether others work or not: shards that run and whose own lock is free are dead, and only they are sent again.
    found = s
    dead = [k for k, shard in enumerate(s.shards) if shard.status == "running" and _shard_is_free(s, k)]
    for k in dead:
        shard = s.shards[k]
        found = _with_shard(found, k, shard._replace(status="pending", lost=shard.lost + 1))
    if dead and s.status == "running" and not _coordinator_works(s):
        if _lost_too_often(found):
            yield "recover: poison", found._replace(status="failed")
        else:
            yield "recover: send shards", _send(found, *dead)


def _verbs(s: State, rules: Rules) -> Iterator[tuple[str, State]]:
    free = _exclusive_is_free(s, rules)
    again = s._replace(status="running", dispatch=s.dispatch + 1)
    if s.status == "running":
        yield "pause", s._replace(status="pausing")
    if s.status == "pausing":
        yield "resume", s._replace(status="running")
    if s.status == "paused" and free:
        yield "resume", _send(again, -1)
    if s.status in {"running", "pausing", "paused"}:
        yield "cancel", s._replace(status="cancelling")
    if s.status == "failed" and free:
        found = _lose_dead(again, rules)
        fresh = tuple(shard._replace(lost=0) for shard in found.shards)
        yield "retry", _send(found._replace(shards=fresh), -1)
    if s.status in ACTIVE | {"paused", "failed"} and free:
        yield "release --force", _lose_dead(s, rules)._replace(status="released")


def _faults(s: State) -> Iterator[tuple[str, State]]:
    for executor in set(s.executors):
        dead = _move(s, executor, None)
        yield "death", dead
        message = Message(executor.shard, executor.dispatch)  # acks_late: it may come again
        yield "death, redelivered", dead._replace(messages=dead.messages | {message})
    for message in s.messages:
        yield "message lost", s._replace(messages=s.messages - {message})
    for executor in set(s.executors):
        message = Message(executor.shard, executor.dispatch)
        if message not in s.messages:
            yield "message doubled", s._replace(messages=s.messages | {message})


# ── what must hold ──────────────────────────────────────────────────────────────────────────────────


def check(s: State, rules: Rules) -> None:
    """The invariants, at every state.

    Raises:
        Violated: With a sentence.
    """
    for number, shard in enumerate(s.shards):
        if shard.batches != shard.cursor:
            raise Violated(
                f"shard {number}: {shard.batches} batches were applied, its cursor says {shard.cursor}"
            )
        if shard.batches > rules.batches:
            raise Violated(f"shard {number} was processed again after its end")
        if sum(e.shard == number and e.at == "batch" for e in s.executors) > 1:
            raise Violated(f"two executors write shard {number}")
    whole = bool(s.shards) and all(shard.batches == rules.batches for shard in s.shards)
    if s.version == 3 and not whole:
        raise Violated("the version moved before every shard was done")
    if (s.version == 3) != (s.status == "succeeded"):
        raise Violated(f"version {s.version}, {s.status}")
    if s.status in {"paused", "cancelled", "released", "succeeded"} and any(
        e.at in {"opened", "batch"} for e in s.executors if e.shard >= 0
    ):
        raise Violated(f"{s.status} while a shard's executor works")
    if s.status == "cancelled" and any(shard.batches for shard in s.shards):
        raise Violated("cancelled, but rows have the new shape")


_FROM_OUTSIDE = frozenset(
    {"death", "death, redelivered", "message lost", "message doubled", "hop raises",
     "pause", "resume", "cancel", "retry", "release --force"}
)  # fmt: skip


def explore(rules: Rules | None = None) -> Explored:
    """Visit every state; see `tests.states.explore`."""
    chosen = rules or Rules()
    return states.explore(
        State(),
        lambda state: successors(state, chosen),
        lambda state: check(state, chosen),
        from_outside=_FROM_OUTSIDE,
        active=ACTIVE,
    )


def variant(**changes: object) -> Rules:
    """The protocol with some other choices."""
    return replace(Rules(), **changes)  # type: ignore[arg-type] # the names are the dataclass's own
