"""Which graphs a rollout takes: those of its selection, with why the others are left out, and its canaries."""

from __future__ import annotations

from typing import Any

from graph_migrator.core.errors import (
    InvalidRequest,
    UnknownGraph,
)
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.rollouts.canaries import Canary, Candidate, choose_canaries
from graph_migrator.core.rollouts.request import RolloutRequest
from graph_migrator.core.rollouts.rows import query
from graph_migrator.core.rollouts.strategy import config_path
from graph_migrator.core.rollouts.workers import served
from graph_migrator.core.store.errors import sqlstate


def select_candidates(cursor: Any, request: RolloutRequest, kind: GraphType, target: int) -> None:
    """Read the graphs of a selection into the temporary table `rollout_candidates`.

    Raises:
        UnknownGraph: A named graph is not there.
        InvalidRequest: A condition or an order is no JSON path.
    """
    graphs = None
    if request.graphs is not None:
        found = {
            row.name: row.graph_id
            for row in query(
                cursor,
                "SELECT v.name, graph_id_of(v.name) AS graph_id FROM unnest(%s::text[]) v (name)",
                list(request.graphs),
            )
        }
        missing = [name for name, graph_id in found.items() if graph_id is None]
        if missing:
            raise UnknownGraph(missing[0])
        graphs = list(found.values())
    like = None
    if request.slug is not None:
        like = request.slug.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")
    _require_paths(cursor, request)
    # A parameter of a branch that is not there is not read.
    cursor.execute(
        f"{_SELECT} AND {_chosen(request)}",
        {
            "type": kind.name, "target": target, "oldest": kind.oldest, "newest": kind.newest, "graphs": graphs,
            "slug": like, "from": request.from_version, "where": request.where, "reverses": request.reverses,
            "order": config_path(request.strategy.order), "code": served(kind).code,
            "shapes": request.strategy.shapes,
        },
    )  # fmt: skip


def _chosen(request: RolloutRequest) -> str:
    """Which graphs of the type, before the filters."""
    if request.reverses is not None:
        return _REVERSED
    if request.graphs is not None:
        return "g.id = ANY (%(graphs)s::uuid[])"
    behind = "g.version < %(target)s"
    return f"{behind} AND {LEFT_OUT}" if request.automatic else behind


def _require_paths(cursor: Any, request: RolloutRequest) -> None:
    """Refuse what is no JSON path, and a selection that is not true or false.

    Raises:
        InvalidRequest: Says what is wrong with it.
    """
    like = "one is written like '$.tier == \"gold\"'"
    if request.where is not None and _kind_of_path(cursor, "where", request.where) not in {"boolean", "null"}:
        raise InvalidRequest("where", f"{request.where!r} is no condition; {like}")
    _kind_of_path(cursor, "order", config_path(request.strategy.order))


def _kind_of_path(cursor: Any, name: str, path: str) -> str:
    """What a JSON path finds in an empty config: a condition finds true, false or null."""
    cursor.execute("SAVEPOINT path")
    try:
        (found,) = query(
            cursor,
            "SELECT coalesce(jsonb_typeof(jsonb_path_query_first('{}', %s::jsonpath, '{}', true)), 'nothing') AS kind",
            path,
        )
    except Exception as error:
        if sqlstate(error) is None:
            raise
        cursor.execute("ROLLBACK TO SAVEPOINT path")
        like = '$.tier == "gold"' if name == "where" else "config:$.tier"
        raise InvalidRequest(name, f"{path!r} is no JSON path; write it like '{like}'") from None
    return str(found.kind)


# The classes of `core.rollouts.estimate.size_class`.
SIZES = """
SELECT CASE WHEN row_count IS NULL THEN -1 WHEN row_count = 0 THEN 0 ELSE length(row_count::text) END AS size,
       count(*) AS graphs FROM rollout_candidates WHERE note IS NULL GROUP BY 1
"""

LEFT_OUT = """
g.migration_id IS NULL AND g.partially_migrated IS NULL AND NOT EXISTS (
    SELECT FROM rollout_members l JOIN rollouts o ON o.id = l.rollout_id
    WHERE l.graph_id = g.id AND l.status IN ('failed', 'skipped') AND o.automatic AND o.to_version = %(target)s
      AND o.code = %(code)s AND (l.status = 'failed' OR l.note LIKE 'taken out%%'
                           OR l.sent_at IS NOT NULL AND l.note <> 'the rollout was cancelled'))
"""
"""Of graphs `g`: those that a policy may move. Not failed ones, and not again what it could not move with this code."""

_REVERSED = """
g.id IN (SELECT v.graph_id FROM rollout_members v
         WHERE v.rollout_id = %(reverses)s AND v.status = 'succeeded' AND v.from_version = %(target)s)
"""

_SELECT = """
CREATE TEMP TABLE rollout_candidates ON COMMIT DROP AS
SELECT g.id AS graph_id, g.slug, g.version AS from_version, g.created_at,
       CASE WHEN %(shapes)s THEN 0::bigint END AS row_count, CASE WHEN %(shapes)s THEN '' END AS shape,
       jsonb_path_query_first(g.config, %(order)s::jsonpath, '{}', true) AS config_value,
       CASE WHEN g.version NOT BETWEEN %(oldest)s AND %(newest)s THEN 'unreachable: its type does not know its version'
            WHEN %(reverses)s::uuid IS NOT NULL AND g.version IS DISTINCT FROM
                 (SELECT o.to_version FROM rollouts o WHERE o.id = %(reverses)s) THEN 'moved since'
            WHEN %(reverses)s::uuid IS NULL AND g.version > %(target)s THEN 'beyond the target'
            WHEN g.partially_migrated IS NOT NULL THEN 'partially migrated' END AS note
FROM graphs g
WHERE g.graph_type = %(type)s AND g.version <> %(target)s
  AND (%(slug)s::text IS NULL OR g.slug LIKE %(slug)s)
  AND (%(from)s::integer IS NULL OR g.version = %(from)s)
  AND (%(where)s::jsonpath IS NULL OR coalesce(jsonb_path_match(g.config, %(where)s::jsonpath, '{}', true), false))
"""

COUNT_SHAPES = (
    """
UPDATE rollout_candidates c SET row_count = s.rows, shape = s.labels
FROM (SELECT l.graph_id, sum(l.rows) AS rows, string_agg(l.label, ',' ORDER BY l.label) AS labels
      FROM (SELECT n.graph_id, n.label, count(*) AS rows FROM nodes n
            WHERE n.graph_id IN (SELECT graph_id FROM rollout_candidates) GROUP BY 1, 2) l GROUP BY 1) s
WHERE c.graph_id = s.graph_id
""",
    """
UPDATE rollout_candidates c SET row_count = c.row_count + s.rows, shape = c.shape || ' | ' || s.types
FROM (SELECT l.graph_id, sum(l.rows) AS rows, string_agg(l.type, ',' ORDER BY l.type) AS types
      FROM (SELECT e.graph_id, e.type, count(*) AS rows FROM edges e
            WHERE e.graph_id IN (SELECT graph_id FROM rollout_candidates) GROUP BY 1, 2) l GROUP BY 1) s
WHERE c.graph_id = s.graph_id
""",
)
"""One pass over nodes and one over edges, for all graphs together."""

# Of each version and shape the smallest, the largest and the first by slug. Each stands for its part of the graphs that
# are like it, so that the parts add up to all of them.
_REPRESENTATIVES = """
SELECT graph_id, slug, from_version, row_count, shape,
       likes / count(*) OVER of_it
       + CASE WHEN row_number() OVER (of_it ORDER BY slug) <= mod(likes, count(*) OVER of_it) THEN 1 ELSE 0 END AS likes
FROM (SELECT c.*, count(*) OVER like_it AS likes,
             row_number() OVER (like_it ORDER BY row_count, slug) AS smallest,
             row_number() OVER (like_it ORDER BY row_count DESC, slug) AS largest,
             row_number() OVER (like_it ORDER BY slug) AS first
      FROM rollout_candidates c WHERE note IS NULL WINDOW like_it AS (PARTITION BY from_version, shape)) c
WHERE smallest = 1 OR largest = 1 OR first <= %s
WINDOW of_it AS (PARTITION BY from_version, shape) ORDER BY c.likes DESC, slug LIMIT 5000
"""


def canaries_of(cursor: Any, request: RolloutRequest) -> tuple[Canary, ...]:
    """The canaries among the candidates: those that the request names, else the ones that stand for most graphs."""
    if request.canary_graphs:
        rows = query(
            cursor,
            "SELECT graph_id, slug, from_version FROM rollout_candidates WHERE note IS NULL AND slug = ANY (%s)",
            list(request.canary_graphs),
        )
        missing = set(request.canary_graphs) - {row.slug for row in rows}
        if missing:
            raise InvalidRequest(
                "canary-graphs", f"{min(missing)!r} is not among the graphs that are to be moved"
            )
        return tuple(Canary(Candidate(r.graph_id, r.slug, r.from_version), "named") for r in rows)
    most = request.strategy.canaries
    if not most:
        return ()
    rows = query(cursor, _REPRESENTATIVES, most)
    candidates = [
        Candidate(r.graph_id, r.slug, r.from_version, r.row_count, r.shape, int(r.likes)) for r in rows
    ]
    return choose_canaries(candidates, most)
