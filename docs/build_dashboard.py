"""Write docs/grafana-dashboard.json: ``python docs/build_dashboard.py``. A test holds the two equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("grafana-dashboard.json")
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_TYPE = 'graph_type=~"$graph_type"'
_LIVE = 'status=~"queued|running|pausing|cancelling"'

# Every worker exports the same fleet-wide numbers, so they are taken by `max`, never added up by instance.
_PANELS: list[tuple[str, str, str, int, list[tuple[str, str]]]] = [
    ("stat", "Live migrations", "none", 4, [(
        f'sum(max by (graph_type, status) (graph_migrator_migrations{{{_LIVE},{_TYPE}}}))', "live")]),
    ("stat", "Failed, graph read-only", "none", 4, [(
        f'sum(max by (graph_type) (graph_migrator_migrations{{status="failed",{_TYPE}}}))', "failed")]),
    ("stat", "Hops running", "none", 4, [("max(graph_migrator_running_hops)", "running")]),
    ("stat", "Oldest waiting", "s", 4, [("max(graph_migrator_queue_age_seconds)", "waits")]),
    ("stat", "Graphs behind their type", "none", 4, [(
        f"sum(max by (graph_type) (graph_migrator_graphs_behind{{{_TYPE}}}))", "behind")]),
    ("stat", "Postgres answers", "bool_yes_no", 4, [("min(graph_migrator_up)", "up")]),
    ("timeseries", "Migrations by status", "none", 12, [(
        f"sum by (status) (max by (graph_type, status) (graph_migrator_migrations{{{_TYPE}}}))", "{{status}}")]),
    ("timeseries", "Waiting, running and overdue", "none", 12, [
        ("max(graph_migrator_waiting_migrations)", "waiting"),
        ("max(graph_migrator_running_hops)", "running"),
        ("max(graph_migrator_overdue_migrations)", "overdue")]),
    ("timeseries", "Hops a minute, by outcome", "none", 12, [(
        "60 * sum by (status) (max by (graph_type, hop, status) "
        f"(rate(graph_migrator_hop_seconds_count{{{_TYPE}}}[$__rate_interval])))", "{{status}}")]),
    ("timeseries", "Seconds of a hop, 95th percentile", "s", 12, [(
        "histogram_quantile(0.95, max by (le, graph_type, hop) "
        f'(rate(graph_migrator_hop_seconds_bucket{{status="succeeded",{_TYPE}}}[$__rate_interval])))',
        "{{graph_type}} {{hop}}")]),
    ("timeseries", "Rows changed a second", "none", 12, [(
        "sum by (graph_type, hop) (max by (graph_type, hop) "
        f"(rate(graph_migrator_rows_changed_total{{{_TYPE}}}[$__rate_interval])))", "{{graph_type}} {{hop}}")]),
    ("timeseries", "Lost attempts", "none", 12, [(
        "max by (graph_type, hop) "
        f"(increase(graph_migrator_lost_attempts_total{{{_TYPE}}}[$__rate_interval]))", "{{graph_type}} {{hop}}")]),
    ("timeseries", "Recovery: found lost to started again", "s", 12, [
        (f"histogram_quantile({q}, max by (le) (rate(graph_migrator_recovery_seconds_bucket[$__rate_interval])))", name)
        for q, name in ((0.5, "median"), (0.95, "95th percentile"))]),
    ("timeseries", "How long the oldest has waited", "s", 12, [("max(graph_migrator_queue_age_seconds)", "waits")]),
    ("timeseries", "Graphs by version", "none", 12, [(
        f"max by (graph_type, version) (graph_migrator_graphs{{{_TYPE}}})", "{{graph_type}} v{{version}}")]),
    ("timeseries", "Graphs behind their type, or partially migrated", "none", 12, [
        (f"max by (graph_type) (graph_migrator_graphs_behind{{{_TYPE}}})", "{{graph_type}} behind"),
        ("max(graph_migrator_graphs_partially_migrated)", "partially migrated")]),
    ("stat", "Rollouts held", "none", 4, [(
        f"sum(max by (graph_type, reason) (graph_migrator_rollout_held{{{_TYPE}}})) or vector(0)", "held")]),
    ("stat", "Graphs left in rollouts", "none", 4, [(
        "sum(max by (graph_type, status) "
        f'(graph_migrator_rollout_members{{status=~"pending|dispatched",{_TYPE}}})) or vector(0)', "left")]),
    ("stat", "Failed in rollouts", "none", 4, [(
        "sum(max by (graph_type, status) "
        f'(graph_migrator_rollout_members{{status="failed",{_TYPE}}})) or vector(0)', "failed")]),
    ("stat", "Rollout ends in, at most", "s", 4, [(
        f'max(graph_migrator_rollout_seconds_left{{quantile="0.9",{_TYPE}}})', "left")]),
    ("stat", "May be in flight", "none", 4, [(
        f"sum(max by (graph_type) (graph_migrator_rollout_pace{{{_TYPE}}}))", "pace")]),
    ("stat", "Workers", "none", 4, [("max(graph_migrator_workers)", "live")]),
    ("timeseries", "Rollout: graphs by status", "none", 12, [(
        f"max by (graph_type, status) (graph_migrator_rollout_members{{{_TYPE}}})", "{{graph_type}} {{status}}")]),
    ("timeseries", "Rollout: slowed or stopped by", "none", 12, [(
        f"max by (graph_type, signal) (graph_migrator_rollout_slowed{{{_TYPE}}})", "{{graph_type}} by {{signal}}")]),
    ("timeseries", "Rollout: time left and pace", "s", 12, [
        (f"max by (graph_type, quantile) (graph_migrator_rollout_seconds_left{{{_TYPE}}})",
         "{{graph_type}} {{quantile}}"),
        (f"max by (graph_type) (graph_migrator_rollout_pace{{{_TYPE}}})", "{{graph_type}} may be in flight")]),
]  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels, x, y = [], 0, 0
    for number, (kind, title, unit, width, queries) in enumerate(_PANELS, start=1):
        height = 4 if kind == "stat" else 8
        panels.append(
            {
                "id": number,
                "type": kind,
                "title": title,
                "datasource": _SOURCE,
                "gridPos": {"x": x, "y": y, "w": width, "h": height},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "targets": [
                    {"refId": chr(ord("A") + n), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
                    for n, (query, legend) in enumerate(queries)
                ],
            }
        )
        x += width
        if x >= 24:
            x, y = 0, y + height
    return {
        "title": "graph-migrator",
        "uid": "graph-migrator",
        "tags": ["celery", "postgres"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                {
                    "name": "graph_type",
                    "type": "query",
                    "label": "Graph type",
                    "datasource": _SOURCE,
                    "query": "label_values(graph_migrator_graphs, graph_type)",
                    "includeAll": True,
                    "multi": True,
                    "refresh": 2,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }


def page() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
