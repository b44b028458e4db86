"""The cluster of a test: a namespace of its own, in whichever of three the environment names.

`KUBECONFIG` is any cluster; `KUBEBUILDER_ASSETS` are the programs of a control plane that is started for the
tests; without either it is the API server in this process, with the Job controller that belongs to it.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kubernetes import client

from dispatcher.backends.kubernetes import KubernetesBackend
from job_contract import names
from tests.parts.kube_store import Object
from tests.parts.node_stand_in import NodeStandIn
from tests.parts.real_pods import RealPods

Pods = NodeStandIn | RealPods
"""Who runs the pods of a cluster."""


def chosen_cluster() -> str:
    """Say which cluster the tests run on, for people."""
    if os.environ.get("KUBECONFIG"):
        return f"the cluster of KUBECONFIG={os.environ['KUBECONFIG']}"
    if os.environ.get("KUBEBUILDER_ASSETS"):
        return f"a control plane of the programs in KUBEBUILDER_ASSETS={os.environ['KUBEBUILDER_ASSETS']}"
    return "the tests' own API server (KUBECONFIG or KUBEBUILDER_ASSETS name a real one)"


def is_real() -> bool:
    """Whether the tests run on Kubernetes, and not on the API server in this process."""
    return bool(os.environ.get("KUBECONFIG") or os.environ.get("KUBEBUILDER_ASSETS"))


@dataclass(frozen=True)
class Cluster:
    """`api` is a kubernetes.client.ApiClient of an administrator."""

    api: Any
    namespace: str

    @property
    def backend(self) -> KubernetesBackend:
        return KubernetesBackend(self.api, self.namespace, names.APP_NAME)

    @property
    def batch(self) -> Any:
        return client.BatchV1Api(self.api)

    @property
    def core(self) -> Any:
        return client.CoreV1Api(self.api)

    def job(self, name: str) -> Object | None:
        try:
            job = self.batch.read_namespaced_job(name, self.namespace)
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise
        return dict(self.api.sanitize_for_serialization(job))

    def delete(self, name: str) -> None:
        self.batch.delete_namespaced_job(name, self.namespace, propagation_policy="Background")

    def exists(self) -> bool:
        """Whether the namespace is there; it is until everything in it is gone."""
        try:
            self.core.read_namespace(self.namespace)
        except client.ApiException as error:
            if error.status == 404:
                return False
            raise
        return True

    def has_nodes(self) -> bool:
        """Whether a node is there that would run pods."""
        return any(
            condition.type == "Ready" and condition.status == "True"
            for node in self.core.list_node().items
            for condition in node.status.conditions or ()
        )


@contextmanager
def namespace_of_its_own(api: Any, labels: dict[str, str] | None = None) -> Iterator[Cluster]:
    """Make a namespace; afterwards it goes with all that is in it, held Jobs included."""
    cluster = Cluster(api, f"lora-test-{uuid.uuid4().hex[:8]}")
    cluster.core.create_namespace({"metadata": {"name": cluster.namespace, "labels": labels or {}}})
    try:
        yield cluster
    finally:
        jobs = cluster.batch.list_namespaced_job(cluster.namespace).items
        cluster.batch.delete_collection_namespaced_job(cluster.namespace, propagation_policy="Background")
        for job in jobs:
            cluster.backend.patch(job.metadata.name, {"metadata": {"finalizers": None}})
        if cluster.exists():
            cluster.core.delete_namespace(cluster.namespace)
