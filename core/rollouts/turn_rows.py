"""The rows of one rollout in Postgres: what a turn of the controller reads and writes, in one transaction.

Each statement is set-based and follows an index, so a turn costs what is in flight, not what is in the fleet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

from psycopg2.extras import Json

from graph_migrator.core.errors import UnknownGraphType
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.graph_types.registry import graph_type
from graph_migrator.core.recorded_errors import own_error
from graph_migrator.core.rollouts.breaker import LOOK_BACK, FailedGroup, Tripped, breaker
from graph_migrator.core.rollouts.decisions import (
    Hold,
    MemberFacts,
    PackFacts,
    PendingGraph,
    RolloutFacts,
    Settled,
)
from graph_migrator.core.rollouts.health import Level, worst
from graph_migrator.core.rollouts.packing import pack_size
from graph_migrator.core.rollouts.rows import (
    RESUME,
    changed_hops,
    load_signals,
    query,
    record_change,
    request_id,
)
from graph_migrator.core.rollouts.statuses import HoldReason, MemberStatus, PackStatus, RolloutStatus
from graph_migrator.core.rollouts.strategy import SECONDS_AT_ONCE, Strategy, graphs_now, per_second
from graph_migrator.core.rollouts.turn import InHand, Sending, SendingPack
from graph_migrator.core.rollouts.window import Window
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import SETTLED, MigrationStatus


class PostgresRows:
    """`core.rollouts.turn.Rows`, under the lock of the rollout's row."""

    def __init__(self, cursor: Any, row: SimpleNamespace, kind: GraphType) -> None:
        self.cursor = cursor
        self.row = row
        self.id: UUID = row.id
        self.kind = kind
        self.strategy = Strategy.model_validate(row.strategy)
        self._found: dict[UUID, UUID | None] = {}
        self._waiting: dict[UUID, SimpleNamespace] = {}
        self._allowed: int | None = None

    @classmethod
    def lock(cls, cursor: Any, rollout_id: UUID) -> PostgresRows | None:
        """Lock a rollout and the hold of the fleet for this transaction.

        An operator's verb on many members may hold the row for seconds. The sweep does not wait for it: recovery of
        other graphs comes after this turn.

        Returns:
            None where an operator's verb holds the row, or where this process does not know the graph type: a later
            turn advances it.
        """
        # Right after a large start the tables have no statistics yet, and the planner would read them whole.
        cursor.execute(
            "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"
        )
        found = query(
            cursor,
            "SELECT r.* FROM rollouts r, rollout_fleet f WHERE r.id = %s "
            "FOR UPDATE OF r SKIP LOCKED FOR SHARE OF f",
            rollout_id,
        )
        if not found:
            return None
        try:
            kind = graph_type(found[0].graph_type)
        except UnknownGraphType:
            return None
        return cls(cursor, found[0], kind)

    # ── members ─────────────────────────────────────────────────────────────────────────────────────

    def in_hand(self, most: int) -> Iterable[InHand]:
        """See `Rows`."""
        found = query(self.cursor, f"{_DISPATCHED} AND {_HAS_SETTLED} LIMIT %s", self.id, most)
        if len(found) < most:
            found += query(self.cursor, f"{_DISPATCHED} AND NOT {_HAS_SETTLED}", self.id)
            found += query(self.cursor, _ENDED_BY_HAND, self.id)
        for row in found:
            self._found[row.graph_id] = row.migration_id
            yield InHand(row.graph_id, self._member(row), row.paused, bool(row.resend_due))

    def _member(self, row: SimpleNamespace) -> MemberFacts:
        message = row.error_message
        if row.migration_id is None and row.outcome is not None and "error" in row.outcome:
            error = row.outcome["error"]
            message = str(own_error(error["type"], error["args"]))
        return MemberFacts(
            slug=row.graph,
            status=MemberStatus(row.status),
            to_version=self.row.to_version,
            request_known=row.request_known,
            outcome=row.outcome,
            migration=MigrationStatus(row.migration_status) if row.migration_status else None,
            error_type=row.error_type,
            error_message=message,
            hop=row.hop_name,
            traceback=row.traceback,
            ended_by=row.ended_by,
        )

    def settle(self, settled: Mapping[UUID, Settled]) -> None:
        """See `Rows`."""
        rows = [(graph, how, self._found.get(graph)) for graph, how in settled.items()]
        self.cursor.execute(
            _SETTLE,
            (
                [graph for graph, _, _ in rows],
                [str(how.status) for _, how, _ in rows],
                [how.note for _, how, _ in rows],
                [how.group.key if how.group else None for _, how, _ in rows],
                [how.group.title if how.group else None for _, how, _ in rows],
                [how.crashed for _, how, _ in rows],
                [migration for _, _, migration in rows],
                self._id_for_each(rows),
            ),
        )
        self._progress()

    def _id_for_each(self, members: Collection[object]) -> list[UUID]:
        """The rollout's id beside each member's graph.

        So they are joined by the whole primary key. Where the id is a constant, a planner without statistics takes the
        rollout for some forty members, and reads all of them.
        """
        return [self.id] * len(members)

    def mark_paused(self, paused: Mapping[UUID, bool]) -> None:
        """See `Rows`."""
        self.cursor.execute(
            "UPDATE rollout_members m SET paused = v.paused "
            "FROM unnest(%s::uuid[], %s::boolean[]) v (graph_id, paused) "
            "WHERE m.rollout_id = %s AND m.graph_id = v.graph_id AND m.status = 'dispatched'",
            (list(paused), list(paused.values()), self.id),
        )

    def resend(self, graphs: Sequence[UUID]) -> list[Sending]:
        """See `Rows`."""
        s = settings()
        rows = query(
            self.cursor,
            "UPDATE rollout_members SET resends = resends + 1, resend_at = clock_timestamp() "
            "+ make_interval(secs => least(%s * 2 ^ least(resends + 1, 30), %s)) "
            "WHERE rollout_id = %s AND graph_id = ANY (%s::uuid[]) AND status = 'dispatched' "
            "RETURNING graph_id, graph, number",
            s.deadline_seconds, s.deadline_max_seconds, self.id, list(graphs),
        )  # fmt: skip
        return [self._sending(row) for row in rows]

    def next_pending(self, count: int) -> Iterable[tuple[UUID, PendingGraph]]:
        """See `Rows`. A place may be a pack of many graphs; the rate counts graphs."""
        rows = query(
            self.cursor,
            "SELECT m.graph_id, m.graph, g.version, g.partially_migrated IS NOT NULL AS partially_migrated, m.number, "
            "m.row_count, s.kind FROM (SELECT * FROM rollout_members w WHERE w.rollout_id = %s "
            "AND w.status = 'pending' AND w.stage <= %s ORDER BY w.stage, w.position LIMIT %s) m "
            "LEFT JOIN graphs g ON g.id = m.graph_id "
            "JOIN rollout_stages s ON s.rollout_id = m.rollout_id AND s.number = m.stage ORDER BY m.stage, m.position",
            self.id, self.row.stage, count if self._allowed is None else min(count, self._allowed),
        )  # fmt: skip
        known = self.kind.oldest, self.kind.newest
        self._waiting |= {row.graph_id: row for row in rows}
        for row in rows:
            yield (
                row.graph_id,
                PendingGraph(
                    row.version,
                    self.row.to_version,
                    self.row.direction,
                    row.partially_migrated,
                    known,
                    self._is_packable(row),
                ),
            )

    def _is_packable(self, row: SimpleNamespace) -> bool:
        # A canary is looked at by itself, and what has failed once does not hold up others a second time.
        is_small = row.row_count is not None and row.row_count <= self.strategy.pack_rows
        return self.strategy.packs and is_small and row.kind != "canary" and row.number == 1

    def dispatch(self, units: Sequence[tuple[UUID, ...]]) -> list[Sending | SendingPack]:
        """See `Rows`. The trigger on members refuses what would break F1, F2 or F3."""
        packs = [(uuid4(), unit) for unit in units if len(unit) > 1]
        pack_of = {graph: pack for pack, unit in packs for graph in unit}
        graphs = [graph for unit in units for graph in unit]
        requests = [request_id(self.id, graph, self._waiting[graph].number) for graph in graphs]
        sent: list[Sending | SendingPack] = [*self._insert_packs(packs)]
        # By the primary key alone: with `status = 'pending'` the planner reads all that wait. They were read as
        # pending under the rollout's lock, which every writer of members takes first.
        rows = query(
            self.cursor,
            "UPDATE rollout_members m SET status = 'dispatched', request_id = v.request_id, pack_id = v.pack_id, "
            "resends = 0, "
            "sent_at = clock_timestamp(), resend_at = clock_timestamp() + make_interval(secs => %s) "
            "FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::uuid[]) v (graph_id, request_id, pack_id, rollout_id) "
            "WHERE m.rollout_id = v.rollout_id AND m.graph_id = v.graph_id "
            "RETURNING m.graph_id, m.graph, m.number, m.pack_id",
            settings().deadline_seconds, graphs, requests, [pack_of.get(graph) for graph in graphs],
            self._id_for_each(graphs),
        )  # fmt: skip
        self._progress()
        self._use_up_the_rate(len(rows))
        return sent + [self._sending(row) for row in rows if row.pack_id is None]

    def _insert_packs(self, packs: Sequence[tuple[UUID, tuple[UUID, ...]]]) -> list[SendingPack]:
        if not packs:
            return []
        rows = query(
            self.cursor,
            "INSERT INTO packs (id, rollout_id, size, first_graph, last_graph, resend_at) "
            "SELECT v.id, %s, v.size, v.first, v.last, clock_timestamp() + make_interval(secs => %s) "
            "FROM unnest(%s::uuid[], %s::integer[], %s::text[], %s::text[]) v (id, size, first, last) "
            "RETURNING id, size, first_graph, last_graph",
            self.id, settings().deadline_seconds, [pack for pack, _ in packs], [len(unit) for _, unit in packs],
            [self._waiting[unit[0]].graph for _, unit in packs],
            [self._waiting[unit[-1]].graph for _, unit in packs],
        )  # fmt: skip
        return [self._sending_pack(row) for row in rows]

    # ── packs ───────────────────────────────────────────────────────────────────────────────────────

    def open_packs(self) -> list[tuple[UUID, PackFacts]]:
        """See `Rows`."""
        cancelling = self.row.status == RolloutStatus.CANCELLING
        # The lock of a pack that waits is left alone: a worker may be about to take it.
        rows = query(
            self.cursor,
            "SELECT p.id, p.status, p.resend_at < clock_timestamp() AS resend_due, "
            "CASE WHEN p.status = 'running' OR p.status = 'sent' AND %s "
            "THEN NOT pg_try_advisory_xact_lock(pack_key(p.id)) ELSE false END AS executed "
            "FROM packs p WHERE p.rollout_id = %s AND p.status <> 'closed'",
            cancelling, self.id,
        )  # fmt: skip
        return [
            (row.id, PackFacts(PackStatus(row.status), row.executed, row.resend_due, cancelling))
            for row in rows
        ]

    def close_packs(self, packs: Sequence[UUID]) -> Mapping[UUID, Settled]:
        """See `Rows`."""
        ids = list(packs)
        self.cursor.execute(
            "UPDATE packs SET status = 'closed', ended_at = coalesce(ended_at, clock_timestamp()) "
            "WHERE id = ANY (%s::uuid[])",
            (ids,),
        )
        self.cursor.execute(
            "UPDATE rollout_members m SET pack_id = NULL WHERE m.pack_id = ANY (%s::uuid[]) "
            "AND m.status = 'dispatched' AND EXISTS (SELECT FROM requests q WHERE q.task_id = m.request_id::text)",
            (ids,),
        )
        if self.row.status == RolloutStatus.CANCELLING:
            left = query(
                self.cursor,
                "SELECT graph_id FROM rollout_members WHERE pack_id = ANY (%s::uuid[]) AND status = 'dispatched'",
                ids,
            )
            skipped = Settled(MemberStatus.SKIPPED, "the rollout was cancelled")
            settled = {row.graph_id: skipped for row in left}
            if settled:
                self.settle(settled)
            return settled
        self.cursor.execute(
            "UPDATE rollout_members SET status = 'pending', pack_id = NULL, request_id = NULL, sent_at = NULL, "
            "resend_at = NULL WHERE pack_id = ANY (%s::uuid[]) AND status = 'dispatched'",
            (ids,),
        )
        return {}

    def resend_packs(self, packs: Sequence[UUID]) -> list[SendingPack]:
        """See `Rows`."""
        s = settings()
        rows = query(
            self.cursor,
            "UPDATE packs SET resends = resends + 1, resend_at = clock_timestamp() "
            "+ make_interval(secs => least(%s * 2 ^ least(resends + 1, 30), %s)) "
            "WHERE id = ANY (%s::uuid[]) AND status = 'sent' RETURNING id, size, first_graph, last_graph",
            s.deadline_seconds, s.deadline_max_seconds, list(packs),
        )  # fmt: skip
        return [self._sending_pack(row) for row in rows]

    def pack_size(self) -> int:
        """See `Rows`."""
        if not self.strategy.packs:
            return 1
        (found,) = query(
            self.cursor,
            "SELECT coalesce(sum(extract(epoch FROM p.ended_at - p.started_at)), 0)::float8 AS seconds, "
            "coalesce(sum(p.done), 0)::bigint AS graphs, coalesce(max(p.done), 0)::integer AS largest "
            "FROM (SELECT * FROM packs WHERE rollout_id = %s AND done > 0 ORDER BY ended_at DESC LIMIT 8) p",
            self.id,
        )
        return pack_size(found.seconds, found.graphs, found.largest, self.strategy.pack_seconds)

    def _sending_pack(self, row: SimpleNamespace) -> SendingPack:
        return SendingPack(self.id, row.id, row.size, row.first_graph, row.last_graph, self.row.to_version)

    def _sending(self, row: SimpleNamespace) -> Sending:
        request = request_id(self.id, row.graph_id, row.number)
        return Sending(self.id, row.graph_id, row.number, request, row.graph, self.row.to_version)

    def _progress(self) -> None:
        self.cursor.execute("UPDATE rollouts SET progress_at = clock_timestamp() WHERE id = %s", (self.id,))

    # ── the rollout ─────────────────────────────────────────────────────────────────────────────────

    def facts(self) -> RolloutFacts:
        """See `Rows`."""
        (found,) = query(self.cursor, _FACTS, self.id)
        self._allowed = self._rate_allows(found.now)
        strategy = self.strategy
        bake = strategy.bake_seconds if found.kind == "canary" else strategy.wave_bake_seconds
        return RolloutFacts(
            status=RolloutStatus(self.row.status),
            held_for=HoldReason(self.row.hold["reason"]) if self.row.hold else None,
            fleet_held=found.fleet_held,
            changed_hops=changed_hops(self.row.plan, self.kind),
            window_open=self._window_open(found.now),
            stop_signal=self._stop_signal(),
            breaker=self._tripped(),
            stalled_seconds=found.stalled_seconds if found.in_flight else 0.0,
            stall_limit=strategy.stall_seconds,
            stage=self.row.stage,
            stages=found.stages,
            stage_closed=found.ended_at is not None,
            baked=found.ended_at is not None and (found.now - found.ended_at).total_seconds() >= bake,
            gate_open=strategy.gate == "auto" or found.kind != "canary" or found.promoted_at is not None,
            pending=found.pending,
            in_flight=found.in_flight,
            packed=found.packed,
            paused=found.paused,
            waiting_for_code=found.waiting_for_code,
            failed=found.failed,
            max_in_flight=min(self.row.max_in_flight, self.row.pace or self.row.max_in_flight),
            rate_allows=self._allowed,
        )

    def _rate_allows(self, now: datetime) -> int | None:
        """How many graphs the rate lets go now. What was not sent in time is not made up for."""
        if self.strategy.rate is None:
            return None
        after = self.row.dispatch_after
        return graphs_now(
            per_second(self.strategy.rate), None if after is None else (now - after).total_seconds()
        )

    def _use_up_the_rate(self, graphs: int) -> None:
        if self.strategy.rate is None or not graphs:
            return
        rate = per_second(self.strategy.rate)
        self.cursor.execute(
            "UPDATE rollouts SET dispatch_after = greatest(coalesce(dispatch_after, '-infinity'), "
            "clock_timestamp() - make_interval(secs => %s)) + make_interval(secs => %s) WHERE id = %s",
            (max(SECONDS_AT_ONCE, 1 / rate), graphs / rate, self.id),
        )
        self._reload()

    def _stop_signal(self) -> dict[str, Any] | None:
        if not self.strategy.health:
            return None
        bad = worst(load_signals(self.cursor))
        if bad is None or bad.level is not Level.STOP:
            return None
        return {"signal": bad.name, "value": bad.value, "limit": bad.limit, "why": bad.in_words()}

    def _window_open(self, now: datetime) -> bool:
        return self.strategy.window is None or Window.parse(self.strategy.window).is_open(now)

    def _tripped(self) -> Tripped | None:
        since = self.row.failures_since
        groups = [
            FailedGroup(row.error_group, row.count, row.canaries, row.crashed, tuple(row.graphs))
            for row in query(self.cursor, _FAILED_GROUPS, self.id, since)
        ]
        if not groups:
            return None
        (last,) = query(self.cursor, _LAST_SETTLED, self.id, since, LOOK_BACK)
        return breaker(groups, last.settled, last.failed, self.strategy)

    def hold(self, hold: Hold) -> None:
        """See `Rows`."""
        self.cursor.execute(
            "UPDATE rollouts SET status = 'held', hold = %s || jsonb_build_object('since', clock_timestamp()) "
            "WHERE id = %s",
            (Json({"reason": hold.reason, **hold.evidence}), self.id),
        )
        record_change(
            self.cursor,
            self.id,
            "hold",
            None,
            {"reason": hold.reason, **hold.evidence},
            None,
            hold.reason.phrase,
        )
        self._reload()

    def resume(self) -> None:
        """See `Rows`."""
        record_change(self.cursor, self.id, "resume", self.row.hold, None, None, "its reason is gone")
        self.cursor.execute(RESUME, (self.id,))
        self._reload()

    def open_stage(self, number: int) -> None:
        """See `Rows`."""
        self.cursor.execute("UPDATE rollouts SET stage = %s WHERE id = %s", (number, self.id))
        self.cursor.execute(
            "UPDATE rollout_stages SET began_at = clock_timestamp() WHERE rollout_id = %s AND number = %s",
            (self.id, number),
        )
        self._reload()

    def close_stage(self, number: int) -> None:
        """See `Rows`."""
        self.cursor.execute(
            "UPDATE rollout_stages SET ended_at = clock_timestamp() WHERE rollout_id = %s AND number = %s",
            (self.id, number),
        )

    def end(self, status: RolloutStatus) -> None:
        """See `Rows`."""
        self.cursor.execute(
            "UPDATE rollouts SET status = %s, finished_at = clock_timestamp() WHERE id = %s",
            (str(status), self.id),
        )
        record_change(self.cursor, self.id, "end", None, {"status": status}, None, status.phrase)

    def _reload(self) -> None:
        (self.row,) = query(self.cursor, "SELECT * FROM rollouts WHERE id = %s", self.id)


_MEMBER = """
SELECT m.graph_id, m.graph, m.status, m.paused, m.resend_at < clock_timestamp() AS resend_due,
       q.task_id IS NOT NULL AS request_known, q.outcome, g.id AS migration_id, g.status AS migration_status,
       g.error_type, g.error_message, a.hop_name, a.traceback, v.requested_by AS ended_by
FROM rollout_members m
LEFT JOIN requests q ON q.task_id = m.request_id::text
"""

_ENDING = """
LEFT JOIN LATERAL (
    SELECT a.hop_name, a.traceback FROM hop_attempts a
    WHERE a.migration_id = g.id AND g.status = 'failed' AND a.status IN ('failed', 'lost') ORDER BY a.id DESC LIMIT 1
) a ON true
LEFT JOIN LATERAL (
    SELECT v.requested_by FROM requests v
    WHERE v.migration_id = g.id AND v.verb IN ('cancel', 'release') ORDER BY v.created_at DESC LIMIT 1
) v ON true
"""

# A refusal that names the member's own migration: an operator retried it before this try came. It is followed.
_DISPATCHED = f"""{_MEMBER}
LEFT JOIN migrations g ON g.id = CASE
    WHEN q.outcome #>> '{{error,args,1}}' = m.migration_id::text THEN m.migration_id ELSE q.migration_id END
{_ENDING} WHERE m.rollout_id = %s AND m.status = 'dispatched' AND (m.pack_id IS NULL OR q.task_id IS NOT NULL)
"""

# Where `decide_member` says `Settled`, whatever else is so.
_HAS_SETTLED = f"coalesce(g.status IN {tuple(sorted(map(str, SETTLED)))}, q.outcome IS NOT NULL)"

# A failed member whose migration runs again by hand stays failed until that ends: the rollout did not send it, so it
# takes none of the rollout's places.
_ENDED_BY_HAND = f"""{_MEMBER}
JOIN migrations g ON g.id = m.migration_id AND g.status IN ('succeeded', 'cancelled', 'released')
{_ENDING} WHERE m.rollout_id = %s AND m.status = 'failed'
"""

_SETTLE = """
UPDATE rollout_members m SET status = v.status, note = v.note, error_group = v.error_group,
       error_title = v.error_title, crashed = v.crashed, paused = false,
       migration_id = coalesce(v.migration_id, m.migration_id), settled_at = clock_timestamp()
FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::boolean[], %s::uuid[], %s::uuid[])
    v (graph_id, status, note, error_group, error_title, crashed, migration_id, rollout_id)
WHERE m.rollout_id = v.rollout_id AND m.graph_id = v.graph_id
"""

_FACTS = """
SELECT clock_timestamp() AS now, f.held_at IS NOT NULL AS fleet_held, c.stages, c.pending, c.failed,
       p.chains - p.paused + k.open AS in_flight, c.dispatched - p.chains AS packed, p.paused, p.waiting_for_code,
       s.kind, s.ended_at, s.promoted_at,
       extract(epoch FROM clock_timestamp() - greatest(r.progress_at, p.committed_at))::float8 AS stalled_seconds
FROM rollouts r
CROSS JOIN rollout_fleet f
LEFT JOIN rollout_stages s ON s.rollout_id = r.id AND s.number = r.stage
CROSS JOIN LATERAL (
    SELECT count(*) AS stages, coalesce(sum(c.pending) FILTER (WHERE c.number <= r.stage), 0)::bigint AS pending,
           coalesce(sum(c.dispatched), 0)::bigint AS dispatched, coalesce(sum(c.failed), 0)::bigint AS failed
    FROM rollout_stages c WHERE c.rollout_id = r.id
) c
CROSS JOIN LATERAL (
    SELECT count(*) AS chains, count(*) FILTER (WHERE m.paused) AS paused,
           count(*) FILTER (WHERE g.code_mismatches > 0) AS waiting_for_code,
           max(greatest(h.at, k.updated_at)) AS committed_at
    FROM rollout_members m
    LEFT JOIN requests q ON q.task_id = m.request_id::text
    LEFT JOIN migrations g ON g.id = q.migration_id
    LEFT JOIN LATERAL (SELECT max(greatest(a.started_at, a.finished_at,
                                           CASE WHEN a.batches > 0 THEN a.progress_at END)) AS at FROM hop_attempts a
                       WHERE a.migration_id = q.migration_id) h ON true
    LEFT JOIN LATERAL (SELECT max(k.updated_at) AS updated_at FROM checkpoints k
                       WHERE k.migration_id = q.migration_id) k ON true
    WHERE m.rollout_id = r.id AND m.status = 'dispatched' AND m.pack_id IS NULL
) p
CROSS JOIN LATERAL (
    SELECT count(*) AS open FROM packs k WHERE k.rollout_id = r.id AND k.status IN ('sent', 'running')
) k
WHERE r.id = %s
"""

_FAILED_GROUPS = """
SELECT m.error_group, count(*) AS count, count(*) FILTER (WHERE s.kind = 'canary') AS canaries,
       count(*) FILTER (WHERE m.crashed) AS crashed, (array_agg(m.graph ORDER BY m.settled_at))[1:3] AS graphs
FROM rollout_members m JOIN rollout_stages s ON s.rollout_id = m.rollout_id AND s.number = m.stage
WHERE m.rollout_id = %s AND m.status = 'failed' AND m.settled_at > %s
GROUP BY m.error_group ORDER BY count(*) DESC, m.error_group
"""

_LAST_SETTLED = """
SELECT count(*) AS settled, count(*) FILTER (WHERE l.status = 'failed') AS failed
FROM (SELECT m.status FROM rollout_members m WHERE m.rollout_id = %s AND m.status IN ('succeeded', 'failed')
      AND m.settled_at > %s ORDER BY m.settled_at DESC LIMIT %s) l
"""
