"""The tests' own Job controller brings Jobs and pods to where the real one brings them."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.parts.api_server import ApiServer
from tests.parts.cluster import Cluster, namespace_of_its_own
from tests.parts.control_plane import ControlPlane
from tests.parts.job_controller import JobController
from tests.parts.kube_store import Object
from tests.parts.node_stand_in import NodeStandIn
from tests.parts.plain_api import Answer
from tests.parts.waiting import wait_for
from tests.parts_tests.conformance import normal
from tests.parts_tests.jobs import job

pytestmark = pytest.mark.cluster

Life = Callable[[Cluster, NodeStandIn], None]


def wait_for_condition(cluster: Cluster, kind: str) -> None:
    def has() -> bool:
        status = (cluster.job("a") or {}).get("status", {})
        return any(item["type"] == kind and item["status"] == "True" for item in status.get("conditions", ()))

    wait_for(has, 60, f"the Job is {kind}")


def create(cluster: Cluster, **spec: Any) -> None:
    cluster.batch.create_namespaced_job(cluster.namespace, job("a", **spec))


def waiting_for_a_node(cluster: Cluster, pods: NodeStandIn) -> None:
    create(cluster)
    wait_for(lambda: (cluster.job("a") or {})["status"].get("active"), 30, "the pod is counted")


def running(cluster: Cluster, pods: NodeStandIn) -> None:
    create(cluster)
    pods.start("a")
    wait_for(lambda: (cluster.job("a") or {})["status"].get("ready"), 30, "the pod is counted as ready")


def success(cluster: Cluster, pods: NodeStandIn) -> None:
    create(cluster)
    pods.finish("a", 0, "done")
    wait_for_condition(cluster, "Complete")


def failure_by_policy(cluster: Cluster, pods: NodeStandIn) -> None:
    create(cluster)
    pods.finish("a", 65, "bad data")
    wait_for_condition(cluster, "Failed")


def failure_without_retries(cluster: Cluster, pods: NodeStandIn) -> None:
    create(cluster, backoffLimit=0)
    pods.finish("a", 70, "bug")
    wait_for_condition(cluster, "Failed")


def success_after_a_failure(cluster: Cluster, pods: NodeStandIn) -> None:
    create(cluster)
    pods.finish("a", 70, "bug")
    wait_for(lambda: (cluster.job("a") or {})["status"].get("failed"), 30, "the failure is counted")
    pods.finish("a", 0, "done")
    wait_for_condition(cluster, "Complete")


def success_after_a_disruption(cluster: Cluster, pods: NodeStandIn) -> None:
    create(cluster, backoffLimit=0)
    first = pods.start("a")
    pods.disrupt("a", 75)
    wait_for(lambda: first not in [pod["metadata"]["name"] for pod in pods.pods("a")], 30, "it is gone")
    pods.finish("a", 0, "done")
    wait_for_condition(cluster, "Complete")


def deadline(cluster: Cluster, pods: NodeStandIn) -> None:
    create(cluster, activeDeadlineSeconds=2)
    pods.start("a")
    wait_for_condition(cluster, "Failed")


def deadline_without_a_node(cluster: Cluster, pods: NodeStandIn) -> None:
    create(cluster, activeDeadlineSeconds=2)
    wait_for_condition(cluster, "Failed")


def suspended(cluster: Cluster, pods: NodeStandIn) -> None:
    create(cluster, suspend=True)
    wait_for_condition(cluster, "Suspended")


def released(cluster: Cluster, pods: NodeStandIn) -> None:
    create(cluster, suspend=True)
    wait_for_condition(cluster, "Suspended")
    cluster.batch.patch_namespaced_job("a", cluster.namespace, {"spec": {"suspend": False}})
    pods.finish("a", 0, "done")
    wait_for_condition(cluster, "Complete")


def suspended_while_it_runs(cluster: Cluster, pods: NodeStandIn) -> None:
    create(cluster)
    pods.start("a")
    cluster.batch.patch_namespaced_job("a", cluster.namespace, {"spec": {"suspend": True}})
    wait_for_condition(cluster, "Suspended")
    wait_for(
        lambda: not pods.pods("a") and not (cluster.job("a") or {})["status"].get("terminating"), 30, "over"
    )


def deleted_while_it_runs(cluster: Cluster, pods: NodeStandIn) -> None:
    create(cluster)
    pods.start("a")
    cluster.delete("a")
    # The finalizer holds the Job, and its pod with it.
    wait_for(lambda: "deletionTimestamp" in (cluster.job("a") or {})["metadata"], 30, "it is being deleted")
    cluster.batch.patch_namespaced_job(
        "a", cluster.namespace, [{"op": "remove", "path": "/metadata/finalizers"}]
    )
    wait_for(lambda: cluster.job("a") is None and not pods.pods(), 30, "Job and pod are gone")


def expired(cluster: Cluster, pods: NodeStandIn) -> None:
    create(cluster, ttlSecondsAfterFinished=0)
    pods.finish("a", 0, "done")
    wait_for(lambda: "deletionTimestamp" in (cluster.job("a") or {})["metadata"], 30, "it has expired")
    wait_for(lambda: not pods.pods(), 30, "its pod is gone")


LIVES: list[Life] = [
    waiting_for_a_node,
    running,
    success,
    failure_by_policy,
    failure_without_retries,
    success_after_a_failure,
    success_after_a_disruption,
    deadline,
    deadline_without_a_node,
    suspended,
    released,
    suspended_while_it_runs,
    deleted_while_it_runs,
    expired,
]


@pytest.fixture
def real(control_plane: ControlPlane) -> Iterator[Cluster]:
    with namespace_of_its_own(control_plane.client()) as cluster:
        yield cluster


@pytest.fixture
def ours() -> Iterator[Cluster]:
    with (
        ApiServer(namespace=f"compare-{uuid.uuid4().hex[:8]}") as server,
        JobController(server) as controller,
    ):
        controller.run_jobs()
        yield Cluster(server.client(admin=True), server.namespace)


def phase(pod: Object) -> str:
    return str(pod["status"]["phase"])


def told(cluster: Cluster) -> list[tuple[str, str, str]]:
    events = cluster.core.list_namespaced_event(cluster.namespace).items
    return sorted({(event.involved_object.kind, event.reason, event.type) for event in events})


def outcome(
    life: Life, cluster: Cluster, expected: list[tuple[str, str, str]] | None = None
) -> dict[str, Any]:
    """Live a life; return what is there in the end, and the Events that told of it.

    Kubernetes writes Events a while after what they tell of: those that are expected are waited for.
    The pods come without their spec, to which admission adds much that is of no use without a node.
    """
    with NodeStandIn(cluster.api, cluster.namespace) as pods:
        life(cluster, pods)
        if expected is not None:
            with suppress(TimeoutError):  # the comparison shows what is missing
                wait_for(lambda: told(cluster) == expected, 15, "the Events are written")
        found = {
            "job": cluster.job("a"),
            "pods": [{**pod, "spec": pod["spec"].get("nodeName")} for pod in sorted(pods.pods(), key=phase)],
            "events": told(cluster),
        }
    return dict(normal(Answer(200, "", None, found), cluster.namespace).body)


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.__name__)
def test_a_job_ends_as_it_does_on_kubernetes(life: Life, ours: Cluster, real: Cluster) -> None:
    expected = outcome(life, ours)
    assert outcome(life, real, expected["events"]) == expected
