"""Numbers for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.adapters.database.queries import Views


class Metrics:
    """The numbers of one server; counters start at 0 with the process, gauges are read when asked for."""

    def __init__(self, views: Views) -> None:
        self.registry = CollectorRegistry()
        self.offers = Counter(
            "trainhop_offers", "Checkpoints offered by workers.", ["committed"], registry=self.registry
        )
        self.reports = Counter("trainhop_reports", "Reports of workers that were stored.", registry=self.registry)
        self.registry.register(_Numbers(views))


class _Numbers(Collector):
    def __init__(self, views: Views) -> None:
        self._views = views

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        counts = self._views.counts()
        for name, words, label in (
            ("jobs", "Jobs by state.", "state"),
            ("sessions", "Live sessions by provider.", "provider"),
            ("steps", "Steps done by live sessions.", "provider"),
        ):
            gauge = GaugeMetricFamily(f"trainhop_{name}", words, labels=[label])
            for key, count in counts[name]:
                gauge.add_metric([key], count)
            yield gauge
        yield CounterMetricFamily("trainhop_events", "Events written so far.", self._views.last_event())
