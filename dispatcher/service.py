"""The running dispatcher: its parts wired together, started in order and stopped in order."""

import os
import threading
from datetime import timedelta
from urllib.parse import urlsplit

import structlog

from dispatcher.allowed_hosts import AllowedHosts
from dispatcher.backends import Backend
from dispatcher.backends.gpus import visible_gpus
from dispatcher.broker import Broker
from dispatcher.intake import Intake, IntakeOptions, Notices
from dispatcher.job import JobOptions, load_template
from dispatcher.queues import Queues
from dispatcher.relay import Relay, RelayOptions
from dispatcher.settings import DispatcherSettings
from dispatcher.style_lanes import StyleLanes
from dispatcher.webhook import Webhook


def make_backend(settings: DispatcherSettings) -> Backend:
    """Return the backend that JOB_BACKEND names.

    Raises:
        DispatcherError: there is no cluster, or another dispatcher has the local state.
    """
    if settings.job_backend == "kubernetes":
        from dispatcher.backends.kubernetes import KubernetesBackend
        from dispatcher.backends.kubernetes_client import load_client

        api = load_client(connections=settings.workers + 16)
        return KubernetesBackend(api, settings.namespace, settings.instance)
    from dispatcher.backends.local import LocalBackend

    return LocalBackend(
        settings.local_state_dir.expanduser(),
        settings.models_dir.expanduser(),
        list(settings.local_gpus) or visible_gpus(os.environ),
        timedelta(seconds=settings.local_first_retry_seconds),
    )


def make_allowed_hosts(settings: DispatcherSettings) -> AllowedHosts:
    backend_host = urlsplit(settings.backend_url or "").hostname
    return AllowedHosts([*settings.webhook_allowed_hosts, *([backend_host] if backend_host else [])])


class Service:
    """Takes requests from the broker to the backend of Jobs, and their statuses to the webhook."""

    def __init__(self, settings: DispatcherSettings, backend: Backend) -> None:
        allowed_hosts = make_allowed_hosts(settings)
        token, secret = settings.backend_token, settings.webhook_secret
        webhook = Webhook(
            allowed_hosts,
            token.get_secret_value() if token else None,
            secret.get_secret_value() if secret else None,
            settings.webhook_timeout_seconds,
            connections=settings.workers + 8,
        )
        lanes = StyleLanes()
        self._backend = backend
        self._workers = settings.workers
        self._relay = Relay(
            backend,
            webhook,
            lanes,
            RelayOptions(
                backend_url=settings.backend_url,
                progress_seconds=settings.progress_seconds,
                grace=settings.start_grace,
                give_up_after=timedelta(hours=settings.webhook_give_up_hours),
                first_retry_seconds=settings.webhook_first_retry_seconds,
                most_retry_seconds=settings.webhook_most_retry_seconds,
            ),
            finished=lambda: self._broker.resume(),
        )
        intake = Intake(
            backend,
            lanes,
            load_template(settings.job_template),
            job_options(settings),
            allowed_hosts,
            IntakeOptions(settings.backend_url, settings.max_active_jobs),
            self._relay.changed,
        )
        notices = Notices(webhook, settings.webhook_first_retry_seconds, settings.webhook_most_retry_seconds)
        queues = Queues(settings.queue)
        self._broker = Broker(settings.amqp_url.get_secret_value(), queues, intake.handle, notices.send)
        self._log = structlog.get_logger("service")

    def run(self, stop: threading.Event) -> None:
        """Run until stop is set, then let what is under way end."""
        watch = threading.Thread(target=self._backend.run, args=(self._relay.changed, stop), name="backend")
        watch.start()
        workers = self._relay.start(self._workers)
        # Which styles are in training must be known before a request is taken.
        while not self._backend.synced() and not stop.wait(0.05):
            pass
        self._broker.run(stop)
        self._log.info("stopping")
        watch.join()
        self._relay.close()
        for worker in workers:
            worker.join(2)


def job_options(settings: DispatcherSettings) -> JobOptions:
    return JobOptions(
        instance=settings.instance,
        image=settings.trainer_image,
        gpus=settings.gpus_per_job,
        deadline_seconds=settings.job_deadline_seconds,
        ttl_seconds=settings.job_ttl_seconds,
        models_claim=settings.models_claim,
        priority_class=settings.priority_class,
        kueue_queue=settings.kueue_queue,
        environment=settings.trainer_env,
    )
