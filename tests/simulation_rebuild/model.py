"""A rebuild hop and its undo as a finite model: every order of their steps, with deaths, operators, writers and sweeps.

One graph of two rows at v2, a hop to v3 that stages a row in each batch, and a way back. A state is a tuple;
`successors` lists every step that any process may take next, `explore` visits all states and looks at each: what is
committed there is what a reader sees. An executor holds the graph's lock, so its death frees it in the same step.

The protocol is that of docs/decisions/0017-rebuild-hops.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from tests import states
from tests.states import Explored, Violated

ROWS = 2


class Rebuild(NamedTuple):
    """Staged or kept rows, as (old, new) values."""

    state: str = "staging"  # staged, kept, garbage
    code: str = "a"
    rows: tuple[tuple[str, str], ...] = ()
    written: bool = False  # the graph was changed after the swap


class State(NamedTuple):
    """All that Postgres, the broker and the processes know. A value is its version, its hop's code, and changes."""

    version: int = 2
    data: tuple[str, ...] = ("2",) * ROWS
    status: str = "running"
    target: int = 3
    plan: str = "a"  # the code that was planned
    code: str = "a"  # the code that the workers have
    dispatch: int = 1
    messages: frozenset[int] = frozenset({1})
    running: bool = False  # an attempt's row
    at: str = ""  # where the executor is; "" for none
    writer: bool = False  # a writer's transaction is open, and holds the lock shared
    rebuild: Rebuild | None = None
    changes: int = 0  # committed by writers and repairs
    stuck: bool = False  # the way back found neither rows nor code
    faults: int = 0
    verbs: int = 0


@dataclass(frozen=True)
class Rules:
    """The protocol's choices. The defaults are the protocol; each other value is a draft that broke."""

    faults: int = 1
    verbs: int = 2
    is_reversible: bool = True
    recovers: bool = True
    guards_staging: bool = True
    swaps_when_staged: bool = True
    repair_discards: bool = True
    new_code_discards: bool = True
    writers_mark: bool = True
    marks_before_removal: bool = True
    keeps_while_claimed: bool = True


ACTIVE = {"running", "pausing", "cancelling"}
ENDED = {"succeeded", "cancelled", "released"}


def successors(s: State, rules: Rules) -> Iterator[tuple[str, State]]:
    """Every step that may come next, by name."""
    if s.at:
        yield from _execute(s, rules)
    elif not s.writer:
        for message in s.messages:
            taken = s._replace(messages=s.messages - {message})
            stale = message != s.dispatch or s.status not in ACTIVE
            yield "deliver", taken if stale else taken._replace(at="locked")
        if rules.recovers:
            yield from _recover(s)
    yield from _sweep(s, rules)
    yield from _writer(s, rules)
    if s.verbs < rules.verbs:
        yield from _verbs(s._replace(verbs=s.verbs + 1), rules)
    if s.faults < rules.faults:
        for message in s.messages:
            yield "message lost", s._replace(messages=s.messages - {message}, faults=s.faults + 1)
        if s.at:
            yield "death", s._replace(at="", faults=s.faults + 1)


# ── the executor, under the graph's lock ────────────────────────────────────────────────────────────


def _execute(s: State, rules: Rules) -> Iterator[tuple[str, State]]:
    if s.at == "locked":
        if s.status != "running":
            yield "settle", _settle(s)
        elif s.code != s.plan:
            yield "code differs", _end(s, status="failed")
        else:
            yield "open", s._replace(running=True, at="opened", rebuild=_opened(s, rules))
    elif s.at == "opened":
        if s.status != "running":
            yield "settle", _settle(s)
        elif s.target == 3:
            is_staged = s.rebuild is not None and s.rebuild.state == "staged"
            yield "open batch", s._replace(at="batch" if not is_staged else "swap")
            if not rules.swaps_when_staged:
                yield "open batch", s._replace(at="swap")
        else:
            yield "open undo", s._replace(at="undo" if _is_undoable(s) else "back")
    elif s.at == "batch":
        yield "stage batch", _stage(s, rules)
    elif s.at == "swap":
        yield "swap", _swap(s)
    elif s.at == "undo":
        yield from _undo(s)
    elif rules.is_reversible:
        data = tuple("2" + value[2:] for value in s.data)
        yield "back", _end(s, status="succeeded", version=2, data=data)
    else:
        yield "no way back", _end(s, status="failed", stuck=True)
    if s.at in {"batch", "swap"} and s.faults < rules.faults:
        yield "hop raises", _end(s, status="failed", faults=s.faults + 1)


def _end(s: State, **changed: object) -> State:
    return s._replace(at="", running=False, **changed)  # type: ignore[arg-type]


def _settle(s: State) -> State:
    """Carry a pause or cancel out. The graph is whole: staged rows are not its own."""
    return _end(s, status="paused" if s.status == "pausing" else "cancelled")


def _opened(s: State, rules: Rules) -> Rebuild | None:
    if s.target == 2:
        return s.rebuild
    found = s.rebuild
    if found is None or found.state not in {"staging", "staged"}:
        return Rebuild(code=s.plan)
    return Rebuild(code=s.plan) if found.code != s.plan and rules.new_code_discards else found


def _stage(s: State, rules: Rules) -> State:
    assert s.rebuild is not None
    number = len(s.rebuild.rows)
    old = s.data[number]
    new = "3" + s.plan + old[1:]
    rows = (*s.rebuild.rows, (old, new))
    staged = s.rebuild._replace(rows=rows, state="staged" if len(rows) == ROWS else "staging")
    data = s.data if rules.guards_staging else _with(s.data, number, new)
    return s._replace(at="opened", rebuild=staged, data=data)


def _with(data: tuple[str, ...], number: int, value: str) -> tuple[str, ...]:
    return (*data[:number], value, *data[number + 1 :])


def _swap(s: State) -> State:
    assert s.rebuild is not None
    data = (*(new for _, new in s.rebuild.rows), *s.data[len(s.rebuild.rows) :])
    kept = s.rebuild._replace(state="kept")
    return _end(s, status="succeeded", version=3, data=data, rebuild=kept)


def _is_undoable(s: State) -> bool:
    return s.rebuild is not None and s.rebuild.state == "kept" and not s.rebuild.written


def _undo(s: State) -> Iterator[tuple[str, State]]:
    """One transaction; it began when the rows were there, and looks again under the row's lock."""
    if not _is_undoable(s):
        yield "undo: look again", s._replace(at="opened")
        return
    assert s.rebuild is not None
    data = (*(old for old, _ in s.rebuild.rows), *s.data[len(s.rebuild.rows) :])
    garbage = s.rebuild._replace(state="garbage")
    yield "undo", _end(s, status="succeeded", version=2, data=data, rebuild=garbage)


# ── everybody else ──────────────────────────────────────────────────────────────────────────────────


def _recover(s: State) -> Iterator[tuple[str, State]]:
    """The lock is free."""
    if s.status in {"pausing", "cancelling"}:
        yield "recover: settle", _settle(s)
    elif s.status == "running" and (s.running or s.dispatch not in s.messages):
        again = s.dispatch + 1
        yield "recover: send", s._replace(running=False, dispatch=again, messages=s.messages | {again})


def _sweep(s: State, rules: Rules) -> Iterator[tuple[str, State]]:
    """Rows whose time is over, in two transactions at least: nobody may find half of them."""
    found = s.rebuild
    if found is None:
        return
    if found.state == "garbage":
        rows = found.rows[1:]
        yield "sweep: remove", s._replace(rebuild=found._replace(rows=rows) if rows else None)
    elif found.state == "kept":
        locked = bool(s.at) or s.writer
        if (s.status in ENDED and not locked) or not rules.keeps_while_claimed:
            if rules.marks_before_removal:
                yield "sweep: expire", s._replace(rebuild=found._replace(state="garbage"))
            elif found.rows:
                yield "sweep: expire", s._replace(rebuild=found._replace(rows=found.rows[1:]))
    elif s.status in ENDED:
        yield "sweep: discard", s._replace(rebuild=found._replace(state="garbage"))


def _writer(s: State, rules: Rules) -> Iterator[tuple[str, State]]:
    if s.writer:
        marked = s.rebuild
        if marked is not None and marked.state == "kept" and rules.writers_mark:
            marked = marked._replace(written=True)
        data = _with(s.data, 0, s.data[0] + "w")
        yield "write", s._replace(writer=False, data=data, changes=s.changes + 1, rebuild=marked)
        yield "write: roll back", s._replace(writer=False)
    elif s.status in ENDED and not s.at and s.changes < 1:
        yield "writer begins", s._replace(writer=True)


def _verbs(s: State, rules: Rules) -> Iterator[tuple[str, State]]:
    free = not s.at and not s.writer
    again = s._replace(status="running", dispatch=s.dispatch + 1, messages=s.messages | {s.dispatch + 1})
    if s.status == "running":
        yield "pause", s._replace(status="pausing")
    if s.status == "pausing":
        yield "resume", s._replace(status="running")
    if s.status == "paused" and free:
        yield "resume", again
    if s.status in {"running", "pausing", "paused"}:
        yield "cancel", s._replace(status="cancelling")
    if s.status == "failed" and free:
        yield "retry", again._replace(plan=s.code)
    if s.status in ACTIVE | {"paused", "failed"} and free:
        yield "release --force", s._replace(status="released", running=False)
    if s.status in {"paused", "failed"} and free:
        yield "repair", _repair(s, rules)
    if s.code == "a":
        yield "deploy", s._replace(code="b")
    if s.code != s.plan and s.status in ACTIVE | {"paused"} and free:
        yield "plan anew", s._replace(plan=s.code)  # by a rollout
    if s.status == "succeeded" and s.version == 3 and free and (rules.is_reversible or _is_undoable(s)):
        yield "migrate back", again._replace(target=2, plan=s.code)


def _repair(s: State, rules: Rules) -> State:
    found = s.rebuild
    if found is not None and found.state == "kept":
        found = found._replace(written=True)
    elif found is not None and rules.repair_discards:
        found = found._replace(state="garbage")
    return s._replace(data=_with(s.data, 1, s.data[1] + "r"), changes=s.changes + 1, rebuild=found)


# ── what must hold ──────────────────────────────────────────────────────────────────────────────────


def check(s: State) -> None:
    """The invariants, at every state.

    Raises:
        Violated: With a sentence.
    """
    if {value[0] for value in s.data} != {str(s.version)}:
        raise Violated(f"a reader sees a mix at v{s.version}: {s.data}")
    if len({value[1] for value in s.data if value[0] == "3"}) > 1:
        raise Violated(f"rows of two codes: {s.data}")
    if s.changes != sum(value.count("w") + value.count("r") for value in s.data):
        raise Violated(f"a change was lost: {s.data}")
    if s.status == "succeeded" and s.version != s.target:
        raise Violated(f"succeeded at v{s.version}, not v{s.target}")
    if s.status in {"cancelled", "released", "paused"} and s.at:
        raise Violated(f"{s.status} while an executor works")
    if s.stuck and not (s.rebuild and s.rebuild.written):
        raise Violated("a way back that was promised is gone")


_FROM_OUTSIDE = frozenset(
    {"death", "message lost", "hop raises", "pause", "resume", "cancel", "retry", "release --force", "repair",
     "deploy", "plan anew", "migrate back", "writer begins"}
)  # fmt: skip


def explore(rules: Rules | None = None) -> Explored:
    """Visit every state; see `tests.states.explore`."""
    chosen = rules or Rules()
    return states.explore(
        State(), lambda state: successors(state, chosen), check, from_outside=_FROM_OUTSIDE, active=ACTIVE
    )


def variant(**changed: object) -> Rules:
    """The protocol's rules but for some."""
    assert set(changed) <= {field.name for field in fields(Rules)}
    return replace(Rules(), **changed)  # type: ignore[arg-type]
