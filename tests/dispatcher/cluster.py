"""A dispatcher's parts against an API server, wired as service.py wires them but with no broker."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from kubernetes import client

from dispatcher.allowed_hosts import AllowedHosts
from dispatcher.backends.kubernetes import KubernetesBackend
from dispatcher.diagnosis import VERDICT_ANNOTATION
from dispatcher.job import JobOptions, Manifest, build_job, load_template
from dispatcher.metrics import Metrics
from dispatcher.relay import Relay
from dispatcher.relay_memory import RelayOptions
from dispatcher.style_lanes import StyleLanes, hold
from dispatcher.webhook import Webhook
from job_contract.outcome import TrainingResult, encode
from job_contract.request import TrainingRequest
from tests.dispatcher.support import wait_until
from tests.parts.api_server import ApiServer
from tests.parts.job_controller import JobController
from tests.parts.receiver import Patch, Receiver

TELLERS = 4
"""Workers that tell the backend."""
TEMPLATE = load_template(None)
RESULT = encode(
    TrainingResult(model_path="/models/42/lora_weights.safetensors", loss=0.1, epochs=100, seconds=1.0)
).decode()


def new_job(receiver: Receiver, task: str = "task-1", style: int | str = 42, **options: Any) -> Manifest:
    request = TrainingRequest(
        style_id=style, image_paths=["/data/a.jpg"], task_id=task, webhook_url=receiver.status_url(style)
    )
    return build_job(request, TEMPLATE, JobOptions(**options))


def name_of(job: Manifest) -> str:
    return str(job["metadata"]["name"])


def annotations(api_server: ApiServer, name: str) -> dict[str, str]:
    job = api_server.get("jobs", name)
    return dict(job["metadata"].get("annotations") or {}) if job else {}


def batch_api(api_server: ApiServer) -> client.BatchV1Api:
    """An administrator's."""
    return client.BatchV1Api(api_server.client(admin=True))


def finalizers(api_server: ApiServer, name: str) -> list[str]:
    job = api_server.get("jobs", name)
    return list(job["metadata"].get("finalizers") or ()) if job else []


class Watching:
    """A running backend and relay; `changes` are the names that were reported."""

    def __init__(self, backend: KubernetesBackend, relay: Relay, lanes: StyleLanes) -> None:
        self.backend = backend
        self.relay = relay
        self.lanes = lanes
        self.changes: list[str] = []

    def changed(self, name: str) -> None:
        self.changes.append(name)
        self.relay.changed(name)

    def accept(self, job: Manifest, accepted_ns: int) -> None:
        """Create a Job as the intake does: one whose style is taken waits for it."""
        place = self.lanes.enter(job, accepted_ns)
        if place is not None:
            hold(job, place)
        self.backend.create(job)


@contextmanager
def watching(
    api: Any,
    namespace: str,
    *,
    silence_seconds: float = 100.0,
    grace: float = 600.0,
    progress: float = 30.0,
    backend_url: str | None = None,
    give_up: timedelta = timedelta(days=7),
    may_relay: Callable[[], bool] = lambda: True,
    webhook_timeout: float = 5.0,
) -> Iterator[Watching]:
    """Watch and relay with quick retries until the block ends."""
    lanes, stop = StyleLanes(), threading.Event()
    workers: list[threading.Thread] = []
    backend = KubernetesBackend(api, namespace, "lora-trainer", silence_seconds)
    options = RelayOptions(
        tellers=TELLERS,
        backend_url=backend_url,
        progress_seconds=progress,
        grace=timedelta(seconds=grace),
        give_up_after=give_up,
        first_retry_seconds=0.05,
        most_retry_seconds=0.5,
    )
    webhook = Webhook(AllowedHosts(["127.0.0.1"]), "backend-token", timeout_seconds=webhook_timeout)
    relay = Relay(backend, webhook, lanes, options, Metrics(), may_relay=may_relay)
    watch = Watching(backend, relay, lanes)
    thread = threading.Thread(target=backend.run, args=(watch.changed, stop))
    thread.start()
    try:
        wait_until(backend.synced, what="the backend is synced")
        watch.relay.observe_all()
        workers = watch.relay.start()
        yield watch
    finally:
        stop.set()
        watch.relay.close()
        thread.join(20)
        for worker in workers:
            worker.join(10)
        assert not thread.is_alive()


def told(receiver: Receiver, style: int | str = 42) -> list[str | None]:
    """Return the statuses that the backend took of a style, live progress left out."""
    path = f"/api/models/{style}/status"
    seen: set[str] = set()
    statuses: list[str | None] = []
    for patch in receiver.patches:
        identity = patch.headers.get("webhook-id", "")
        if (
            patch.path == path
            and patch.answered == 200
            and identity not in seen
            and "_epoch_" not in identity
        ):
            seen.add(identity)
            statuses.append(patch.status)
    return statuses


def wait_told(receiver: Receiver, *statuses: str, style: int | str = 42, timeout: float = 15) -> list[Patch]:
    """Wait until exactly these statuses were taken."""
    wait_until(
        lambda: told(receiver, style) == list(statuses),
        timeout,
        f"{statuses} told of {style}, not {told(receiver, style)}",
    )
    return receiver.patches


def complete_new_job(
    controller: JobController, receiver: Receiver, backend: KubernetesBackend, task: str
) -> str:
    """Create a Job that runs to its end; returns its name."""
    job = new_job(receiver, task, style=task)
    backend.create(job)
    controller.finish(name_of(job), 0, RESULT)
    return name_of(job)


# Trainings that do not start


def stick(
    controller: JobController,
    job: str,
    reason: str = "ImagePullBackOff",
    message: str = 'Back-off pulling image "trainer:1"',
) -> str:
    """Make a Job's pod whose container waits for what the reason says; returns the pod's name."""
    pod = controller.create_pod(job)
    controller.wait_with(pod, reason, message)
    return pod


def end_at_deadline(controller: JobController, job: str) -> None:
    """End a Job that has been given up, as the Job controller does: its deadline is one second."""
    wait_until(lambda: controller.job(job)["spec"]["activeDeadlineSeconds"] == 1, 20, f"{job} is given up")
    controller.exceed_deadline(job)


class Scene:
    """Trainings on the tests' own API server, watched by a dispatcher's parts; a Job goes by its name."""

    def __init__(self, server: ApiServer, controller: JobController, receiver: Receiver) -> None:
        self.server = server
        self.controller = controller
        self.receiver = receiver
        self.watch: Watching

    @contextmanager
    def watched(self, grace: float) -> Iterator[None]:
        with watching(self.server.client(), self.server.namespace, grace=grace) as self.watch:
            yield

    def create(self, style: int | str = 42) -> str:
        job = new_job(self.receiver, f"task-{style}", style)
        self.watch.backend.create(job)
        return name_of(job)

    def forbid_pods(self, job: str, why: str) -> None:
        """No pod can be made of a Job, which only an Event tells."""
        self.controller.sync(job)
        self.controller.record(self.controller.job(job), "FailedCreate", why)

    def create_pod_on_a_node(self, job: str) -> str:
        pod = self.controller.create_pod(job)
        self.controller.schedule(pod)
        return pod

    def complete(self, job: str, style: int = 42) -> None:
        """Let a training run to its end, of which the backend is told."""
        self.controller.finish(job, 0, RESULT)
        wait_told(self.receiver, "processing", "completed", style=style)

    def is_given_up(self, job: str) -> bool:
        return VERDICT_ANNOTATION in annotations(self.server, job)

    def wait_given_up(self, *jobs: str) -> None:
        wait_until(lambda: all(map(self.is_given_up, jobs)), what=f"{jobs} are given up")

    def wait_failed(self, job: str) -> dict[str, Any]:
        """Wait until a training of style 42 is given up and the backend told; returns what it is told."""
        end_at_deadline(self.controller, job)
        failed: dict[str, Any] = wait_told(self.receiver, "failed")[-1].json
        return failed
