"""Every error of the project. Each says what happened, what state things are in, and what to do next.

    GraphMigratorError
    ├── WrongUsage                  exit 2: the call itself cannot be carried out
    │   ├── InvalidRequest          an argument is malformed
    │   ├── InvalidGraphType        a graph type contradicts itself (found when it is registered)
    │   ├── UnknownGraph
    │   ├── UnknownGraphType
    │   ├── UnknownTarget           the type has no such version
    │   ├── UnreachableGraph        the type does not know the version that the graph has
    │   ├── UnknownRollout
    │   ├── UnknownAttempt
    │   ├── IrreversibleHop         the way back crosses a hop without a reverse
    │   ├── GraphExists             an import would overwrite a graph
    │   ├── InvalidRecord           a line or element of an imported file is malformed
    │   └── DanglingEdges           imported edges whose nodes are missing
    ├── Refused                     exit 3: the call is fine, the graph's present state forbids it
    │   ├── MigrationInFlight
    │   ├── IllegalTransition       a verb does not apply to the migration's status
    │   ├── GraphPartiallyMigrated  a migration stopped, or was force-released, inside a batched hop
    │   ├── GraphReadOnly           a writer met an owner's lock, a migration or a failure
    │   ├── GraphVersionMismatch    a writer was made for another version
    │   ├── OpenWriteTransactions   open write transactions did not end in time
    │   ├── GraphBusy               another executor holds the graph's lock
    │   ├── GraphBeyondTarget       a rollout's graph was moved beyond its target meanwhile
    │   ├── RolloutInFlight         the graph type has a live rollout
    │   ├── RolloutGivesWay         the policy's rollout ends for one by hand
    │   ├── RolloutRefused          a verb does not apply to the rollout's status
    │   ├── GraphBehind             an application opened a graph that is below the version it needs
    │   ├── NothingToRepair         a finding of `validate` is not there, or cannot be mended safely
    │   ├── RequestInProgress       the same request is being carried out at this moment
    │   └── ArchiveDamaged          a file of an archive is not what its manifest says
    ├── MigrationError              exit 1: the migration ended, not at its target
    │   ├── HopFailed               a hop raised an error that cannot be rebuilt elsewhere
    │   ├── CheckFailed             a postcondition did not hold
    │   ├── InvalidGraphData        rows do not fit the models of the version they were moved to
    │   ├── HopTimedOut
    │   ├── HopAddsRows             a batched hop inserts what it processes, and would never end
    │   ├── HopCrashedRepeatedly
    │   ├── HopInterruptedRepeatedly
    │   ├── HopCodeChanged
    │   ├── OldValuesGone           a rebuild hop without a reverse cannot be undone any more
    │   ├── PartiallyMigrated       cancelled inside a batched hop
    │   ├── MigrationCancelled
    │   └── MigrationReleased
    ├── ServiceUnavailable                 exit 4
    │   ├── DatabaseUnreachable
    │   ├── BrokerUnreachable
    │   ├── ResultsUnreachable
    │   └── SchemaOutdated          the database lacks our tables, or has older ones
    ├── ResultsNotKept              exit 2: the result backend cannot answer this call
    ├── WaitTimedOut                exit 1: `wait_for` returned before the migration ended
    └── UnreadableOutcome           exit 1: the recorded outcome is of an error that this release does not have

The fields are the exception's ``args``, all of them JSON values. That is the form in which Celery's JSON result
backend stores an exception and builds it again, so the process that receives it has the same type, fields and message.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from graph_migrator.core.plural import count, plural


@dataclass(eq=False, repr=False)
class GraphMigratorError(Exception):
    """The base of every error raised by this project."""

    exit_code: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self.args = tuple(getattr(self, field.name) for field in fields(self))

    @property
    def message(self) -> str:
        """What happened, the state now, and what to do next."""
        return type(self).__name__

    def __str__(self) -> str:
        return self.message


# ── exit 2 ──────────────────────────────────────────────────────────────────────────────────────────


class WrongUsage(GraphMigratorError):
    """The call cannot be carried out, whatever the graph's state. Nothing was changed."""

    exit_code = 2


@dataclass(eq=False, repr=False)
class InvalidRequest(WrongUsage):
    """An argument is malformed."""

    field: str
    reason: str

    @property
    def message(self) -> str:
        return f"{self.field}: {self.reason}. Nothing was changed."


@dataclass(eq=False, repr=False)
class InvalidGraphType(WrongUsage):
    """A graph type contradicts itself."""

    graph_type: str
    reason: str

    @property
    def message(self) -> str:
        return f"graph type {self.graph_type!r} cannot be registered: {self.reason}"


@dataclass(eq=False, repr=False)
class UnknownGraph(WrongUsage):
    """No graph has this id or slug."""

    graph: str

    @property
    def message(self) -> str:
        return f"there is no graph {self.graph!r}. `graph-migrator graphs` lists the graphs."


@dataclass(eq=False, repr=False)
class UnknownGraphType(WrongUsage):
    """This process knows no such graph type."""

    graph_type: str
    known: list[str]
    asked: str | None = None
    """The worker that refused it; None for this process."""

    @property
    def message(self) -> str:
        known = ", ".join(self.known) or "none"
        where = f"to worker {self.asked}" if self.asked else "here"
        return (
            f"graph type {self.graph_type!r} is not known {where} (known: {known}). Nothing was changed. "
            "Install the package that ships it, or name it in GRAPH_MIGRATOR_TYPES as module:attribute."
        )


@dataclass(eq=False, repr=False)
class UnknownTarget(WrongUsage):
    """The type has no hops that lead to the target."""

    graph: str
    graph_type: str
    target: int
    oldest: int
    newest: int
    asked: str | None = None
    """The worker that refused it; None for this process."""

    @property
    def message(self) -> str:
        where = f"on worker {self.asked}" if self.asked else "here"
        return (
            f"{self.graph}: graph type {self.graph_type!r} knows versions {self.oldest} to {self.newest} {where}, "
            f"not {self.target}. Nothing was changed. Deploy the release that ships v{self.target}, "
            "or choose another target."
        )


@dataclass(eq=False, repr=False)
class UnreachableGraph(WrongUsage):
    """The graph's type does not know the version that the graph has, so no hop leads from it."""

    graph: str
    graph_type: str
    version: int
    oldest: int
    newest: int

    @property
    def fact(self) -> str:
        """The sentence for such a graph, in lists, in `status` and in the refusal."""
        return (
            f"{self.graph} is unreachable: it is at v{self.version}, and graph type {self.graph_type!r} knows "
            f"versions {self.oldest} to {self.newest} here."
        )

    @property
    def way_out(self) -> str:
        """What makes it reachable again."""
        return f"Deploy a release of {self.graph_type!r} that knows v{self.version}, then migrate."

    @property
    def message(self) -> str:
        return f"{self.fact} Nothing was changed. {self.way_out}"


@dataclass(eq=False, repr=False)
class IrreversibleHop(WrongUsage):
    """The way back crosses a hop that has no reverse."""

    graph: str
    hop: str
    from_version: int
    to_version: int

    @property
    def message(self) -> str:
        return (
            f"{self.graph}: hop {self.hop!r} (v{self.from_version}→v{self.to_version}) has no reverse, so v"
            f"{self.from_version} cannot be reached from above. Nothing was changed. Give the hop a reverse "
            f"(@{self.hop}.reverse), or stay at v{self.to_version} or above."
        )


@dataclass(eq=False, repr=False)
class GraphExists(WrongUsage):
    """An import names a slug that is taken."""

    graph: str

    @property
    def message(self) -> str:
        return f"a graph {self.graph!r} exists already. Nothing was imported. Choose another --slug, or --replace."


@dataclass(eq=False, repr=False)
class InvalidRecord(WrongUsage):
    """One record of an imported file is malformed."""

    file: str
    line: int | None
    field: str
    reason: str

    @property
    def message(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.field}: {self.reason}. Nothing was imported."


@dataclass(eq=False, repr=False)
class DanglingEdges(WrongUsage):
    """Imported edges name nodes that the file does not hold."""

    file: str
    count: int
    examples: list[str]

    @property
    def message(self) -> str:
        named = "; ".join(self.examples)
        more = f" (and {self.count - len(self.examples)} more)" if self.count > len(self.examples) else ""
        edges = plural(self.count, "edge leads", "edges lead")
        return f"{self.file}: {edges} to missing nodes: {named}{more}. Nothing was imported."


@dataclass(eq=False, repr=False)
class UnknownAttempt(WrongUsage):
    """No hop attempt has this number."""

    attempt: int

    @property
    def message(self) -> str:
        return f"there is no attempt {self.attempt}. `graph-migrator history GRAPH` names those of a graph."


@dataclass(eq=False, repr=False)
class UnknownRollout(WrongUsage):
    """No rollout has this id, and no rollout is of this graph type; or several have it."""

    rollout: str

    @property
    def message(self) -> str:
        return (
            f"there is no rollout {self.rollout!r}, or its beginning fits several. "
            "`graph-migrator rollout list` lists the rollouts."
        )


# ── exit 3 ──────────────────────────────────────────────────────────────────────────────────────────


class Refused(GraphMigratorError):
    """The graph's present state forbids the call. Nothing was changed."""

    exit_code = 3


@dataclass(eq=False, repr=False)
class MigrationInFlight(Refused):
    """Another migration owns the graph."""

    graph: str
    migration_id: str
    status: str
    to_version: int

    @property
    def message(self) -> str:
        return (
            f"{self.graph}: migration {self.migration_id} to v{self.to_version} is {self.status} and owns the "
            f"graph. Nothing was changed. Follow it with `graph-migrator status {self.graph}`; "
            "it can be paused, resumed or cancelled."
        )


@dataclass(eq=False, repr=False)
class IllegalTransition(Refused):
    """A verb does not apply to the state that the graph's migration is in."""

    graph: str
    verb: str
    status: str
    allowed: list[str]
    migration_id: str | None = None

    @property
    def message(self) -> str:
        whose = f"migration {self.migration_id} is" if self.migration_id else "the graph is"
        return (
            f"{self.graph}: cannot {self.verb}: {whose} {self.status}; that needs "
            f"{' or '.join(self.allowed)}. Nothing was changed. "
            f"`graph-migrator status {self.graph}` says what can be done."
        )


@dataclass(eq=False, repr=False)
class GraphPartiallyMigrated(Refused):
    """A migration of the graph stopped, or was force-released, inside a batched hop."""

    graph: str
    hop: str
    from_version: int
    to_version: int
    done: int
    force_released: bool
    code_changed: bool = False
    paused: bool = False

    @property
    def message(self) -> str:
        stands = f"a {'paused' if self.paused else 'failed'} migration stands"
        where = "was force-released" if self.force_released else stands
        finish = f"finish it with `graph-migrator retry {self.graph}`"
        if self.paused:
            finish = f"finish it with `graph-migrator resume {self.graph}`"
        if self.code_changed:
            finish = (
                "the hop's code has changed since, and the rows that are done are what the old code made of them: "
                f"bring the old code back and {finish}, or go on with the new code, "
                f"`graph-migrator retry {self.graph} --accept-new-code`"
            )
        otherwise = (
            "once you have repaired the rows yourself, declare it whole with "
            f"`graph-migrator release {self.graph} --whole`"
            if self.force_released
            else f"release it as it is with `graph-migrator release {self.graph} --force`"
        )
        return (
            f"{self.graph}: {where} half-way through {self.hop!r} (v{self.from_version}→v{self.to_version}, "
            f"{count(self.done, 'row')} done), so the graph is partially migrated. Nothing was changed. "
            f"{finish[0].upper()}{finish[1:]}; or {otherwise}."
        )


@dataclass(eq=False, repr=False)
class GraphReadOnly(Refused):
    """A writer may not change this graph now."""

    graph: str
    reason: str
    migration_id: str | None = None
    since: str | None = None

    @property
    def message(self) -> str:
        since = f" since {self.since}" if self.since else ""
        if self.reason == "owner":
            return (
                f"{self.graph}: read-only{since}: its owner locked it. `graph-migrator unlock {self.graph}`."
            )
        if self.reason == "error":
            return (
                f"{self.graph}: read-only{since}: migration {self.migration_id} failed and keeps the graph. "
                f"`graph-migrator retry {self.graph}` or `release {self.graph}`."
            )
        return (
            f"{self.graph}: read-only{since}: migration {self.migration_id} is moving it. "
            f"Try again when it has ended (`graph-migrator status {self.graph}`)."
        )


@dataclass(eq=False, repr=False)
class GraphVersionMismatch(Refused):
    """A writer was made for another version of the graph."""

    graph: str
    expected: int
    found: int

    @property
    def message(self) -> str:
        return (
            f"{self.graph}: this writer is made for v{self.expected}, the graph is at v{self.found}. "
            "Nothing was written. Deploy the code for that version, or read the graph again."
        )


@dataclass(eq=False, repr=False)
class OpenWriteTransactions(Refused):
    """Write transactions that were open when a migration wanted to begin did not end in time."""

    graph: str
    seconds: float
    holders: list[str]

    @property
    def message(self) -> str:
        named = "; ".join(self.holders) or "they ended just now"
        return (
            f"{self.graph}: open write transactions did not end within {self.seconds:g} s: {named}. Nothing was "
            "changed. Let them finish or end them, or raise GRAPH_MIGRATOR_WRITER_DRAIN_SECONDS, and try again."
        )


@dataclass(eq=False, repr=False)
class GraphBusy(Refused):
    """Another executor holds the graph's lock."""

    graph: str
    holder: str

    @property
    def message(self) -> str:
        return (
            f"{self.graph}: its lock is held by {self.holder}. Nothing was changed. Try again in a moment; a hop that "
            f"never ends is ended by `graph-migrator release {self.graph} --force --terminate`."
        )


@dataclass(eq=False, repr=False)
class NothingToRepair(Refused):
    """A finding of `validate` is not there (any more), or cannot be mended without guessing."""

    check: str
    subject: str

    @property
    def message(self) -> str:
        return (
            f"{self.subject}: there is nothing of {self.check!r} that can be mended safely. Nothing was changed. "
            "`graph-migrator repair` lists what can be, `graph-migrator validate` says what else is wrong."
        )


@dataclass(eq=False, repr=False)
class RequestInProgress(Refused):
    """The same request came before and has not ended."""

    request: str

    @property
    def message(self) -> str:
        return f"request {self.request} is being carried out. Nothing was done twice. Ask again in a moment."


@dataclass(eq=False, repr=False)
class ArchiveDamaged(Refused):
    """A file of an archive is not what its manifest says."""

    file: str
    reason: str

    @property
    def message(self) -> str:
        return (
            f"{self.file} {self.reason}. No rows that it holds were removed from the tables. "
            "Restore the file, or archive into a new folder."
        )


@dataclass(eq=False, repr=False)
class GraphBeyondTarget(Refused):
    """A rollout moves graphs in one direction; this one has passed the target by other means."""

    graph: str
    version: int
    target: int

    @property
    def message(self) -> str:
        return f"{self.graph} is at v{self.version}, beyond the rollout's target v{self.target}. Nothing was changed."


@dataclass(eq=False, repr=False)
class RolloutInFlight(Refused):
    """The graph type has a live rollout; it can have one only."""

    graph_type: str
    rollout: str
    status: str

    @property
    def message(self) -> str:
        return (
            f"rollout {self.rollout} of {self.graph_type!r} is {self.status}. Nothing was changed. "
            f"`graph-migrator rollout show {self.rollout}` says how far it is; "
            f"`graph-migrator rollout cancel {self.rollout}` ends it."
        )


@dataclass(eq=False, repr=False)
class RolloutGivesWay(Refused):
    """The policy's rollout of the type ends for one by hand; graphs of it are in flight."""

    graph_type: str
    rollout: str
    in_flight: int

    @property
    def message(self) -> str:
        first = plural(self.in_flight, "graph in flight ends", "graphs in flight end")
        return (
            f"rollout {self.rollout}, which the policy of {self.graph_type!r} started, gives way: it sends nothing "
            f"more, and {first} first. Yours was not started; start it again when "
            f"`graph-migrator rollout show {self.rollout}` says that it is cancelled."
        )


@dataclass(eq=False, repr=False)
class GraphBehind(Refused):
    """An application opened a graph that is below the version it needs. `wait_for` takes this error."""

    graph: str
    version: int
    wanted: int
    why: str
    call: str | None
    migration: str | None

    @property
    def message(self) -> str:
        return (
            f"{self.graph} is at v{self.version}, and v{self.wanted} is needed: {self.why}. Nothing was changed in it; "
            "wait for it with `graph_migrator.wait_for(error)`, and open it again."
        )


@dataclass(eq=False, repr=False)
class RolloutRefused(Refused):
    """The rollout's present state forbids the verb."""

    rollout: str
    verb: str
    status: str
    why: str

    @property
    def message(self) -> str:
        return f"rollout {self.rollout} is {self.status}: {self.verb} is refused: {self.why}. Nothing was changed."


# ── exit 1 ──────────────────────────────────────────────────────────────────────────────────────────


class MigrationError(GraphMigratorError):
    """The migration ended, and the graph is not at its target."""

    exit_code = 1


@dataclass(eq=False, repr=False)
class HopFailed(MigrationError):
    """A hop raised an error that this process cannot rebuild; its type and message are here."""

    graph: str
    hop: str
    error_type: str
    error_message: str

    @property
    def message(self) -> str:
        return f"{self.graph}: hop {self.hop!r} failed: {self.error_type}: {self.error_message}"


@dataclass(eq=False, repr=False)
class CheckFailed(MigrationError):
    """A hop's postcondition did not hold; its data was rolled back."""

    graph: str
    hop: str
    reason: str

    @property
    def message(self) -> str:
        return f"{self.graph}: hop {self.hop!r} was rolled back: its check did not hold: {self.reason}"


@dataclass(eq=False, repr=False)
class InvalidGraphData(MigrationError):
    """Rows do not fit the models of the version that a hop moved them to; nothing of it was kept."""

    graph: str
    hop: str
    version: int
    count: int
    failures: list[str]

    @property
    def message(self) -> str:
        more = f" (and {self.count - len(self.failures)} more)" if self.count > len(self.failures) else ""
        rows = plural(self.count, "row does not fit", "rows do not fit")
        return (
            f"{self.graph}: hop {self.hop!r} was rolled back: {rows} v{self.version}: "
            f"{'; '.join(self.failures)}{more}"
        )


@dataclass(eq=False, repr=False)
class HopTimedOut(MigrationError):
    """A hop outlasted its ``timeout=``; its data was rolled back."""

    graph: str
    hop: str
    seconds: float

    @property
    def message(self) -> str:
        return f"{self.graph}: hop {self.hop!r} was rolled back: it took longer than its {self.seconds:g} s"


@dataclass(eq=False, repr=False)
class HopAddsRows(MigrationError):
    """A batched hop has processed far more rows than there were: it inserts what it processes."""

    graph: str
    hop: str
    done: int
    total: int

    @property
    def message(self) -> str:
        return (
            f"{self.graph}: hop {self.hop!r} was stopped: it has processed {count(self.done, 'row')}, and there "
            f"were {self.total:,} when it began. It inserts rows that its own selector picks, ahead of the batch, so "
            "it would never end. The last batch was rolled back. Insert rows that the selector does not pick (another "
            f"label, or a key before the batch's), then `graph-migrator retry {self.graph}`."
        )


@dataclass(eq=False, repr=False)
class HopCrashedRepeatedly(MigrationError):
    """A hop's process died too often while its worker lived on; the migration fails so that it ends no more of them."""

    graph: str
    hop: str
    times: int
    how: str = ""

    @property
    def message(self) -> str:
        how = f" ({self.how})" if self.how else ""
        return (
            f"{self.graph}: the process of hop {self.hop!r} died {count(self.times, 'time')}{how} while its "
            "worker lived on, so its migration failed. What was not committed was rolled back. Look for memory or "
            f"crashes in that hop, then `graph-migrator retry {self.graph}`."
        )


@dataclass(eq=False, repr=False)
class HopInterruptedRepeatedly(MigrationError):
    """A hop lost its whole worker, or its session, too often. Nothing says that the hop is to blame."""

    graph: str
    hop: str
    times: int

    @property
    def message(self) -> str:
        return (
            f"{self.graph}: hop {self.hop!r} lost its whole worker or its session {count(self.times, 'time')}, so its "
            "migration failed. What was not committed was rolled back. No process of it was seen to die by itself: "
            "look for what ends workers or connections (deploys, the machine's memory, the database), then "
            f"`graph-migrator retry {self.graph}`."
        )


@dataclass(eq=False, repr=False)
class HopCodeChanged(MigrationError):
    """The workers that met the hop have other code for it than the one that was planned."""

    graph: str
    hop: str
    planned: str
    found: str

    @property
    def message(self) -> str:
        return (
            f"{self.graph}: hop {self.hop!r} was planned as {self.planned[:12]}, this worker has "
            f"{self.found[:12] or 'no such hop'}. Finish the deploy, then `graph-migrator retry {self.graph}` "
            "plans anew with the code that is there then."
        )


@dataclass(eq=False, repr=False)
class OldValuesGone(MigrationError):
    """A rebuild hop without a reverse was to be undone, and the graph was repaired after the call that went back."""

    graph: str
    hop: str
    from_version: int
    to_version: int

    @property
    def message(self) -> str:
        return (
            f"{self.graph}: hop {self.hop!r} (v{self.from_version}→v{self.to_version}) has no reverse, and its old "
            f"values are not restored, because the graph was changed since. The graph is whole at v{self.to_version}. "
            f"Give the hop a reverse (@{self.hop}.reverse) and `graph-migrator retry {self.graph}`, or end the "
            f"migration: `graph-migrator release {self.graph}`."
        )


@dataclass(eq=False, repr=False)
class PartiallyMigrated(MigrationError):
    """Cancelled inside a batched hop; the claim stays, because the graph is partially migrated."""

    graph: str
    hop: str
    done: int

    @property
    def message(self) -> str:
        return (
            f"{self.graph}: cancelled half-way through {self.hop!r} after {count(self.done, 'row')}; its rows have "
            f"the form of two versions, so the graph stays read-only. `graph-migrator retry {self.graph}` finishes "
            "the hop."
        )


@dataclass(eq=False, repr=False)
class MigrationCancelled(MigrationError):
    """The migration was cancelled at a boundary; the graph is whole."""

    graph: str
    version: int

    @property
    def message(self) -> str:
        return f"{self.graph}: the migration was cancelled; the graph is whole at v{self.version}"


@dataclass(eq=False, repr=False)
class MigrationReleased(MigrationError):
    """An operator released the graph; its migration was abandoned."""

    graph: str
    version: int

    @property
    def message(self) -> str:
        return f"{self.graph}: an operator released the graph at v{self.version}; the migration was abandoned"


# ── exit 4 ──────────────────────────────────────────────────────────────────────────────────────────


class ServiceUnavailable(GraphMigratorError):
    """Something this command needs does not answer."""

    exit_code = 4


@dataclass(eq=False, repr=False)
class DatabaseUnreachable(ServiceUnavailable):
    """Postgres does not answer."""

    where: str
    reason: str

    @property
    def message(self) -> str:
        return f"Postgres at {self.where} does not answer: {self.reason}. Check DATABASE_URL."


@dataclass(eq=False, repr=False)
class BrokerUnreachable(ServiceUnavailable):
    """The Celery broker does not answer."""

    where: str
    reason: str

    @property
    def message(self) -> str:
        return f"the broker at {self.where} does not answer: {self.reason}. Check CELERY_BROKER_URL."


@dataclass(eq=False, repr=False)
class ResultsUnreachable(ServiceUnavailable):
    """The Celery result backend does not answer."""

    where: str

    @property
    def message(self) -> str:
        return f"the result backend at {self.where} does not answer. Check CELERY_RESULT_BACKEND."


@dataclass(eq=False, repr=False)
class SchemaOutdated(ServiceUnavailable):
    """The database's tables are not those of this release."""

    found: str | None
    expected: str

    @property
    def message(self) -> str:
        found = f"at revision {self.found}" if self.found else "missing"
        return (
            f"our tables are {found}, this release needs {self.expected}. "
            "Run `graph-migrator db upgrade` (as often as you like; it changes nothing twice)."
        )


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(eq=False, repr=False)
class ResultsNotKept(GraphMigratorError):
    """The result backend cannot answer a `migrate_graph` call, so waiting for it there would never end."""

    backend: str
    task_id: str

    exit_code = 2

    @property
    def message(self) -> str:
        return (
            f"the result backend {self.backend} cannot answer this call: a migration may end in another process "
            "than the one that took the call, and this backend keeps no results by task id. Nothing was changed; "
            "the migration goes on. Wait with graph_migrator.wait_for(result) or `graph-migrator migrate --wait`, "
            "which read Postgres, or set CELERY_RESULT_BACKEND to redis:// or db+postgresql://."
        )


@dataclass(eq=False, repr=False)
class WaitTimedOut(GraphMigratorError):
    """The migration had not ended when the time to wait was over."""

    what: str
    seconds: float
    state: str

    @property
    def message(self) -> str:
        return (
            f"{self.what}: not ended after {self.seconds:g} s: {self.state}. Nothing was changed; the migration "
            "goes on. Wait again, or see `graph-migrator status`."
        )


@dataclass(eq=False, repr=False)
class UnreadableOutcome(GraphMigratorError):
    """Postgres recorded an error that this release cannot build: another release recorded it."""

    code: str
    fields: list[Any]

    @property
    def message(self) -> str:
        return (
            f"the call ended with {self.code}{self.fields!r}, which this release does not know or builds otherwise. "
            "Nothing else is wrong with the migration: `graph-migrator history` shows it, and the release that "
            "recorded the error can say what it means."
        )
