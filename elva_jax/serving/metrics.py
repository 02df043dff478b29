"""The metrics that Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from elva_jax.inference.continuous.requests import Done, Stats
from elva_jax.serving.media import VisualCache

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
GAUGES = {
    "running": "requests that decode",
    "queued": "requests that wait for a slot",
    "slots": "most requests that decode at once",
    "prefix_bytes": "device memory of prefixes that are kept",
}
COUNTERS = {
    "prefix_hits": "requests whose prefix another one had prefilled",
    "prefix_misses": "prefixes that were prefilled",
    "prompt_tokens": "tokens of prompts, before merging",
    "completion_tokens": "decoded tokens",
    "steps": "steps of the running batch",
    "compilations": "programs compiled since the warm-up; should stay 0",
}


class Metrics:
    """The metrics of one server, in a registry of its own.

    Args:
      stats: counters of the engine.
      media: what was read.
      profiles: names of the settings of merging that requests may have.
    """

    def __init__(
        self, stats: Callable[[], Stats], media: VisualCache, profiles: Collection[str] = ()
    ) -> None:
        self.registry = CollectorRegistry()
        self._responses = Counter(
            "elva_responses",
            "responses of the API by HTTP status",
            ["status"],
            registry=self.registry,
        )
        self._finished = Counter(
            "elva_finished",
            "answers by the reason of their end",
            ["reason"],
            registry=self.registry,
        )
        self._merging = Counter(
            "elva_merging_answers",
            "answers by merging: on, off, or the name of its settings",
            ["merging"],
            registry=self.registry,
        )
        for name in ("on", "off", *profiles):
            self._merging.labels(name)
        self._read, self._queue, self._first, self._total = (
            Histogram(f"elva_{name}_seconds", text, buckets=SECONDS, registry=self.registry)
            for name, text in (
                ("read", "reading media and rendering a prompt"),
                ("queue", "waiting for the engine"),
                ("first_token", "from submission to the first token"),
                ("answer", "from submission to the end"),
            )
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(_EngineCollector(stats, media))

    def responded(self, status: int) -> None:
        """Counts a response."""
        self._responses.labels(str(status)).inc()

    def read(self, seconds: float) -> None:
        """Counts a question that was read."""
        self._read.observe(seconds)

    def finished(self, done: Done, *, merging: bool | str) -> None:
        """Counts an answer.

        Args:
          done: its end.
          merging: on, off, or the name of its settings.
        """
        self._finished.labels(done.finish_reason).inc()
        name = merging if isinstance(merging, str) else "on" if merging else "off"
        self._merging.labels(name).inc()
        if done.finish_reason in ("stop", "length"):
            self._queue.observe(done.seconds.queue)
            self._first.observe(done.seconds.first_token)
            self._total.observe(done.seconds.total)


class _EngineCollector(Collector):
    """The engine's own counters, read when Prometheus asks."""

    def __init__(self, stats: Callable[[], Stats], media: VisualCache) -> None:
        self._stats, self._media = stats, media

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        stats, media = self._stats(), self._media
        yield GaugeMetricFamily("elva_healthy", "1 while the engine works", float(stats.healthy))
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"elva_{name}", text, float(getattr(stats, name)))
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"elva_{name}", text, float(getattr(stats, name)))
        text = "memory of images and videos that are kept"
        yield GaugeMetricFamily("elva_media_bytes", text, float(media.bytes))
        yield CounterMetricFamily("elva_media_hits", "media that were kept", float(media.hits))
        yield CounterMetricFamily("elva_media_misses", "media read", float(media.misses))
