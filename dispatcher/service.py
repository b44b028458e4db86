"""The running dispatcher: its parts wired together, started in order and stopped in order."""

import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import structlog

from dispatcher.allowed_hosts import AllowedHosts
from dispatcher.backends import Backend
from dispatcher.backends.gpus import visible_gpus
from dispatcher.broker import Broker, Work
from dispatcher.errors import DispatcherError
from dispatcher.health import HealthServer
from dispatcher.intake import Intake, IntakeOptions
from dispatcher.job import JobOptions, load_template
from dispatcher.metrics import Metrics
from dispatcher.notices import Notices
from dispatcher.queues import Queues
from dispatcher.relay import Relay
from dispatcher.relay_memory import RelayOptions
from dispatcher.settings import DispatcherSettings
from dispatcher.style_lanes import StyleLanes
from dispatcher.webhook import Webhook
from job_contract.outcome import ExitCode

_STALE_SECONDS: Final = 300.0
"""A watch that is silent for so long does not come back by itself."""
_STOP_SECONDS: Final = 6.0
"""For so long a stop waits for what is under way; what has not ended then, the next process does again."""


class LeaseHold(Protocol):
    """What a Lease is to the service; one machine has none."""

    def is_held(self, for_seconds: float = 0.0) -> bool: ...

    def run(self, stop: threading.Event) -> None: ...


MakeLease = Callable[[Callable[[], None], Callable[[], None]], LeaseHold]
"""Takes what to call before a hold counts, and what once it does."""


def make_backend(settings: DispatcherSettings) -> tuple[Backend, MakeLease | None]:
    """Return the backend that JOB_BACKEND names, and how to make the Lease that LEASE_NAME names, if any.

    Raises:
        DispatcherError: there is no cluster, or another dispatcher has the local state.
    """
    if settings.job_backend == "kubernetes":
        from dispatcher.backends.kubernetes import KubernetesBackend
        from dispatcher.backends.kubernetes_client import load_client
        from dispatcher.backends.lease import Lease
        from dispatcher.backends.lease_identity import lease_identity

        api = load_client(connections=settings.workers + 16)
        backend = KubernetesBackend(api, settings.namespace, settings.instance)
        if not settings.lease_name:
            return backend, None
        # Renewals must leave more time than one PATCH may take, or nobody would ever relay.
        return backend, partial(
            Lease,
            api,
            settings.namespace,
            settings.lease_name,
            lease_identity(Path(tempfile.gettempdir()), settings.lease_name),
            duration_seconds=math.ceil(settings.webhook_timeout_seconds) + 25,
        )
    from dispatcher.backends.local import LocalBackend

    local = LocalBackend(
        settings.local_state_dir.expanduser(),
        settings.models_dir.expanduser(),
        list(settings.local_gpus) or visible_gpus(os.environ),
        timedelta(seconds=settings.local_first_retry_seconds),
    )
    return local, None


def open_backend(settings: DispatcherSettings) -> Backend:
    """Return the backend for a command that looks on beside a running dispatcher."""
    if settings.job_backend == "kubernetes":
        return make_backend(settings)[0]
    from dispatcher.backends.local import LocalBackend

    return LocalBackend(
        settings.local_state_dir.expanduser(), settings.models_dir.expanduser(), ["cpu"], owner=False
    )


def make_allowed_hosts(settings: DispatcherSettings) -> AllowedHosts:
    backend_host = urlsplit(settings.backend_url or "").hostname
    return AllowedHosts([*settings.webhook_allowed_hosts, *([backend_host] if backend_host else [])])


def make_webhook(settings: DispatcherSettings, allowed_hosts: AllowedHosts) -> Webhook:
    token, secret = settings.backend_token, settings.webhook_secret
    return Webhook(
        allowed_hosts,
        token.get_secret_value() if token else None,
        secret.get_secret_value() if secret else None,
        settings.webhook_timeout_seconds,
        connections=settings.workers + 8,
        ca_bundle=settings.requests_ca_bundle,
    )


class Service:
    """Takes requests from the broker to the backend of Jobs, and their statuses to the webhook."""

    def __init__(
        self, settings: DispatcherSettings, backend: Backend, make_lease: MakeLease | None = None
    ) -> None:
        allowed_hosts = make_allowed_hosts(settings)
        webhook = make_webhook(settings, allowed_hosts)
        lanes, metrics = StyleLanes(shared=make_lease is not None), Metrics()
        self._backend = backend
        # As long as one PATCH may take, the lease must still hold.
        self._patch_seconds = settings.webhook_timeout_seconds + 5
        self._relay = Relay(
            backend,
            webhook,
            lanes,
            RelayOptions(
                tellers=settings.workers,
                backend_url=settings.backend_url,
                progress_seconds=settings.progress_seconds,
                grace=settings.start_grace,
                give_up_after=timedelta(hours=settings.webhook_give_up_hours),
                first_retry_seconds=settings.webhook_first_retry_seconds,
                most_retry_seconds=settings.webhook_most_retry_seconds,
            ),
            metrics,
            finished=lambda: self._broker.resume(),
            may_relay=self._may_relay,
        )
        self._lease = make_lease(self._relay.observe_now, self._look_at_all) if make_lease else None
        intake = Intake(
            backend,
            lanes,
            load_template(settings.job_template),
            job_options(settings),
            allowed_hosts,
            IntakeOptions(settings.backend_url, settings.max_active_jobs),
            self._relay.changed,
            metrics,
        )
        notices = Notices(webhook, settings.webhook_first_retry_seconds, settings.webhook_most_retry_seconds)
        queues = Queues(settings.queue)
        self._broker = Broker(
            settings.amqp_url.get_secret_value(),
            queues,
            Work(intake.handle, notices.send, metrics.queue_messages.set, metrics.dead_letters.inc),
        )
        metrics.observe(self._relay.phases, backend.silent_for, lambda: self._broker.connected)
        self._metrics = metrics
        self._health_port = settings.health_port
        self._log = structlog.get_logger("service")

    def run(self, stop: threading.Event) -> ExitCode:
        """Run until stop is set, then let what is under way end, as far as that takes a few seconds.

        Returns UNAVAILABLE when it was not asked to stop, but takes no more requests.

        Raises:
            DispatcherError: the health port is taken.
        """
        threads: list[threading.Thread] = []
        health = self._serve_health(threads)
        watch = self._start("backend", self._backend.run, self._relay.changed, stop)
        threads.append(watch)
        lease_stop = threading.Event()
        if self._lease:
            threads.append(self._start("lease", self._lease.run, lease_stop))
        # Which styles are in training must be known before a request is taken or a Job released.
        while not self._backend.synced() and not stop.wait(0.05):
            pass
        self._relay.observe_all()
        workers = self._relay.start()
        consumer = self._start("broker", self._broker.run, stop)
        threads += [*workers, consumer]
        while consumer.is_alive() and not stop.wait(0.5):
            pass  # a signal that the kernel gave to another thread is handled once this one wakes
        code = ExitCode.OK if stop.is_set() else ExitCode.UNAVAILABLE
        stop.set()
        self._log.info("stopping")
        deadline = time.monotonic() + _STOP_SECONDS
        self._broker.wake()
        self._relay.close()
        _join(workers, deadline - _STOP_SECONDS / 2)
        if not any(worker.is_alive() for worker in workers):
            lease_stop.set()  # else it runs out by itself, once what is being told has been
        _join(threads, deadline)
        watch.join()  # a backend of child processes takes the time that they need
        if health:
            health.close()
        return code

    def _start(self, name: str, run: Callable[..., None], *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=run, args=arguments, name=name, daemon=True)
        thread.start()
        return thread

    def _may_relay(self) -> bool:
        return self._lease is None or self._lease.is_held(self._patch_seconds)

    def _look_at_all(self) -> None:
        for name in self._backend.names():
            self._relay.changed(name)

    def _serve_health(self, threads: list[threading.Thread]) -> HealthServer | None:
        if not self._health_port:
            return None
        try:
            return HealthServer(
                self._health_port,
                alive=lambda: (
                    self._backend.silent_for() < _STALE_SECONDS and all(t.is_alive() for t in threads)
                ),
                ready=lambda: self._backend.synced() and self._broker.connected,
                metrics=self._metrics.expose,
            )
        except OSError as error:
            raise DispatcherError(f"HEALTH_PORT {self._health_port} cannot be used: {error}") from error


def _join(threads: Iterable[threading.Thread], deadline: float) -> None:
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def job_options(settings: DispatcherSettings) -> JobOptions:
    return JobOptions(
        instance=settings.instance,
        image=settings.trainer_image,
        gpus=settings.gpus_per_job,
        deadline_seconds=settings.job_deadline_seconds,
        ttl_seconds=settings.job_ttl_seconds,
        models_claim=settings.models_claim,
        priority_class=settings.priority_class,
        kueue_queue=settings.kueue_queue if settings.job_backend == "kubernetes" else "",
        environment=settings.trainer_env,
    )
