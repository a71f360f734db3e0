"""Prometheus metrics, served by a worker's main process: ``celery -A graph_migrator worker --metrics-port 9464``.

Everything is counted in Postgres, nothing in the workers' memory. The audit rows never change, so a count of them
is a counter: it survives restarts, a killed process cannot take numbers with it, and prefork needs no shared files.
So every worker serves the same fleet-wide
numbers: scrape one or all of them, and never add them up (`max`, not `sum`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from celery import bootsteps
from celery.signals import worker_process_init
from click import Option

from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection.metrics import Measures, measure
from graph_migrator.core.rollouts.measures import FleetMeasures, measure_fleet
from graph_migrator.core.settings import settings
from graph_migrator.tasks.runtime import engine

_log = logging.getLogger("graph_migrator.metrics")

OPTIONS = (
    Option(["--metrics-port"], type=int, help="Serve Prometheus metrics; GRAPH_MIGRATOR_METRICS_PORT."),
    Option(["--metrics-address"], help="Where to serve them; GRAPH_MIGRATOR_METRICS_ADDRESS."),
)

METRICS = {
    "graph_migrator_up": "Whether Postgres answered this scrape.",
    "graph_migrator_migrations": "Migrations there are, by graph type and status.",
    "graph_migrator_hop_seconds": "How long hop attempts took, by graph type, hop and outcome.",
    "graph_migrator_rows_changed_total": "Rows changed by what hops committed, by graph type and hop.",
    "graph_migrator_lost_attempts_total": "Hop attempts whose executor died, by graph type and hop.",
    "graph_migrator_recovery_seconds": "From a lost attempt being found to the next start of its hop.",
    "graph_migrator_running_hops": "Hop attempts that have a running row.",
    "graph_migrator_waiting_migrations": "Live migrations that nobody executes at this moment.",
    "graph_migrator_queue_age_seconds": "How long the one of them that waits longest has waited.",
    "graph_migrator_overdue_migrations": "Those past the deadline at which recovery redelivers.",
    "graph_migrator_graphs": "Graphs, by type and version.",
    "graph_migrator_graphs_behind": "Graphs below the newest version of their type that this worker knows.",
    "graph_migrator_graphs_partially_migrated": "Graphs that were force-released half-way through a batched hop.",
    "graph_migrator_rollout_members": "Graphs of the live rollout, by graph type and status.",
    "graph_migrator_rollout_pace": "How many graphs of the live rollout may be in flight at this moment.",
    "graph_migrator_rollout_slowed": "1 for a live rollout that load slows or stops, by the health signal.",
    "graph_migrator_rollout_held": "1 for a live rollout that is held, by its reason.",
    "graph_migrator_rollout_seconds_left": "How long the rest of the live rollout takes; quantiles of the estimate.",
    "graph_migrator_workers": "Workers that live, by their rows in Postgres.",
}
"""Every metric and what it says; docs/monitoring.md and the dashboard are held against it."""


class Counted:
    """A Prometheus collector that looks into Postgres at each scrape, one scrape at a time."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()

    def describe(self) -> Iterable[Any]:
        """Nothing: registering must not ask Postgres."""
        return ()

    def collect(self) -> Iterator[Any]:
        """All metrics; only `graph_migrator_up` where Postgres does not answer."""
        from prometheus_client.core import GaugeMetricFamily

        try:
            with self._one_at_a_time, engine().connect() as connection:
                found = measure(connection)
                fleet = measure_fleet(connection.connection.cursor(), settings().queue)
        except Exception as error:  # noqa: BLE001 - whatever is away: that is what the scrape says
            _log.warning("metrics: Postgres did not answer: %s", type(error).__name__)
            found = None
        yield GaugeMetricFamily(
            "graph_migrator_up", METRICS["graph_migrator_up"], value=float(found is not None)
        )
        if found is not None:
            yield from families(found, {name: kind.newest for name, kind in graph_types().items()}, fleet)


def families(found: Measures, newest: dict[str, int], fleet: FleetMeasures | None = None) -> Iterator[Any]:
    """The measures as Prometheus metric families.

    Args:
        found: What was counted.
        newest: The newest version by graph type.
        fleet: Live rollouts and workers.
    """
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    def gauge(name: str, values: dict[tuple[Any, ...], float], labels: tuple[str, ...] = ()) -> Any:
        family = GaugeMetricFamily(name, METRICS[name], labels=labels)
        for key, value in values.items():
            family.add_metric([str(each) for each in key], value)
        return family

    def counter(name: str, values: dict[tuple[Any, ...], float], labels: tuple[str, ...]) -> Any:
        family = CounterMetricFamily(name.removesuffix("_total"), METRICS[name], labels=labels)
        for key, value in values.items():
            family.add_metric([str(each) for each in key], value)
        return family

    yield gauge("graph_migrator_migrations", {**found.migrations}, ("graph_type", "status"))
    hops = HistogramMetricFamily(
        "graph_migrator_hop_seconds",
        METRICS["graph_migrator_hop_seconds"],
        labels=("graph_type", "hop", "status"),
    )
    for key, histogram in found.hop_seconds.items():
        hops.add_metric(key, histogram.cumulated(), histogram.total)
    yield hops
    yield counter("graph_migrator_rows_changed_total", {**found.rows}, ("graph_type", "hop"))
    yield counter("graph_migrator_lost_attempts_total", {**found.lost_attempts}, ("graph_type", "hop"))
    recovery = HistogramMetricFamily(
        "graph_migrator_recovery_seconds", METRICS["graph_migrator_recovery_seconds"]
    )
    recovery.add_metric([], found.recovery.cumulated(), found.recovery.total)
    yield recovery
    yield gauge("graph_migrator_running_hops", {(): found.running_hops})
    yield gauge("graph_migrator_waiting_migrations", {(): found.waiting})
    yield gauge("graph_migrator_queue_age_seconds", {(): found.queue_age})
    yield gauge("graph_migrator_overdue_migrations", {(): found.overdue})
    yield gauge("graph_migrator_graphs", {**found.graphs}, ("graph_type", "version"))
    behind = dict.fromkeys(((kind,) for kind in newest), 0.0)
    for (kind, version), count in found.graphs.items():
        if version < newest.get(kind, 0):
            behind[kind,] += count
    yield gauge("graph_migrator_graphs_behind", {**behind}, ("graph_type",))
    yield gauge("graph_migrator_graphs_partially_migrated", {(): found.partially_migrated})
    fleet = fleet or FleetMeasures()
    by_type = ("graph_type",)
    members = {(r.graph_type, status): float(n) for r in fleet.rollouts for status, n in r.members.items()}
    yield gauge("graph_migrator_rollout_members", {**members}, ("graph_type", "status"))
    yield gauge("graph_migrator_rollout_pace", {(r.graph_type,): r.pace for r in fleet.rollouts}, by_type)
    slowed = {(r.graph_type, r.slowed_by): 1.0 for r in fleet.rollouts if r.slowed_by is not None}
    yield gauge("graph_migrator_rollout_slowed", {**slowed}, ("graph_type", "signal"))
    held = {(r.graph_type, r.held): 1.0 for r in fleet.rollouts if r.held is not None}
    yield gauge("graph_migrator_rollout_held", {**held}, ("graph_type", "reason"))
    left = {
        (r.graph_type, quantile): seconds
        for r in fleet.rollouts
        if r.time_left is not None
        for quantile, seconds in (("0.1", r.time_left.low), ("0.9", r.time_left.high))
    }
    yield gauge("graph_migrator_rollout_seconds_left", {**left}, ("graph_type", "quantile"))
    yield gauge("graph_migrator_workers", {(): float(fleet.workers)})


class MetricsEndpoint(bootsteps.StartStopStep):
    """Serves the metrics for as long as the worker lives. Whatever hinders it never stops the worker."""

    requires = ("celery.worker.components:Pool",)  # the pool's first processes are forked by then

    server: Any = None

    def __init__(
        self,
        worker: Any,
        metrics_port: int | None = None,
        metrics_address: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(worker, **options)
        self._port = settings().metrics_port if metrics_port is None else metrics_port
        self._address = metrics_address or settings().metrics_address
        self.enabled = bool(self._port)

    def start(self, worker: Any) -> None:
        """Open the port."""
        try:
            from prometheus_client import CollectorRegistry, start_http_server

            registry = CollectorRegistry()
            registry.register(Counted())
            assert self._port is not None  # noqa: S101 - else the step is not enabled
            MetricsEndpoint.server, _ = start_http_server(self._port, self._address, registry)
            _log.info("metrics: http://%s:%d/metrics", self._address, self._port)
        except ImportError:
            _log.error("no metrics are served: pip install 'graph-migrator[metrics]'")
        except OSError as error:
            _log.error("no metrics are served on %s:%s: %s", self._address, self._port, error)

    def stop(self, worker: Any) -> None:
        """Close the port."""
        server, MetricsEndpoint.server = MetricsEndpoint.server, None
        if server is not None:
            server.shutdown()
            server.server_close()


@worker_process_init.connect
def _let_go_of_the_port(**_: object) -> None:
    # A process forked later than the start has a copy of the listening socket: were the main process
    # killed, the port would stay taken for as long as that child lives.
    if MetricsEndpoint.server is not None:
        MetricsEndpoint.server.socket.close()
        MetricsEndpoint.server = None
