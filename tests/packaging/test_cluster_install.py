"""The chart on a real API server: admission takes every object, RBAC lets the dispatcher do its work.

On the cluster of KUBECONFIG, or on a control plane of KUBEBUILDER_ASSETS; the tests' own API server knows
neither Helm's objects nor Pod Security. Pods are run by a stand-in; what the dispatcher's image would run is
a process of this machine with the token of the chart's ServiceAccount.
"""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from dispatcher.backends.kubernetes_access import missing_permissions
from dispatcher.job import JobOptions, build_job
from job_contract import names
from job_contract.progress import Progress, format_progress
from job_contract.request import TrainingRequest
from tests.dispatcher.cluster import RESULT, wait_told
from tests.packaging.chart import EVERYTHING, LEAST, job_template, render
from tests.packaging.helm_release import RELEASE, Install
from tests.parts.cluster import Cluster
from tests.parts.control_plane import ControlPlane
from tests.parts.node_stand_in import NodeStandIn
from tests.parts.plain_api import Asker
from tests.parts.receiver import Receiver
from tests.parts.waiting import wait_for

pytestmark = pytest.mark.cluster

RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
SPREAD: dict[str, Any] = copy.deepcopy(EVERYTHING)
# Without a selector it spreads nothing, of which the API server warns.
SPREAD["dispatcher"]["topologySpreadConstraints"][0]["labelSelector"] = {"matchLabels": {"team": "ml"}}
NOT_SERVED = ("ServiceMonitor", "PodMonitor", "PrometheusRule")
"""Kinds that come with the Prometheus operator."""


@pytest.fixture
def admin_kubeconfig(request: pytest.FixtureRequest) -> Path | None:
    """Helm's way to the cluster, None for KUBECONFIG; skips where there is no real one."""
    if os.environ.get("KUBECONFIG"):
        return None
    plane: ControlPlane = request.getfixturevalue("control_plane")
    return plane.kubeconfig


@pytest.fixture
def restricted(admin_kubeconfig: Path | None, cluster: Cluster) -> Cluster:
    """A namespace that takes only pods of the restricted Pod Security standard."""
    cluster.core.patch_namespace(cluster.namespace, {"metadata": {"labels": RESTRICTED}})
    return cluster


@pytest.fixture
def pods(restricted: Cluster) -> Iterator[NodeStandIn]:
    if restricted.has_nodes():
        pytest.skip("the cluster has nodes: they would run the chart's images, which are not there")
    with NodeStandIn(restricted.api, restricted.namespace) as stand_in:
        yield stand_in


@pytest.fixture
def install(
    restricted: Cluster, admin_kubeconfig: Path | None, amqp_url: str, receiver: Receiver, tmp_path: Path
) -> Install:
    return Install(restricted, admin_kubeconfig, amqp_url, receiver, tmp_path)


def held(cluster: Cluster, name: str) -> bool:
    job = cluster.job(name)
    return job is not None and names.FINALIZER in job["metadata"].get("finalizers", ())


@pytest.mark.parametrize("values", [LEAST, SPREAD], ids=["least", "everything"])
def test_admission_takes_every_object_without_a_warning(restricted: Cluster, values: Any) -> None:
    """A wrong field is dropped with a warning, and a pod that is not restricted warns or is refused."""
    manifests = [item for item in render(values) if item["kind"] not in NOT_SERVED]
    request = TrainingRequest(style_id=1, image_paths=["/a.jpg"], task_id="t")
    job = build_job(request, job_template(manifests), JobOptions())
    ask = Asker(restricted.api, restricted.namespace)
    # A pod is refused while its ServiceAccount is not there.
    for manifest in sorted([*manifests, job], key=lambda item: item["kind"] != "ServiceAccount"):
        if "namespace" in manifest["metadata"]:
            manifest["metadata"]["namespace"] = restricted.namespace
        answer = ask.create_object(manifest)
        what = f"{manifest['kind']} {manifest['metadata']['name']}"
        assert (answer.status, answer.warning) == (201, None), f"{what}: {answer.body}"


def test_the_pods_of_the_deployment_are_admitted(install: Install, pods: NodeStandIn) -> None:
    dispatchers = wait_for(
        lambda: [pod for pod in pods.pods() if pod["metadata"]["name"].startswith(RELEASE)],
        30,
        "the Deployment's pod",
    )
    assert len(dispatchers) == 1


def test_a_message_and_a_rerun_by_hand_train_under_the_charts_role(
    install: Install, pods: NodeStandIn, amqp_url: str, receiver: Receiver
) -> None:
    cluster = install.cluster
    check = install.container(install.spec(install.deployment())).run("check")
    assert check.returncode == 0, check.stdout
    with install.dispatcher():
        install.send(amqp_url, 42)
        job = install.job_of(42)
        pod = pods.start(job)
        pods.write_log(pod, format_progress(Progress(10, 100, 90), "loss 0.1"))
        receiver.wait_for(
            lambda patches: any("progress" in (patch.json or {}) for patch in patches), timeout=60
        )
        pods.finish(job, 0, RESULT)
        wait_told(receiver, "processing", "completed", style=42, timeout=60)
        wait_for(lambda: not held(cluster, job), 30, "the Job is let go")

        by_hand = rerun(cluster, 7)
        wait_for(lambda: held(cluster, by_hand), 30, "the Job is adopted")
        pods.start(by_hand)
        pods.finish(by_hand, 0, RESULT)
        wait_told(receiver, "processing", "completed", style=7, timeout=60)
        wait_for(lambda: not held(cluster, by_hand), 30, "the Job is let go")
        events = cluster.core.list_namespaced_event(cluster.namespace).items
        assert {"lora-trainer-dispatcher"} <= {event.source.component for event in events if event.source}


def rerun(cluster: Cluster, style: int) -> str:
    """Do what `kubectl create job by-hand --from=cronjob/lora-trainer-rerun` and a STYLE_ID do."""
    cronjob = cluster.batch.read_namespaced_cron_job(f"{RELEASE}-rerun", cluster.namespace)
    manifest = cluster.api.sanitize_for_serialization(cronjob)
    template = manifest["spec"]["jobTemplate"]
    template["spec"]["template"]["spec"]["containers"][0]["env"].append(
        {"name": "STYLE_ID", "value": str(style)}
    )
    owner = {"apiVersion": "batch/v1", "kind": "CronJob", "name": f"{RELEASE}-rerun", "controller": True}
    metadata = {
        **template.get("metadata", {}),
        "name": "by-hand",
        "annotations": {"cronjob.kubernetes.io/instantiate": "manual"},
        "ownerReferences": [{**owner, "uid": manifest["metadata"]["uid"]}],
    }
    cluster.batch.create_namespaced_job(cluster.namespace, {"metadata": metadata, "spec": template["spec"]})
    return "by-hand"


def test_a_full_quota_lets_the_next_message_wait(
    install: Install, pods: NodeStandIn, amqp_url: str, receiver: Receiver
) -> None:
    cluster = install.cluster
    quota = {"metadata": {"name": "trainings"}, "spec": {"hard": {"count/jobs.batch": "1"}}}
    cluster.core.create_namespaced_resource_quota(cluster.namespace, quota)

    def in_force() -> bool:
        read = cluster.core.read_namespaced_resource_quota("trainings", cluster.namespace)
        return bool(read.status.hard)

    wait_for(in_force, 30, "the quota is in force")
    with install.dispatcher():
        install.send(amqp_url, 1)
        first = install.job_of(1)
        install.send(amqp_url, 2)
        wait_for(lambda: any("exceeded quota" in line for line in install.log_lines()), 30, "it is refused")
        cluster.delete(first)
        assert install.job_of(2) != first


def test_an_upgrade_keeps_the_training_that_runs(
    install: Install, pods: NodeStandIn, amqp_url: str, receiver: Receiver
) -> None:
    cluster = install.cluster
    with install.dispatcher():
        install.send(amqp_url, 42)
        job = install.job_of(42)
        pod = pods.start(job)
        wait_told(receiver, "processing", style=42, timeout=60)
    before = cluster.job(job) or {}
    install.upgrade({"dispatcher": {"maxActiveJobs": 5}})
    with install.dispatcher():
        assert (cluster.job(job) or {})["metadata"]["uid"] == before["metadata"]["uid"]
        assert [item["metadata"]["name"] for item in pods.pods(job)] == [pod]
        pods.finish(job, 0, RESULT)
        wait_told(receiver, "processing", "completed", style=42, timeout=60)


def test_an_uninstall_during_a_training_leaves_nothing_that_cannot_be_deleted(
    install: Install, pods: NodeStandIn, amqp_url: str, receiver: Receiver
) -> None:
    cluster = install.cluster
    with install.dispatcher():
        install.send(amqp_url, 42)
        job = install.job_of(42)
        pods.start(job)
        wait_told(receiver, "processing", style=42, timeout=60)
    assert held(cluster, job)
    install.uninstall(pods)
    assert not held(cluster, job)
    assert [item["metadata"]["name"] for item in pods.pods(job)] != []  # it trains on
    accounts = cluster.core.list_namespaced_service_account(cluster.namespace).items
    assert [account.metadata.name for account in accounts] == ["default"]
    assert client.CoordinationV1Api(cluster.api).list_namespaced_lease(cluster.namespace).items == []
    cluster.core.delete_namespace(cluster.namespace)
    wait_for(lambda: not cluster.exists(), 120, "the namespace is gone")


def test_each_permission_that_is_taken_away_is_missed(install: Install) -> None:
    """What the check command asks for is what the real authorizer decides by."""
    cluster = install.cluster
    kubeconfig = install.container(install.spec(install.deployment())).environment["KUBECONFIG"]
    api = config.new_client_from_config(kubeconfig)
    access = client.RbacAuthorizationV1Api(cluster.api)
    role = access.read_namespaced_role(RELEASE, cluster.namespace)
    rules = cluster.api.sanitize_for_serialization(role.rules)

    def wait_until_missed(expected: set[str]) -> None:
        wait_for(
            lambda: set(missing_permissions(api, cluster.namespace, lease=RELEASE)) == expected,
            10,
            f"exactly {expected or 'nothing'} is missed",
        )

    wait_until_missed(set())
    for index, rule in enumerate(rules):
        without = [other for number, other in enumerate(rules) if number != index]
        access.patch_namespaced_role(RELEASE, cluster.namespace, {"rules": without})
        wait_until_missed({f"{verb} {resource}" for verb in rule["verbs"] for resource in rule["resources"]})
