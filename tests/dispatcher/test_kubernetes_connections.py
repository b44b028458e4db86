"""Connections to the API server are used again, and nothing of one answer is left for the next."""

import threading

from kubernetes import client

from dispatcher.backends.kubernetes import KubernetesBackend
from dispatcher.backends.reflector import Reflector
from dispatcher.job import JobOptions, Manifest, build_job
from job_contract.request import TrainingRequest
from tests.dispatcher.cluster import TEMPLATE
from tests.dispatcher.support import wait_until
from tests.parts.api_server import ApiServer


def large_job(task: str) -> Manifest:
    """A Job whose answer is far larger than what the client reads at once."""
    request = TrainingRequest(style_id=42, image_paths=["/data/" + "a" * 2000] * 50, task_id=task)
    return build_job(request, TEMPLATE, JobOptions())


def test_a_large_answer_leaves_nothing_on_its_connection(api_server: ApiServer) -> None:
    """A rest that was not read was taken for the head of the next answer: the next create failed."""
    backend = KubernetesBackend(api_server.client(), "default", "lora-trainer")
    for number in range(3):
        job = large_job(f"task-{number}")
        assert backend.create(job)
        backend.patch(job["metadata"]["name"], {"metadata": {"annotations": {"a": "b"}}})
    assert [request.status for request in api_server.requests] == [201, 200] * 3


def test_a_field_newer_than_the_client_reaches_the_api_server(api_server: ApiServer) -> None:
    job = large_job("task-1")
    job["spec"]["fieldOfTomorrow"] = 1
    KubernetesBackend(api_server.client(), "default", "lora-trainer").create(job)
    assert b"fieldOfTomorrow" in api_server.requests[-1].body


def test_a_watch_that_broke_leaves_nothing_on_its_connection(api_server: ApiServer) -> None:
    """The connection goes back to the pool, and the list that follows is asked on it."""
    batch, changes, stop = client.BatchV1Api(api_server.client()), list[str](), threading.Event()
    reflector = Reflector(
        "Job",
        lambda **options: batch.list_namespaced_job("default", **options),
        lambda thing: thing,
        lambda thing: changes.append(thing["metadata"]["name"]),
    )
    thread = threading.Thread(target=reflector.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: api_server.open_watches == 1)
        for number in range(3):
            api_server.end_watches("expire")
            wait_until(lambda: api_server.open_watches == 1)
            KubernetesBackend(batch.api_client, "default", "lora-trainer").create(large_job(f"task-{number}"))
            wait_until(lambda seen=number: len(set(changes)) > seen)  # type: ignore[misc]
    finally:
        stop.set()
        reflector.close()
        thread.join(10)
    assert not thread.is_alive()
