"""An upgrade from any released version: helm can make it, data stays, and trainings that run are reported."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from kubernetes import client

from job_contract import names
from tests.packaging.chart import CHART, LEAST, NAMESPACE, render
from tests.packaging.freeze import RELEASES, lasting
from tests.packaging.installed import installed
from tests.parts.api_server import ApiServer
from tests.parts.job_controller import JobController
from tests.parts.receiver import Receiver

FROZEN = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(RELEASES.glob("*.yaml"))}

from_every_release = pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN.keys())


def test_this_version_is_written_down() -> None:
    """At a release: python -m tests.packaging.freeze"""
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["version"] in FROZEN


@from_every_release
def test_an_upgrade_changes_nothing_that_the_api_server_lets_nobody_change(frozen: dict[str, Any]) -> None:
    """Helm's upgrade would fail half-way; an object under another name would be deleted, its data with it."""
    now = lasting(render(LEAST))
    assert {name: now.get(name) for name in frozen["objects"]} == frozen["objects"]


@from_every_release
def test_a_training_from_before_an_upgrade_is_reported_after_it(
    frozen: dict[str, Any], amqp_url: str, receiver: Receiver, tmp_path: Path
) -> None:
    manifests = render({**LEAST, "amqp": {**LEAST["amqp"], "queue": f"packaging-{uuid4()}"}})
    name = frozen["job"]["metadata"]["name"]
    with ApiServer(namespace=NAMESPACE) as server, JobController(server) as controller:
        client.BatchV1Api(server.client(admin=True)).create_namespaced_job(NAMESPACE, frozen["job"])
        pod = controller.start_pod(name)
        with installed(manifests, server, amqp_url, receiver.url, tmp_path):
            receiver.wait_for(lambda patches: bool(patches), timeout=30)
            assert controller.pod(pod)["status"]["phase"] == "Running"
            controller.finish(name, 0, frozen["termination_message"])
            receiver.wait_for(lambda patches: len(patches) >= 2, timeout=30)
            assert receiver.statuses("/api/models/42/status") == ["processing", "completed"]
            server.wait_for(lambda: names.FINALIZER not in _finalizers(server.get("jobs", name)), timeout=30)


def _finalizers(job: dict[str, Any] | None) -> list[str]:
    assert job is not None
    return list(job["metadata"].get("finalizers", []))
