"""The chart as a release that Helm v4 made in a cluster, and its dispatcher as a process of this machine."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import helm_python
from kubernetes import client

from dispatcher.queues import publish
from job_contract import names
from tests.packaging.chart import CHART, Manifest
from tests.packaging.local_container import LocalContainer
from tests.parts.cluster import Cluster
from tests.parts.node_stand_in import NodeStandIn
from tests.parts.receiver import Receiver
from tests.parts.waiting import wait_for

RELEASE: Final = "lora-trainer"


class Install:
    """A release in a namespace, and its dispatcher as a process here."""

    def __init__(
        self, cluster: Cluster, kubeconfig: Path | None, amqp_url: str, receiver: Receiver, folder: Path
    ) -> None:
        self.cluster = cluster
        self.queue = f"install-{uuid4()}"
        self._folder = folder
        self._log = folder / "dispatcher.log"
        self._helm = helm_python.Config(kubeconfig_path=kubeconfig, namespace=cluster.namespace)
        self._values = {
            "amqp": {"existingSecret": "broker"},
            "backend": {"url": receiver.url, "token": receiver.token},
        }
        secret = {"metadata": {"name": "broker"}, "stringData": {"amqp-url": amqp_url}}
        cluster.core.create_namespaced_secret(cluster.namespace, secret)
        self._helm.install(CHART, RELEASE, self._values, namespace=cluster.namespace, timeout=60)

    def upgrade(self, values: dict[str, Any]) -> None:
        merged = {**self._values, **values}
        self._helm.upgrade(CHART, RELEASE, merged, namespace=self.cluster.namespace, timeout=60)

    def uninstall(self, pods: NodeStandIn) -> None:
        """Uninstall; the last Job, for which Helm waits, runs here."""
        failures: list[Exception] = []

        def helm_uninstall() -> None:
            try:
                self._helm.uninstall(RELEASE, timeout=120)
            except helm_python.HelmError as error:
                failures.append(error)

        thread = threading.Thread(target=helm_uninstall)
        thread.start()
        hook = f"{RELEASE}-release-jobs"
        pods.start(hook)
        result = self.container(self.spec(self.cluster.job(hook))).run()
        pods.finish(hook, result.returncode)
        thread.join(150)
        assert not thread.is_alive()
        assert failures == []
        assert result.returncode == 0, result.stdout

    def deployment(self) -> Manifest:
        deployment = client.AppsV1Api(self.cluster.api).read_namespaced_deployment(
            RELEASE, self.cluster.namespace
        )
        return dict(self.cluster.api.sanitize_for_serialization(deployment))

    @staticmethod
    def spec(workload: Manifest | None) -> Manifest:
        assert workload is not None
        return dict(workload["spec"]["template"]["spec"])

    def container(self, pod: Manifest) -> LocalContainer:
        # Others use broker and machine too.
        overrides = {"QUEUE": self.queue, "HEALTH_PORT": "0", "PROGRESS_SECONDS": "1"}
        return LocalContainer(self.cluster, pod, self._folder, overrides)

    @contextmanager
    def dispatcher(self) -> Iterator[None]:
        """Run the Deployment's container until the block ends; nothing it asked for was forbidden."""
        with self._log.open("ab") as log:
            process = self.container(self.spec(self.deployment())).start(log)
        try:
            yield
            assert process.poll() is None, self._log.read_text()
        finally:
            process.terminate()
            process.wait(20)
        refusals = [line for line in self.log_lines() if "forbidden" in line.lower() or '"403' in line]
        assert [line for line in refusals if "exceeded quota" not in line] == []

    def log_lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def send(self, amqp_url: str, style: int) -> None:
        body = f'{{"style_id": {style}, "image_paths": ["/a.jpg"], "task_id": "{uuid4()}"}}'
        publish(amqp_url, self.queue, body.encode())

    def job_of(self, style: int) -> str:
        """Return the name of a style's Job once that is there."""
        selector = f"{names.LABEL_STYLE_ID}={style}"

        def created() -> str | None:
            jobs = self.cluster.batch.list_namespaced_job(self.cluster.namespace, label_selector=selector)
            return str(jobs.items[0].metadata.name) if jobs.items else None

        return wait_for(created, 60, f"the Job of style {style}")
