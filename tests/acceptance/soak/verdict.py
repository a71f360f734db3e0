"""What must hold for every graph after a soak, whatever was killed."""

from __future__ import annotations

from itertools import pairwise

from tests.acceptance.crash.stage import Stage
from tests.rows import graph_row, properties, rows

DONE = ("succeeded", "skipped")


def violations(stage: Stage, slugs: list[str]) -> list[str]:
    """Everything that does not hold, in words; empty when all is well."""
    return [f"{slug}: {wrong}" for slug in slugs for wrong in _of_graph(stage, slug)] + _of_all(stage)


def _of_graph(stage: Stage, slug: str) -> list[str]:
    graph = graph_row(stage.engine, slug)
    attempts = rows(
        stage.engine,
        "SELECT migration_id, hop_name, from_version, to_version, status, undid IS NOT NULL FROM hop_attempts "
        "WHERE graph_id = :id AND shard IS NULL ORDER BY id",
        id=graph.id,
    )
    done = [(hop, start, end) for _, hop, start, end, status, _ in attempts if status in DONE]
    steps: list[str] = []
    for _, hop, start, end, status, is_undo in attempts:
        if status in DONE and is_undo:
            steps.pop()
        elif status in DONE:
            steps.append(f"{hop} v{start}→v{end}")
    wrong = [
        f"node {node} was written by {value.get('steps', [])[-8:]}, committed were {steps[-8:]}"
        for node, value in properties(stage.engine, slug).items()
        if value.get("steps", []) != steps
    ]
    if any(before[2] != after[1] for before, after in pairwise(done)):
        wrong.append(f"hops do not follow each other: {steps}")
    if graph.version != (done[-1][2] if done else 1):
        wrong.append(f"stands at v{graph.version}, its last hop led to {done[-1:]}")
    if graph.migration_id is not None:
        wrong.append(f"still claimed by {graph.migration_id}")
    ends = rows(
        stage.engine,
        "SELECT id, status, error_message FROM migrations WHERE graph_id = :id AND status <> 'succeeded'",
        id=graph.id,
    )
    wrong += [f"migration {id_} is {status}: {message}" for id_, status, message in ends]
    if holders := stage.locks_on(slug):
        wrong.append(f"locked by {holders}")
    return wrong


def _of_all(stage: Stage) -> list[str]:
    wrong = []
    for what, query in {
        "running attempts": "SELECT id FROM hop_attempts WHERE status = 'running'",
        "checkpoints left": "SELECT migration_id FROM checkpoints",
        "shards left": "SELECT migration_id FROM shards",
        "rows staged": "SELECT migration_id FROM rebuilds WHERE status IN ('staging', 'staged')",
        "callers unanswered": "SELECT task_id FROM requests WHERE answered_at IS NULL",
        "changes undated": "SELECT slug FROM graphs WHERE changed_at IS NULL",
    }.items():
        if found := rows(stage.engine, query):
            wrong.append(f"{what}: {found}")
    return wrong
