"""Runs the dispatcher as the chart starts it: its arguments, variables, Job template and Role."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.packaging.chart import NAMESPACE, ROOT, Manifest, find, job_template
from tests.parts.api_server import ApiServer
from tests.parts.ports import free_port


@contextmanager
def installed(
    manifests: list[Manifest], server: ApiServer, amqp_url: str, backend_url: str, folder: Path
) -> Iterator[None]:
    """Have a ready dispatcher; it must end well when it is told to, with what it said in folder/log."""
    server.rules = find(manifests, "Role", "lora-trainer")["rules"]
    [container] = find(manifests, "Deployment", "lora-trainer")["spec"]["template"]["spec"]["containers"]
    template = folder / "job-template.yaml"
    template.write_text(yaml.safe_dump(job_template(manifests)))
    port = free_port()
    variables = {entry["name"]: entry.get("value", "") for entry in container["env"]} | {
        # What the cluster would put there, and where things are on this machine.
        "NAMESPACE": NAMESPACE,
        "AMQP_URL": amqp_url,
        "BACKEND_URL": backend_url,
        "BACKEND_TOKEN": "backend-token",
        "JOB_TEMPLATE": str(template),
        "HEALTH_PORT": str(port),
        "KUBECONFIG": str(server.kubeconfig(folder / "kubeconfig")),
        "PATH": os.environ["PATH"],
    }
    with (folder / "log").open("wb") as log:
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
        assert process.poll() is None, (folder / "log").read_text()
        yield
    finally:
        process.terminate()
        code = process.wait(20)
    assert code == 0, (folder / "log").read_text()


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
