"""The dispatcher as the chart starts it takes a message, trains and reports."""

from pathlib import Path
from uuid import uuid4

from kubernetes.client import BatchV1Api

from dispatcher.job import Manifest
from dispatcher.queues import publish
from tests.packaging.chart import EVERYTHING, NAMESPACE, render
from tests.packaging.installed import installed
from tests.parts.api_server import ApiServer
from tests.parts.job_controller import JobController
from tests.parts.receiver import Receiver


def test_an_installed_dispatcher_trains_and_reports(
    amqp_url: str, receiver: Receiver, tmp_path: Path
) -> None:
    """A wrong variable, probe, template or Role would be seen in a cluster only."""
    queue = f"packaging-{uuid4()}"
    manifests = render({**EVERYTHING, "amqp": {"queue": queue}})
    with ApiServer(namespace=NAMESPACE) as server, JobController(server) as controller:
        controller.run_all()
        with installed(manifests, server, amqp_url, receiver.url, tmp_path):
            publish(amqp_url, queue, b'{"style_id": 42, "image_paths": ["/a.jpg"]}')
            # With two replicas a Job enters its queue at its turn; Kueue then lets it go.
            [job] = server.wait_for(lambda: [job for job in server.all("jobs") if queue_of(job) == "gpus"])
            BatchV1Api(server.client(admin=True)).patch_namespaced_job(
                job["metadata"]["name"], NAMESPACE, {"spec": {"suspend": False}}
            )
            receiver.wait_for(
                lambda _patches: "completed" in receiver.statuses("/api/models/42/status"), timeout=30
            )
            assert receiver.statuses("/api/models/42/status")[-1] == "completed"
            assert [request for request in server.requests if request.status == 403] == []
            [job] = server.all("jobs")
            assert queue_of(job) == "gpus"


def queue_of(job: Manifest) -> str | None:
    queue: str | None = job["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")
    return queue
