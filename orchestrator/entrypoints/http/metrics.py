"""Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.adapters.database.queries import Queries
from orchestrator.services.rounds import Rounds


class Metrics:
    """The metrics of one server. Counters start at 0 with the process. Gauges are read on request."""

    def __init__(self, queries: Queries, rounds: Rounds) -> None:
        self.registry = CollectorRegistry()
        self.offers = Counter(
            "trainhop_offers", "Checkpoints offered by workers.", ["committed"], registry=self.registry
        )
        self.reports = Counter("trainhop_reports", "Stored reports of workers.", registry=self.registry)
        self.registry.register(_Numbers(queries, rounds))


class _Numbers(Collector):
    def __init__(self, queries: Queries, rounds: Rounds) -> None:
        self._queries, self._rounds = queries, rounds

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        counts = self._queries.counts()
        for name, words, label in (
            ("jobs", "Jobs by state.", "state"),
            ("sessions", "Live sessions by provider.", "provider"),
            ("steps", "Steps done by live sessions.", "provider"),
        ):
            gauge = GaugeMetricFamily(f"trainhop_{name}", words, labels=[label])
            for key, count in counts[name]:
                gauge.add_metric([key], count)
            yield gauge
        since = GaugeMetricFamily(
            "trainhop_loop_round_age_seconds", "Seconds since the last round of a loop ended.", labels=["loop"]
        )
        for name, age in self._rounds.ages().items():
            since.add_metric([name], age)
        yield since
        yield CounterMetricFamily("trainhop_events", "Events written so far.", self._queries.last_event())
