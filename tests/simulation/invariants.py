"""What must hold after every commit, and what must hold in the end."""

from __future__ import annotations

from typing import Any

from graph_migrator.core.statuses import APPLIED, LIVE, MigrationStatus, edge_pairs

CRASHES, INTERRUPTIONS = 3, 6
"""The limits of the simulation's settings."""

OWNING = LIVE | {MigrationStatus.FAILED}

SNAPSHOT = """
SELECT json_build_object(
    'graph', (SELECT json_build_object('version', g.version, 'claim', g.migration_id, 'half', g.partially_migrated,
                                       'dated', g.changed_at IS NOT NULL) FROM graphs g WHERE g.id = $1),
    'migrations', (SELECT coalesce(json_agg(json_build_object('id', m.id, 'status', m.status,
            'dispatch', m.dispatch, 'from', m.from_version, 'to', m.to_version, 'task', m.task_id,
            'plan', m.plan, 'error', m.error_type, 'forgiven', m.retries_reset_after_id) ORDER BY m.created_at), '[]')
        FROM migrations m WHERE m.graph_id = $1),
    'attempts', (SELECT coalesce(json_agg(json_build_object('id', a.id, 'migration', a.migration_id,
            'from', a.from_version, 'to', a.to_version, 'shard', a.shard, 'dispatch', a.dispatch, 'status', a.status,
            'batches', a.batches, 'undid', a.undid,
            'transient', a.transient, 'link', a.link, 'previous', a.previous, 'hash', a.hash,
            'intact', a.hash = attempt_hash(a),
            'because', (SELECT l.because FROM losses l WHERE l.attempt_id = a.id)) ORDER BY a.id), '[]')
        FROM hop_attempts a WHERE a.graph_id = $1),
    'checkpoints', (SELECT coalesce(json_agg(json_build_object('migration', c.migration_id,
            'to', c.to_version, 'cursor', c.cursor)), '[]')
        FROM migrations m JOIN checkpoints c ON c.migration_id = m.id WHERE m.graph_id = $1),
    'shards', (SELECT coalesce(json_agg(to_json(s)), '[]')
        FROM migrations m JOIN shards s ON s.migration_id = m.id WHERE m.graph_id = $1),
    'trails', (SELECT json_object_agg(n.id, n.properties->'trail') FROM nodes n WHERE n.graph_id = $1))
"""

MARKS = """
SELECT x.id, concat_ws(' ',
    (SELECT g.xmin FROM graphs g WHERE g.id = x.id),
    (SELECT string_agg(n.xmin::text, ',' ORDER BY n.id) FROM nodes n WHERE n.graph_id = x.id), 'm',
    (SELECT string_agg(concat_ws(',', m.xmin,
        (SELECT string_agg(c.xmin::text, ',') FROM checkpoints c WHERE c.migration_id = m.id), 's',
        (SELECT string_agg(s.xmin::text, ',') FROM shards s WHERE s.migration_id = m.id)), ';' ORDER BY m.id)
        FROM migrations m WHERE m.graph_id = x.id), 'a',
    (SELECT string_agg(concat_ws(',', a.xmin,
        (SELECT l.xmin FROM losses l WHERE l.attempt_id = a.id)), ';' ORDER BY a.id)
        FROM hop_attempts a WHERE a.graph_id = x.id))
FROM unnest($1) x (id)
"""
"""Another one for each graph of whose snapshot a commit has changed something."""

REQUESTS = """
SELECT r.task_id, r.verb, r.migration_id, r.outcome, m.status, m.task_id, r.answered_at IS NOT NULL
FROM requests r LEFT JOIN migrations m ON m.id = r.migration_id WHERE r.graph_id = %s ORDER BY r.created_at
"""


class Violation(AssertionError):
    """An invariant does not hold."""


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Violation(what)


def check(
    now: dict[str, Any], before: dict[str, Any] | None, *, start: int = 1, mended: bool, waited: bool
) -> None:
    """What holds after every commit.

    Args:
        now: All there is about the graph.
        before: The same after the last commit that was looked at.
        start: The version that the graph was made at.
        mended: The code of a hop was changed on the way.
        waited: Somebody waited in the server; it may have committed together with the one that was looked for.

    Raises:
        Violation: Says what does not.
    """
    _check_claim(now)
    _check_data(now, start=start, mended=mended)
    _check_proof(now)
    running = [a for a in now["attempts"] if a["status"] == "running"]
    # One of a hop; of a hop in shards one of each shard, or the one that closes it. A shard whose executor died may be
    # found after its migration has ended.
    together = [a["shard"] for a in running if a["migration"] == now["graph"]["claim"]]
    _require(
        len(together) <= 1 or (None not in together and len(set(together)) == len(together)),
        f"two running rows: {running}",
    )
    left = [a for a in running if a["migration"] != now["graph"]["claim"]]
    _require(all(a["shard"] is not None for a in left), f"running for no claim: {left}")
    if before is not None:
        _check_history(now, before, waited=waited)
        if not waited:
            _check_losses(now, before)


def _check_losses(now: dict[str, Any], before: dict[str, Any]) -> None:
    """A hop that is known to end processes is not begun again; an error names what was counted."""
    known = {a["id"] for a in before["attempts"]}
    migrations = {m["id"]: m for m in now["migrations"]}
    for begun in now["attempts"]:
        if begun["id"] in known or begun["status"] != "running":
            continue
        crashes, _ = _losses(before, migrations[begun["migration"]], begun["to"], begun["shard"])
        _require(crashes < CRASHES, f"{begun} was begun after {crashes} crashes")
    for migration in now["migrations"]:
        error = (migration["error"] or "").rpartition(".")[2]
        if error in {"HopCrashedRepeatedly", "HopInterruptedRepeatedly"}:
            counted = [
                _losses(now, migration, to, shard)
                for to, shard in {
                    (a["to"], a["shard"]) for a in now["attempts"] if a["migration"] == migration["id"]
                }
            ]
            enough = (
                any(crashes >= CRASHES for crashes, _ in counted)
                if error == "HopCrashedRepeatedly"
                else any(sum(losses) >= INTERRUPTIONS for losses in counted)
            )
            _require(enough, f"{error} after these crashes and other losses: {counted}")


def _losses(now: dict[str, Any], migration: dict[str, Any], to: int, shard: int | None) -> tuple[int, int]:
    """Crashes, and other losses, since the last progress of the hop, or of the shard, and the last retry."""
    mine = [
        a
        for a in now["attempts"]
        if a["migration"] == migration["id"]
        and (a["to"], a["shard"]) == (to, shard)
        and a["id"] > migration["forgiven"]
    ]
    since = max((a["id"] for a in mine if a["batches"]), default=0)
    lost = [a["because"] == "process" for a in mine if a["id"] > since and a["status"] == "lost"]
    return sum(lost), len(lost) - sum(lost)


def _two_edges() -> frozenset[tuple[MigrationStatus, MigrationStatus]]:
    return frozenset((a, c) for a, b in edge_pairs() for b_, c in edge_pairs() if b is b_)


def _check_claim(now: dict[str, Any]) -> None:
    owners = [m["id"] for m in now["migrations"] if m["status"] in OWNING]
    claim = now["graph"]["claim"]
    statuses = [(m["id"][:4], m["status"]) for m in now["migrations"]]
    _require(owners == ([claim] if claim else []), f"the claim is {claim}, the migrations are {statuses}")
    _require(not (claim and now["graph"]["half"]), "claimed, and yet marked as partially migrated")


def _check_data(now: dict[str, Any], *, start: int, mended: bool) -> None:
    """The rows have the shape of the graph's version: each applied hop is in each trail once, in order."""
    applied = [
        f"{a['from']}>{a['to']}"
        for a in now["attempts"]
        if a["status"] in APPLIED and a["shard"] is None  # a shard's does not move the version
    ]
    at = str(start)
    for entry in applied:
        _require(entry.startswith(f"{at}>"), f"hops were applied in this order: {applied}")
        at = entry.partition(">")[2]
    version = now["graph"]["version"]
    _require(str(version) == at, f"the graph is at v{version} after {applied}")
    half = _half(now)
    left: list[str] = []
    for attempt in now["attempts"]:
        if attempt["undid"] is not None and attempt["status"] in APPLIED:
            left.pop()  # the old values are there again
        elif attempt["status"] in APPLIED and attempt["shard"] is None:
            left.append(f"{attempt['from']}>{attempt['to']}")
    for node, trail in now["trails"].items():
        expected = [*left]
        if half is not None and _is_visited(half, node):
            expected.append(half["entry"])
        _require(
            trail == expected or (mended and half is not None and trail == left),
            f"node {node} has {trail} instead of {expected} at v{version} (partially migrated: {half})",
        )


def _check_proof(now: dict[str, Any]) -> None:
    """The finished attempts are one chain, whoever finished them; but for shards', in the order of their ids."""
    finished = sorted((a for a in now["attempts"] if a["status"] != "running"), key=lambda a: a["link"])
    alone = [a["id"] for a in finished if a["shard"] is None]
    _require(alone == sorted(alone), f"not in the order of their ids: {finished}")
    _require([a["link"] for a in finished] == list(range(1, len(finished) + 1)), f"not one chain: {finished}")
    _require(
        [a["previous"] for a in finished] == [None, *(a["hash"] for a in finished)][: len(finished)],
        f"a link does not name the hash before it: {finished}",
    )
    _require(all(a["intact"] for a in finished), f"a row does not have its hash: {finished}")


def _half(now: dict[str, Any]) -> dict[str, Any] | None:
    """How far a batched hop is: the ranges that it processes, each with its cursor, and the entry it leaves."""
    half = now["graph"]["half"]
    if half is not None:
        return _ranges(half["cursor"], f"{half['from_version']}>{half['to_version']}")
    for checkpoint in now["checkpoints"]:
        if checkpoint["migration"] == now["graph"]["claim"]:
            migration = next(m for m in now["migrations"] if m["id"] == checkpoint["migration"])
            step = next(s for s in migration["plan"] if s["to_version"] == checkpoint["to"])
            entry = f"{step['from_version']}>{step['to_version']}"
            mine = [
                s
                for s in now["shards"]
                if (s["migration_id"], s["to_version"]) == (migration["id"], step["to_version"])
            ]
            return _ranges({"shards": mine} if mine else checkpoint["cursor"], entry)
    return None


def _ranges(cursor: Any, entry: str) -> dict[str, Any]:
    whole = [{"after": None, "upto": None, "cursor": cursor}]
    return {"entry": entry, "ranges": cursor["shards"] if isinstance(cursor, dict) else whole}


def _is_visited(half: dict[str, Any], node: str) -> bool:
    """Whether the hop has committed a batch with this node."""
    return any(
        (each["after"] is None or node > each["after"][0])
        and (each["upto"] is None or node <= each["upto"][0])
        and each["cursor"] is not None
        and node <= each["cursor"][0]
        for each in half["ranges"]
    )


def _check_history(now: dict[str, Any], before: dict[str, Any], *, waited: bool) -> None:
    attempts = {a["id"]: a for a in now["attempts"]}
    for old in before["attempts"]:
        new = attempts.get(old["id"])
        _require(new is not None, f"attempt {old} is not there any more")
        if old["status"] != "running":
            kept = new | {"because": None} if old["because"] is None else new
            _require(kept == old, f"a finished attempt changed: {old} became {new}")
    migrations = {m["id"]: m for m in now["migrations"]}
    for old in before["migrations"]:
        new = migrations[old["id"]]
        _require(new["dispatch"] >= old["dispatch"], f"the dispatch shrank: {old} became {new}")
        if new["status"] != old["status"]:
            edge = (MigrationStatus(old["status"]), MigrationStatus(new["status"]))
            # Whoever waited for the row commits at once when it is free: two edges are seen as one then.
            known = edge_pairs() | (_two_edges() if waited else frozenset())
            _require(edge in known, f"no such edge: {edge[0]} → {edge[1]}")


def check_end(now: dict[str, Any], locks: list[Any], requests: list[Any], results: Any) -> None:
    """What holds when all is quiet.

    Raises:
        Violation: Says what does not.
    """
    for migration in now["migrations"]:
        status = MigrationStatus(migration["status"])
        _require(
            status.is_settled or status is MigrationStatus.PAUSED,
            f"migration {migration['id']} is {status} for ever",
        )
    _require(not [a for a in now["attempts"] if a["status"] == "running"], "a running row is left")
    keeping = {m["id"] for m in now["migrations"] if m["status"] in {"paused", "failed"}}
    _require({s["migration_id"] for s in now["shards"]} <= keeping, f"shards are left: {now['shards']}")
    _require(
        now["graph"]["dated"], "the last change of version was never dated: writers are kept out for ever"
    )
    _require(not locks, f"advisory locks are left: {locks}")
    for task_id, verb, migration_id, outcome, status, latest, answered in requests:
        state = results.state(task_id)
        shown = f"{verb} request {task_id} ({outcome or status})"
        if verb != "migrate" or migration_id is None:
            expected = "FAILURE" if "error" in (outcome or {}) else "SUCCESS"
            _require(state == expected, f"{shown} was answered with {state}")
        elif MigrationStatus(status).is_settled:
            expected = "SUCCESS" if status == "succeeded" else "FAILURE"
            # A caller whose migration failed has its answer; that another call took it up again is no news to it.
            allowed = {expected} if task_id == latest else {expected, "FAILURE"}
            _require(state in allowed, f"{shown} was answered with {state}")
            if state == "SUCCESS":
                _require(results.value(task_id) == "succeeded", f"{shown} got {results.value(task_id)}")
        else:
            continue
        _require(answered, f"{shown} is not marked as answered: recovery looks it up for ever")
