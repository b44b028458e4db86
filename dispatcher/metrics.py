"""What Prometheus scrapes; every metric is named lora_trainer_*."""

from collections.abc import Callable, Mapping
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_VERDICTS = ("ack", "refuse", "postpone")
_STATUSES = ("processing", "progress", "completed", "failed")
_RESULTS = ("delivered", "refused", "tryagain")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600, 3600)


class Metrics:
    """The dispatcher's own registry; the parts are handed the metrics that they keep."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.messages = Counter(
            "lora_trainer_messages", "Messages by what became of them", ["verdict"], registry=registry
        )
        self.dead_letters = Counter("lora_trainer_dead_letters", "Dead letters written", registry=registry)
        self.queue_messages = Gauge(
            "lora_trainer_queue_messages", "Requests waiting in the queue, as last seen", registry=registry
        )
        self.broker_connected = Gauge(
            "lora_trainer_broker_connected", "1 while RabbitMQ is connected", registry=registry
        )
        self.job_create_seconds = Histogram(
            "lora_trainer_job_create_seconds",
            "From a message's arrival to its Job",
            buckets=_SECONDS,
            registry=registry,
        )
        self.relay_seconds = Histogram(
            "lora_trainer_relay_seconds",
            "From a status falling due to its delivery",
            buckets=_SECONDS,
            registry=registry,
        )
        self.patches = Counter(
            "lora_trainer_patches", "PATCHes by status and result", ["status", "result"], registry=registry
        )
        # From 0 on: Prometheus sees no increase in what begins with 1.
        for verdict in _VERDICTS:
            self.messages.labels(verdict)
        for status, result in product(_STATUSES, _RESULTS):
            self.patches.labels(status, result)

    def observe(
        self,
        phases: Callable[[], Mapping[str, int]],
        silence_seconds: Callable[[], float],
        connected: Callable[[], bool],
    ) -> None:
        """Read these at every scrape."""
        self._registry.register(_JobsByPhase(phases))
        silence = Gauge(
            "lora_trainer_watch_silence_seconds", "Since the API server was heard of", registry=self._registry
        )
        silence.set_function(silence_seconds)
        self.broker_connected.set_function(connected)

    def expose(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _JobsByPhase(Collector):
    def __init__(self, phases: Callable[[], Mapping[str, int]]) -> None:
        self._phases = phases

    def collect(self) -> list[GaugeMetricFamily]:
        family = GaugeMetricFamily("lora_trainer_jobs", "Jobs by phase", labels=["phase"])
        for phase, count in self._phases().items():
            family.add_metric([phase], count)
        return [family]
