"""The dispatcher as the chart starts it: its arguments, variables, Job template and Role."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from dispatcher.queues import publish
from tests.packaging.chart import EVERYTHING, NAMESPACE, ROOT, find, job_template, render
from tests.parts.api_server import ApiServer
from tests.parts.job_controller import JobController
from tests.parts.ports import free_port
from tests.parts.receiver import Receiver


def _status(port: int, probe: dict[str, Any]) -> int:
    """What a probe of the Deployment gets; 0 while nothing listens."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}{probe['httpGet']['path']}", timeout=5
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_an_installed_dispatcher_trains_and_reports(
    amqp_url: str, receiver: Receiver, tmp_path: Path
) -> None:
    """A wrong variable, probe, template or Role would be seen in a cluster only."""
    queue = f"packaging-{uuid4()}"
    manifests = render({**EVERYTHING, "amqp": {"queue": queue}})
    [container] = find(manifests, "Deployment", "lora-trainer")["spec"]["template"]["spec"]["containers"]
    template = tmp_path / "job-template.yaml"
    template.write_text(yaml.safe_dump(job_template(manifests)))
    with ApiServer(namespace=NAMESPACE) as server, JobController(server) as controller:
        server.rules = find(manifests, "Role", "lora-trainer")["rules"]
        controller.run_all()
        port = free_port()
        variables = {entry["name"]: entry.get("value", "") for entry in container["env"]} | {
            # What the cluster would put there, and where things are on this machine.
            "NAMESPACE": NAMESPACE,
            "AMQP_URL": amqp_url,
            "BACKEND_URL": receiver.url,
            "BACKEND_TOKEN": "backend-token",
            "JOB_TEMPLATE": str(template),
            "HEALTH_PORT": str(port),
            "KUBECONFIG": str(server.kubeconfig(tmp_path / "kubeconfig")),
            "PATH": os.environ["PATH"],
        }
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dispatcher", *container["args"]],
                cwd=ROOT,
                env=variables,
                stdout=log,
                stderr=log,
            )
        try:
            probes = [container[name] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
            server.wait_for(lambda: [_status(port, probe) for probe in probes] == [200] * 3, timeout=30)
            assert process.poll() is None, (tmp_path / "log").read_text()
            publish(amqp_url, queue, b'{"style_id": 42, "image_paths": ["/a.jpg"]}')
            receiver.wait_for(
                lambda _patches: "completed" in receiver.statuses("/api/models/42/status"), timeout=30
            )
            assert receiver.statuses("/api/models/42/status")[-1] == "completed"
            assert [request for request in server.requests if request.status == 403] == []
            [job] = server.all("jobs")
            assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
        finally:
            process.terminate()
            code = process.wait(20)
        assert code == 0, (tmp_path / "log").read_text()
