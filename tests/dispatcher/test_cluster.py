"""What needs no fault to be shown: the same tests on the in-process server and on any cluster.

`KUBECONFIG=... pytest -m cluster` runs them in a namespace of their own, which is gone afterwards. They
need an API server and its controllers, but no node: no pod has to run.
"""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from kubernetes import client, config

from dispatcher.backends.kubernetes import KubernetesBackend
from dispatcher.errors import JobConflictError, JobRefusedError, StaleJobError
from dispatcher.job import Manifest
from dispatcher.style_lanes import hold
from job_contract import names
from tests.dispatcher.cluster import new_job, told, wait_told, watching
from tests.dispatcher.support import wait_until
from tests.parts.api_server import ApiServer
from tests.parts.receiver import Receiver

pytestmark = pytest.mark.cluster


@dataclass(frozen=True)
class Cluster:
    api: Any
    namespace: str

    @property
    def backend(self) -> KubernetesBackend:
        return KubernetesBackend(self.api, self.namespace, names.APP_NAME)

    def job(self, name: str) -> Manifest | None:
        try:
            job = client.BatchV1Api(self.api).read_namespaced_job(name, self.namespace)
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise
        return dict(self.api.sanitize_for_serialization(job))

    def delete(self, name: str) -> None:
        batch = client.BatchV1Api(self.api)
        batch.delete_namespaced_job(name, self.namespace, propagation_policy="Background")


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster of KUBECONFIG, else the server in this process."""
    if not os.environ.get("KUBECONFIG"):
        server: ApiServer = request.getfixturevalue("api_server")
        yield Cluster(server.client(admin=True), server.namespace)
        return
    api = config.new_client_from_config()
    core, namespace = client.CoreV1Api(api), f"lora-test-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": namespace}})
    yield Cluster(api, namespace)
    for job in client.BatchV1Api(api).list_namespaced_job(namespace).items:
        KubernetesBackend(api, namespace, names.APP_NAME).patch(
            job.metadata.name, {"metadata": {"finalizers": None}}
        )
    core.delete_namespace(namespace)


def name_of(job: Manifest) -> str:
    return str(job["metadata"]["name"])


def test_the_job_is_taken_as_it_is_and_only_once(cluster: Cluster, receiver: Receiver) -> None:
    job = new_job(receiver)
    assert cluster.backend.create(job) is True
    assert cluster.backend.create(job) is False
    stored = cluster.job(name_of(job))
    assert stored
    assert stored["metadata"]["finalizers"] == [names.FINALIZER]
    assert stored["spec"]["backoffLimit"] == 3
    assert stored["spec"]["podFailurePolicy"] == job["spec"]["podFailurePolicy"]


def test_a_taken_name_with_another_request_is_a_conflict(cluster: Cluster, receiver: Receiver) -> None:
    job, other = new_job(receiver), new_job(receiver)
    annotations = other["spec"]["template"]["metadata"]["annotations"]
    annotations[names.REQUEST_ANNOTATION] = annotations[names.REQUEST_ANNOTATION].replace("a.jpg", "b.jpg")
    cluster.backend.create(job)
    with pytest.raises(JobConflictError):
        cluster.backend.create(other)


def test_an_invalid_job_is_refused(cluster: Cluster, receiver: Receiver) -> None:
    job = new_job(receiver)
    job["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    with pytest.raises(JobRefusedError):
        cluster.backend.create(job)


def test_finalizers_are_changed_only_on_the_version_that_was_read(
    cluster: Cluster, receiver: Receiver
) -> None:
    job = new_job(receiver)
    cluster.backend.create(job)
    version = (cluster.job(name_of(job)) or {})["metadata"]["resourceVersion"]
    cluster.backend.patch(name_of(job), {"metadata": {"annotations": {"a": "1"}}})
    with pytest.raises(StaleJobError):
        cluster.backend.patch(name_of(job), {"metadata": {"finalizers": None}}, version)


def test_a_deleted_job_is_told_and_goes(cluster: Cluster, receiver: Receiver) -> None:
    job = new_job(receiver)
    with watching(cluster.api, cluster.namespace) as watch:
        watch.backend.create(job)
        wait_until(lambda: watch.backend.snapshot(name_of(job)))
        cluster.delete(name_of(job))
        wait_told(receiver, "failed", timeout=30)
        wait_until(lambda: cluster.job(name_of(job)) is None, 30)
    assert receiver.patches[-1].json["failure_code"] == "JOB_DELETED"


def test_a_job_deleted_while_nobody_watches_is_told_afterwards(cluster: Cluster, receiver: Receiver) -> None:
    job = new_job(receiver)
    cluster.backend.create(job)
    cluster.delete(name_of(job))
    with watching(cluster.api, cluster.namespace):
        wait_told(receiver, "failed", timeout=30)
        wait_until(lambda: cluster.job(name_of(job)) is None, 30)


def test_the_second_job_of_a_style_is_released_when_the_first_is_gone(
    cluster: Cluster, receiver: Receiver
) -> None:
    first, second = new_job(receiver, "first"), new_job(receiver, "second")
    with watching(cluster.api, cluster.namespace) as watch:
        for accepted, job in enumerate((first, second), start=1):
            place = watch.lanes.enter(job, accepted)
            if place is not None:
                hold(job, place)
            watch.backend.create(job)
        wait_until(lambda: watch.backend.snapshot(name_of(second)))
        assert (cluster.job(name_of(second)) or {})["spec"]["suspend"] is True
        cluster.delete(name_of(first))
        wait_until(lambda: (cluster.job(name_of(second)) or {})["spec"].get("suspend") is False, 30)
    assert told(receiver) == ["failed"]
