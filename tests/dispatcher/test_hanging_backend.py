"""A backend that takes a PATCH and says nothing holds up what it is told, and nothing else."""

from collections.abc import Iterator

import pytest

from dispatcher.diagnosis import VERDICT_ANNOTATION
from dispatcher.style_lanes import hold
from tests.dispatcher.cluster import (
    TELLERS,
    Watching,
    annotations,
    batch_api,
    name_of,
    new_job,
    told,
    watching,
)
from tests.dispatcher.support import wait_until
from tests.parts.api_server import ApiServer
from tests.parts.job_controller import JobController
from tests.parts.receiver import Answer, Receiver

TRAININGS = range(1, TELLERS + 3)


@pytest.fixture
def hanging(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> Iterator[tuple[Watching, list[str]]]:
    """More trainings than workers that tell, all of which wait for the backend; the names of their Jobs."""
    receiver.answer = lambda _patch: Answer(hang=True)
    with watching(api_server.client(), api_server.namespace, webhook_timeout=60) as watch:
        try:
            jobs = [new_job(receiver, f"task-{style}", style) for style in TRAININGS]
            for job in jobs:
                watch.backend.create(job)
                controller.start_pod(name_of(job))
            wait_until(lambda: len(receiver.patches) == TELLERS, what="all that tell are waiting")
            yield watch, [name_of(job) for job in jobs]
        finally:
            receiver.answer = None
            receiver.release()


def test_a_training_starts_while_every_status_hangs(
    hanging: tuple[Watching, list[str]], api_server: ApiServer, receiver: Receiver
) -> None:
    """All workers were waiting for the backend: with two dispatchers each Job waits to be released."""
    watch, _ = hanging
    job = new_job(receiver, "new", 99)
    hold(job, 1)
    watch.backend.create(job)
    api_server.wait_for(lambda: not (api_server.get("jobs", name_of(job)) or {})["spec"]["suspend"])
    assert len(receiver.patches) == TELLERS


def test_a_training_is_cancelled_while_every_status_hangs(
    hanging: tuple[Watching, list[str]], api_server: ApiServer, receiver: Receiver
) -> None:
    """One whose own status was due for long too: its pod would keep its GPU."""
    _, names = hanging
    waiting = {patch.json["style_id"] for patch in receiver.patches}
    name = next(name for style, name in zip(TRAININGS, names, strict=True) if style not in waiting)
    batch_api(api_server).delete_namespaced_job(name, api_server.namespace, propagation_policy="Background")
    wait_until(lambda: VERDICT_ANNOTATION in annotations(api_server, name), what="it is given up")
    [pod] = [pod for pod in api_server.all("pods") if pod["metadata"]["labels"]["job-name"] == name]
    assert "deletionTimestamp" in pod["metadata"]
    assert len(receiver.patches) == TELLERS


def test_all_that_hung_is_told_once_the_backend_answers(
    hanging: tuple[Watching, list[str]], receiver: Receiver
) -> None:
    receiver.answer = None
    receiver.release()
    wait_until(lambda: all(told(receiver, style) == ["processing"] for style in TRAININGS))
