"""Several free graphs whose hops share their transactions, in one session.

Each graph has its own migration, its own attempts and its own turn in the transaction: its hop runs with its token, on
a session from which `turn_to` has removed what the hop before left. Then all of them are finished by the call that
commits. So a commit, with all that it costs, is paid once for several small graphs; whoever dies in between costs each
of them the hop that was open, as ever.

Nothing is decided for a graph because of another one. Where a hop raises, or the transaction cannot be committed, it is
rolled back for all of them; their attempts are ended as `stopped`, and each hop runs again by itself, by `run_hop`,
which records what became of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from graph_migrator.core import plural
from graph_migrator.core.decisions import Limits
from graph_migrator.core.events import publish
from graph_migrator.core.execution import failpoints
from graph_migrator.core.execution.apply_hop import change_whole
from graph_migrator.core.execution.limits import limits_of_settings
from graph_migrator.core.execution.model import Attempt, Caller, Done, HopOutcome, Worker
from graph_migrator.core.execution.run_hop import conclude
from graph_migrator.core.execution.straight import FreeGraph, Straight, StraightRun
from graph_migrator.core.execution.watch import watched
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.planning import Plan
from graph_migrator.core.recorded_errors import LONGEST_MESSAGE, bounded, name_of
from graph_migrator.core.settings import settings
from graph_migrator.core.store.errors import DRIVER_ERRORS
from graph_migrator.core.store.protocol import (
    BeginAndOpen,
    BeginTogether,
    FinishTogether,
    OpenedFirst,
    PartCompany,
    ReleaseTogether,
    ResumeTogether,
    TurnTo,
)
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.core.store.session import Executor, Executors

_log = logging.getLogger("graph_migrator.hops")

LONGEST_SECONDS: Final = 2.0
"""Of a statement, and of the turns before one more is taken: so long the others wait for one that is slow."""

BeginCalls = Callable[[Sequence[BeginAndOpen]], BeginTogether]


def run_together(
    executors: Executors,
    kind: GraphType,
    graphs: Sequence[tuple[FreeGraph, Caller]],
    plan: Plan,
    *,
    worker: Worker,
    begin: BeginCalls,
    limits: Limits | None = None,
) -> list[Straight | None]:
    """Begin the migrations of free graphs and run all their hops, each hop of all of them in one transaction.

    Args:
        executors: Lends the session; it comes back without any lock.
        kind: The graphs' type.
        graphs: The graphs as they were read, and who asks for each.
        plan: From their version, which is the same, to the target, made from this process's code.
        worker: Who executes, for the audit rows.
        begin: Makes the call that begins them all.
        limits: How often a hop may go wrong; from the settings by default.

    Returns:
        For each graph, in order, how far it came; None where it was not begun. As of `run_straight`.

    Raises:
        Exception: Postgres is out of reach, and nobody knows whether they were begun.
    """
    limits = limits or limits_of_settings()
    runs = [StraightRun(kind, graph, plan, caller, worker, limits) for graph, caller in graphs]
    if not all(run.may_begin() and len(run.hops) == len(plan.steps) for run in runs):
        return [None] * len(runs)
    with executors.borrow() as executor:
        group = _Group(executor, worker)
        group.begin(runs, begin)
        try:
            group.to_the_end()
        except Exception as error:  # noqa: BLE001 - whatever it is, each graph meets it again by itself
            group.part(error)
    return [
        run.came_to(group.outcomes.get(run.begun.migration_id)) if run.applied is not None else None
        for run in runs
    ]


@dataclass
class _Member:
    run: StraightRun
    attempt: Attempt

    def following(self, attempt_id: int) -> _Member:
        """With its next hop, which is open."""
        assert self.attempt.following is not None  # noqa: S101 - it is what was opened
        state = self.attempt.following.state
        return _Member(self.run, self.run.attempt(self.run.applied or 0, attempt_id, state))


class _Group:
    """Those that have begun together, and have not ended."""

    def __init__(self, executor: Executor, worker: Worker) -> None:
        self._executor = executor
        self._worker = worker
        self._members: list[_Member] = []
        self._turn: str | None = None  # the graph whose hop has the transaction
        self.outcomes: dict[UUID, HopOutcome | None] = {}  # of those that have ended, by migration

    def begin(self, runs: Sequence[StraightRun], begin: BeginCalls) -> None:
        """Begin those that are as they were read, and open the first hop of each."""
        executor = self._executor
        executor.prepare(BeginTogether, TurnTo, FinishTogether, ResumeTogether, ReleaseTogether)
        failpoints.hit("begin_before_commit")
        opened = executor.call_and_begin(begin([run.begin_call() for run in runs]))
        failpoints.hit("begin_committed")
        for run, columns in zip(runs, opened, strict=True):
            if columns is not None:
                self._members.append(_Member(run, run.has_begun(executor, OpenedFirst(**columns))))
        if not self._members:
            executor.roll_back()

    def to_the_end(self) -> None:
        """Run what is open, and what is opened by that."""
        while self._members:
            self._run_hop()

    def _run_hop(self) -> None:
        executor, members = self._executor, self._members
        failpoints.hit("hop_opened")
        for each in members:
            publish.started(executor, each.attempt, self._worker, None)
        is_last = members[0].attempt.is_last
        opened: list[int] = []
        with executor.transaction() as connection:
            done = []
            before, began = None, time.monotonic()
            for each in members:
                if time.monotonic() - began > LONGEST_SECONDS:
                    raise TimeoutError(f"the turns before the next one took more than {LONGEST_SECONDS:g} s")
                self._turn = each.attempt.graph.slug
                its = each.run.begun.migration_id
                executor.turn_to(TurnTo(before=before, migration=its, ms=int(LONGEST_SECONDS * 1_000)))
                with watched(executor, each.attempt):
                    done.append(change_whole(executor, each.attempt, connection))
                before = its
            self._turn = None
            failpoints.hit("hop_before_commit")
            finish, graphs = self._finish(done), tuple(each.attempt.graph.id for each in members)
            if is_last:
                executor.call_and_commit(finish, then=ReleaseTogether(graphs=graphs))
            else:
                opened = executor.commit_and_open(
                    finish, then=ResumeTogether(migrations=finish.migrations, graphs=graphs)
                )
        failpoints.hit("hop_committed")
        for each, what in zip(members, done, strict=True):
            each.run.took(each.attempt, what)
            report = each.run.report(each.attempt) if is_last else None
            outcome = conclude(executor, each.attempt, Done(what.rows, what.skipped, report))
            if is_last:
                self.outcomes[each.run.begun.migration_id] = outcome
        self._members = [
            each.following(attempt_id) for each, attempt_id in zip(members, opened, strict=not is_last)
        ]

    def _finish(self, done: Sequence[Done]) -> FinishTogether:
        attempts = [each.attempt for each in self._members]
        first = attempts[0]
        step = first.following.step if first.following is not None else None
        return FinishTogether(
            attempts=tuple(attempt.id for attempt in attempts),
            migrations=tuple(attempt.message.migration_id for attempt in attempts),
            graphs=tuple(attempt.graph.id for attempt in attempts),
            statuses=tuple("skipped" if each.skipped else "succeeded" for each in done),
            rows=tuple(each.rows for each in done),
            from_=first.message.from_version,
            to=first.message.to_version,
            deadline_seconds=settings().deadline_seconds,
            next_to=step.to_version if step else None,
            hop=step.name if step else None,
            fingerprint=step.fingerprint if step else None,
            worker=self._worker.name,
            pid=self._worker.pid,
            task=self._worker.task_id,
        )

    def part(self, error: Exception) -> None:
        """The transaction was rolled back, or nobody knows: end what is still open, and release the graphs."""
        what = f"{name_of(error)}: {safe_message(error)}"
        why = (
            f"{self._turn}, which shared its transaction, raised {what}"
            if self._turn
            else f"the transaction that it shared was not committed: {what}"
        )
        _log.info("%s, and each hop runs by itself: %s", plural.count(len(self._members), "graph"), why)
        migrations = tuple(each.run.begun.migration_id for each in self._members)
        self._executor.roll_back()  # the next hop's transaction may be open
        with suppress(*DRIVER_ERRORS):  # where it is not done, whoever looks finds that the attempts are lost
            self._executor.call_and_reset(
                PartCompany(migrations=migrations, why=bounded(why, LONGEST_MESSAGE))
            )
        self._executor.close()  # a hop may have taken from the session what no reset brings back
