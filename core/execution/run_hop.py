"""What a delivered message does: at most one hop, and the record of how it went.

`run_hop` reads, decides (`core.decisions`), and does what was decided. A hop that raised is recorded by
`core.execution.fail`; of one whose connection was lost, `core.execution.lost_connection` reads what was committed.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from graph_migrator.core.decision_inputs import HopState
from graph_migrator.core.decisions import (
    Answer,
    CodeDiffers,
    HopDecision,
    HopMessage,
    Ignored,
    Later,
    Limits,
    LossLimitReached,
    PassOn,
    Postpone,
    Requeue,
    Run,
    StopAtBoundary,
    decide_hop,
)
from graph_migrator.core.errors import HopCodeChanged
from graph_migrator.core.events import publish
from graph_migrator.core.execution import failpoints, shards
from graph_migrator.core.execution.apply_hop import apply_hop
from graph_migrator.core.execution.fail import ConnectionLost, record_failure
from graph_migrator.core.execution.limits import limits_of_settings, lost_too_often
from graph_migrator.core.execution.lost_connection import resolve_lost_commit
from graph_migrator.core.execution.model import (
    Applied,
    Attempt,
    AttemptFailed,
    Done,
    Failed,
    HopOutcome,
    Stopped,
    Worker,
)
from graph_migrator.core.execution.recorded import load_report
from graph_migrator.core.execution.waits import backoff, jittered
from graph_migrator.core.execution.watch import watched
from graph_migrator.core.graph_types.definition import DirectedHop, GraphType
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.planning import steps_of_one_transaction
from graph_migrator.core.recorded_errors import LONGEST_MESSAGE, bounded, json_args, name_of
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.core.store import frames, protocol
from graph_migrator.core.store.errors import Failure, classify
from graph_migrator.core.store.locks import GraphLock, ShardLock
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.core.store.session import Executor, Executors

MOST_TYPES: Final = 16
"""With a hop between the same versions. What a look says of more of them costs as much as the message that it saves."""


def run_hop(
    executors: Executors,
    message: HopMessage,
    *,
    worker: Worker | None = None,
    limits: Limits | None = None,
    may_cut: bool = True,
) -> HopOutcome:
    """Do what a delivered message asks for: run its hop or shard, or whatever else the present state calls for.

    Args:
        executors: Lends the session; it comes back without any lock.
        message: What was delivered.
        worker: Who executes, for the audit row.
        limits: How often a hop may go wrong; from the settings by default.
        may_cut: A hop may be cut into shards here; else it is run whole.

    Returns:
        `Applied` when the hop is applied (by this call or before), with the final report after the last
        one; `Ignored` when this message is not the one; `Later` when it should be delivered again;
        `Failed` when the migration has ended with an error, which is recorded; `Sharded` where shards, or the chain
        that follows them, are to be sent.
    """
    worker = worker or Worker()
    limits = limits or limits_of_settings()
    while True:
        try:
            with executors.borrow() as executor:
                outcome = _deliver(executor, message, worker, limits, may_cut=may_cut)
        except ConnectionLost as lost:
            outcome = resolve_lost_commit(executors, lost.attempt, limits)
        except Exception as error:
            # Between two attempts nothing is held: whatever was lost on the way, the next look finds it.
            if classify(error) is Failure.PERMANENT:
                raise
            outcome = Later(backoff(2), f"Postgres: {safe_message(error)}")
        if outcome is not None:
            return outcome


def _deliver(
    executor: Executor, message: HopMessage, worker: Worker, limits: Limits, *, may_cut: bool
) -> HopOutcome | None:
    """Read once, decide once, and do it. None: the state changed in between, look again."""
    kinds = graph_types()  # read once: what is opened is what is decided on
    state, opened = _look(executor, message, worker, kinds)
    if state is None:
        return Ignored(f"there is no migration {message.migration_id}", must_not_occur=True)
    is_shard = message.shard is not None
    with (ShardLock if is_shard else GraphLock)(executor, state.graph_id, held=state.locked) as lock:
        if opened is None:
            failpoints.hit("shard_locked" if is_shard else "hop_locked")
        hop = _code_for(kinds, state, message)
        decision = decide_hop(state, message, hop.fingerprint if hop else None, limits)
        if opened is not None and decision != Run(None):
            raise AssertionError(f"opened, but to be decided otherwise: {decision}")
        if not isinstance(decision, Run):
            if not (is_shard and isinstance(decision, PassOn | StopAtBoundary)):
                return _carry_out(executor, message, state, hop, decision)
            attempt = None
        else:
            assert hop is not None  # noqa: S101 - its fingerprint was the planned one
            if opened is None:
                if not is_shard and may_cut:
                    sharded = shards.coordinate(executor, message, state, hop)
                    if sharded is not None:
                        return sharded
                opened = _open(executor, message, state, hop, decision.lost_id, worker)
                if opened is None:
                    return None
            failpoints.hit("shard_opened" if is_shard else "hop_opened")
            attempt = Attempt(opened.attempt_id, opened.attempt, message, state, hop)
            publish.started(executor, attempt, worker, decision.lost_id)
            ending = apply_or_record(executor, attempt, lock, limits)
    # A shard's executor acts on what it finds only when its own locks are free: until then nobody is the last one.
    return shards.leave(executor, message) if attempt is None else conclude(executor, attempt, ending)


def _look(
    executor: Executor, message: HopMessage, worker: Worker, kinds: dict[str, GraphType]
) -> tuple[HopState | None, protocol.OpenedAttempt | None]:
    """Read what the message is decided on, and open the attempt with it in the plain case; see `lock_and_open_hop`.

    Then the transaction of the hop's data is open too. Else nothing is.
    """
    steps = {}
    if message.shard is None:
        steps = steps_of_one_transaction(tuple(kinds.values()), message.from_version, message.to_version)
    if not 0 < len(steps) <= MOST_TYPES:
        call = protocol.LockAndLoadHop(
            migration=message.migration_id,
            to=message.to_version,
            dispatch=message.dispatch,
            shard=message.shard,
        )
        return executor.call(call), None
    found = executor.call_and_begin(
        protocol.LockAndOpenHop(
            migration=message.migration_id,
            to=message.to_version,
            dispatch=message.dispatch,
            steps=steps,
            worker=worker.name,
            pid=worker.pid,
            task=worker.task_id,
            deadline_seconds=settings().deadline_seconds,
        )
    )
    if found.opened is None:
        executor.roll_back()
    return found.state, found.opened


def _code_for(kinds: dict[str, GraphType], state: HopState, message: HopMessage) -> DirectedHop | None:
    """This process's code for the hop, if it has any."""
    try:
        return kinds[state.graph_type].directed(message.from_version, message.to_version)
    except LookupError:
        return None


# ── whatever is not running the hop ─────────────────────────────────────────────────────────────────


def _carry_out(
    executor: Executor, message: HopMessage, state: HopState, hop: DirectedHop | None, decision: HopDecision
) -> HopOutcome | None:
    match decision:
        case Ignored() | Later():
            return decision
        case Answer():
            if message.shard is not None:  # the hop's own message answers
                return Ignored(f"the migration is {state.status}")
            return _answer(executor, message.migration_id)
        case PassOn():
            return Applied()
        case StopAtBoundary():
            return _settle(executor, message.migration_id, state.running_id)
        case LossLimitReached(running_id=running_id):
            return _fail_between_hops(
                executor, message, running_id, lost_too_often(state.slug, state.hop_name, decision)
            )
        case Postpone(lost_id, seconds):
            return _postpone(executor, message, lost_id, seconds)
        case Requeue(seconds):
            executor.call(
                protocol.CountMismatch(
                    migration=message.migration_id, deadline_seconds=settings().deadline_seconds
                )
            )
            # Never in step with the consumers' polling, or the same worker takes it each time.
            pause = jittered(seconds, 0.4)
            return Later(pause, "this worker has other code for the hop")
        case CodeDiffers():
            found = hop.fingerprint if hop else ""
            changed = HopCodeChanged(state.slug, state.hop_name, state.planned_fingerprint, found)
            return _fail_between_hops(executor, message, state.running_id, changed)
        case Run():
            raise AssertionError("handled by the caller")


def _settle(executor: Executor, migration_id: UUID, running_id: int | None) -> HopOutcome | None:
    settled = executor.call(protocol.StopMigration(migration=migration_id, attempt_becomes="lost"))
    if settled is None:
        return None
    publish.ended(executor, migration_id, lost_id=running_id, found_by="executor")
    return Ignored("paused") if settled == MigrationStatus.PAUSED else _answer(executor, migration_id)


def _postpone(executor: Executor, message: HopMessage, lost_id: int, seconds: float) -> Ignored | Later:
    if message.shard is not None:
        executor.call(
            protocol.RecordLostShard(
                attempt=lost_id, migration=message.migration_id, deadline_seconds=seconds
            )
        )
        publish.lost(executor, message.migration_id, lost_id, "executor")
        return Later(seconds, "its executor was lost again")
    executor.call(
        protocol.RecordRedispatch(migration=message.migration_id, running=lost_id, deadline_seconds=seconds)
    )
    publish.lost(executor, message.migration_id, lost_id, "executor")
    return Ignored(f"its executor was lost again; recovery redelivers it in {seconds:g} s")


def _fail_between_hops(
    executor: Executor, message: HopMessage, running_id: int | None, error: Exception
) -> HopOutcome | None:
    failed = executor.call(
        protocol.FailBetweenHops(
            migration=message.migration_id,
            dispatch=message.dispatch,
            lost=running_id,
            type=name_of(error),
            message=bounded(str(error), LONGEST_MESSAGE),
            args=json_args(error),
        )
    )
    if not failed:
        return None
    publish.ended(executor, message.migration_id, lost_id=running_id, found_by="executor")
    return _answer(executor, message.migration_id)


def _answer(executor: Executor, migration_id: UUID) -> Applied | Failed | Ignored:
    report = load_report(executor, migration_id)
    if not report.status.is_settled:  # a retry came in between; its own chain will answer
        return Ignored("the migration was retried")
    error = report.error()
    return Applied(report) if error is None else Failed(error)


def _answer_with_frames(
    executor: Executor, migration_id: UUID, raised: Exception
) -> Applied | Failed | Ignored:
    """Answer with the recorded error; the worker's log and Flower show the frames of the hop's own code."""
    answer = _answer(executor, migration_id)
    if isinstance(answer, Failed):
        answer.error.with_traceback(frames.of_files(raised.__traceback__))
    return answer


# ── running the hop ─────────────────────────────────────────────────────────────────────────────────


def _open(
    executor: Executor,
    message: HopMessage,
    state: HopState,
    hop: DirectedHop,
    lost_id: int | None,
    worker: Worker,
) -> protocol.OpenedAttempt | None:
    """Commit a running attempt. None: an operator was quicker, nothing was written."""
    call = open_call(message, state, hop, lost_id, worker)
    # A hop of many transactions opens each by itself.
    opened = executor.call(call) if hop.is_batched else executor.call_and_begin(call)
    if opened is None:
        executor.roll_back()
    return opened


def open_call(
    message: HopMessage, state: HopState, hop: DirectedHop, lost_id: int | None, worker: Worker
) -> protocol.OpenHop:
    """The call that opens an attempt of a hop."""
    return protocol.OpenHop(
        migration=message.migration_id,
        graph=state.graph_id,
        status=state.status,
        dispatch=message.dispatch,
        lost=lost_id,
        from_=message.from_version,
        to=message.to_version,
        hop=hop.name,
        fingerprint=hop.fingerprint,
        worker=worker.name,
        pid=worker.pid,
        task=worker.task_id,
        done=state.done or 0,
        deadline_seconds=settings().deadline_seconds,
        shard=message.shard,
    )


def apply_or_record(
    executor: Executor, attempt: Attempt, lock: GraphLock, limits: Limits
) -> Done | Stopped | AttemptFailed | Ignored:
    """Run the hop of an open attempt, and commit it; or record that it raised.

    Raises:
        ConnectionLost: Nobody knows what was committed.
    """
    try:
        with watched(executor, attempt):
            done = apply_hop(executor, attempt)
    except Stopped as stopped:
        return stopped
    except Exception as error:  # noqa: BLE001 - a hop may raise anything; it is all recorded
        return record_failure(executor, attempt, error, limits)
    if done.opened is None:
        lock.mark_released()
    failpoints.hit("hop_committed" if attempt.shard is None else "shard_committed")
    return done


def conclude(
    executor: Executor, attempt: Attempt, ending: Done | Stopped | AttemptFailed | Ignored
) -> HopOutcome | None:
    """Publish how it ended, now that the lock is released, and answer."""
    migration_id = attempt.message.migration_id
    match ending:
        case Done() if attempt.shard is not None:
            publish.shard_done(executor, attempt, ending)
            return shards.leave(executor, attempt.message)
        case Stopped() if attempt.shard is not None:
            return shards.leave(executor, attempt.message)
        case Done():
            failpoints.hit("hop_left")
            publish.succeeded(executor, attempt, ending, ending.report)
            return Applied(ending.report)
        case Stopped():
            publish.ended(executor, migration_id)
            return None  # the state is settled; what there is to answer is decided by looking again
        case AttemptFailed(error, retry_in):
            publish.failed(executor, attempt, error, retry_in)
            if retry_in is None:
                return _answer_with_frames(executor, migration_id, error)
            return Later(retry_in, f"{name_of(error)}: {safe_message(error)}")
        case Ignored():
            return ending
