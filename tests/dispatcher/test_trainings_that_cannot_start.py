"""Trainings that never start: no status ends them by itself, so a grace period does, with the reason."""

import os
from collections.abc import Callable

import pytest

from dispatcher.diagnosis import VERDICT_ANNOTATION
from dispatcher.job import Manifest
from tests.dispatcher.cluster import RESULT, annotations, name_of, new_job, wait_told, watching
from tests.dispatcher.support import wait_until
from tests.parts.api_server import ApiServer, Fault
from tests.parts.cluster import Cluster
from tests.parts.job_controller import JobController
from tests.parts.receiver import Receiver


@pytest.mark.parametrize(
    ("reason", "message", "code"),
    [
        ("ImagePullBackOff", 'Back-off pulling image "trainer:1"', "IMAGE_PULL"),
        ("CreateContainerConfigError", 'secret "lora-env" not found', "UNSCHEDULABLE"),
    ],
)
def test_13_a_pod_that_cannot_start_is_given_up_after_its_grace_period(
    api_server: ApiServer, controller: JobController, receiver: Receiver, reason: str, message: str, code: str
) -> None:
    job = new_job(receiver)
    with watching(api_server.client(), api_server.namespace, grace=1.0) as watch:
        watch.backend.create(job)
        controller.wait_with(controller.create_pod(name_of(job)), reason, message)
        wait_until(lambda: VERDICT_ANNOTATION in annotations(api_server, name_of(job)))
        spec = (api_server.get("jobs", name_of(job)) or {})["spec"]
        assert spec["activeDeadlineSeconds"] == 1
        controller.exceed_deadline(name_of(job))
        wait_told(receiver, "failed")
    assert receiver.patches[-1].json["failure_code"] == code
    assert message.split('"')[1] in receiver.patches[-1].json["failure_reason"]


def test_13_a_pod_that_starts_within_its_grace_period_is_not_given_up(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    job = new_job(receiver)
    with watching(api_server.client(), api_server.namespace, grace=3.0) as watch:
        watch.backend.create(job)
        pod = controller.create_pod(name_of(job))
        controller.unschedulable(pod, "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
        controller.schedule(pod)
        controller.run(pod)
        controller.finish(name_of(job), 0, RESULT)
        wait_told(receiver, "processing", "completed")
    assert VERDICT_ANNOTATION not in annotations(api_server, name_of(job))


QUOTA = (
    'Error creating: pods "x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, '
    "used: requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=4"
)


def test_13_a_job_whose_pod_a_quota_forbids_is_given_up_and_the_quota_is_named(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    """Such a Job has no pod, and no condition that says why: only Events do."""
    job, other = new_job(receiver), new_job(receiver, "task-2", 43)
    with watching(api_server.client(), api_server.namespace, grace=2.0) as watch:
        for each in (job, other):
            watch.backend.create(each)
            controller.sync(name_of(each))
        controller.record(controller.job(name_of(job)), "FailedCreate", QUOTA)
        wait_until(lambda: VERDICT_ANNOTATION in annotations(api_server, name_of(job)))
        controller.exceed_deadline(name_of(job))
        wait_told(receiver, "failed")
        # Of the other no Event says anything: it goes on waiting.
        wait_until(lambda: api_server.count("list", "events") >= 2)
        assert VERDICT_ANNOTATION not in annotations(api_server, name_of(other))
    assert receiver.patches[-1].json["failure_code"] == "UNSCHEDULABLE"
    assert "exceeded quota: gpus" in receiver.patches[-1].json["failure_reason"]


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("FailedMount", 'MountVolume.SetUp failed for volume "env" : secret "lora-env" not found'),
        ("FailedAttachVolume", 'Multi-Attach error for volume "lora-env" Volume is already used by a pod'),
        ("FailedCreatePodSandBox", 'plugin type="lora-env" failed (add): no more addresses'),
    ],
)
def test_13_a_container_that_is_never_created_is_given_up_and_what_is_missing_is_named(
    api_server: ApiServer, controller: JobController, receiver: Receiver, reason: str, message: str
) -> None:
    job = new_job(receiver)
    with watching(api_server.client(), api_server.namespace, grace=2.0) as watch:
        watch.backend.create(job)
        pod = controller.create_pod(name_of(job))
        controller.schedule(pod)
        controller.event(pod, reason, message)
        wait_until(lambda: VERDICT_ANNOTATION in annotations(api_server, name_of(job)))
        controller.exceed_deadline(name_of(job))
        wait_told(receiver, "failed")
    assert receiver.patches[-1].json["failure_code"] == "UNSCHEDULABLE"
    assert "lora-env" in receiver.patches[-1].json["failure_reason"]


def test_13_an_image_that_is_pulled_for_longer_than_the_grace_period_is_not_given_up(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    job = new_job(receiver)
    with watching(api_server.client(), api_server.namespace, grace=1.0) as watch:
        watch.backend.create(job)
        pod = controller.create_pod(name_of(job))
        controller.schedule(pod)
        controller.event(pod, "FailedMount", "it was not there yet")
        controller.event(pod, "Pulling", 'Pulling image "trainer:1"', kind="Normal")
        wait_until(lambda: api_server.count("list", "events") == 1)
        controller.run(pod)
        controller.finish(name_of(job), 0, RESULT)
        wait_told(receiver, "processing", "completed")
    assert VERDICT_ANNOTATION not in annotations(api_server, name_of(job))


def test_events_are_not_asked_for_while_trainings_start_as_they_should(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    with watching(api_server.client(), api_server.namespace) as watch:
        for number in range(5):
            job = new_job(receiver, f"t{number}", number)
            watch.backend.create(job)
            controller.finish(name_of(job), 0, RESULT)
            wait_told(receiver, "processing", "completed", style=number)
    assert api_server.count("list", "events") == 0
    assert api_server.count("watch", "events") == 0


def test_events_that_may_not_be_read_give_nothing_up(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    """A Role of an earlier release lacks `list`; then the sentence is missing, and nothing else."""
    job = new_job(receiver)
    denied = api_server.inject(Fault(403, verb="list", resource="events", times=99))
    with watching(api_server.client(), api_server.namespace, grace=1.0) as watch:
        watch.backend.create(job)
        controller.sync(name_of(job))
        controller.record(controller.job(name_of(job)), "FailedCreate", QUOTA)
        wait_until(lambda: denied.hits == 1)
        controller.finish(name_of(job), 0, RESULT)
        wait_told(receiver, "processing", "completed")


# What a real Job controller writes, which the in-process one does not imitate


def _forbid_pods(cluster: Cluster, _job: Manifest) -> None:
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "0"}}}
    cluster.core.create_namespaced_resource_quota(cluster.namespace, quota)
    wait_until(
        lambda: cluster.core.read_namespaced_resource_quota("few", cluster.namespace).status.hard,
        what="the quota is in force",
    )


def _demand_security(cluster: Cluster, job: Manifest) -> None:
    labels = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    cluster.core.patch_namespace(cluster.namespace, labels)
    job["spec"]["template"]["spec"]["hostNetwork"] = True


def _name_a_missing_account(_cluster: Cluster, job: Manifest) -> None:
    job["spec"]["template"]["spec"]["serviceAccountName"] = "nobody"


def _name_a_missing_priority(_cluster: Cluster, job: Manifest) -> None:
    job["spec"]["template"]["spec"]["priorityClassName"] = "lora-missing"


@pytest.mark.cluster
@pytest.mark.skipif(
    not {"KUBECONFIG", "KUBEBUILDER_ASSETS"} & set(os.environ), reason="needs a real Job controller"
)
@pytest.mark.parametrize(
    ("forbid", "words"),
    [
        (_forbid_pods, "exceeded quota: few"),
        (_demand_security, "violates PodSecurity"),
        (_name_a_missing_account, 'serviceaccount "nobody" not found'),
        (_name_a_missing_priority, "lora-missing"),
    ],
)
def test_13_what_a_real_cluster_forbids_is_named(
    cluster: Cluster, receiver: Receiver, forbid: Callable[[Cluster, Manifest], None], words: str
) -> None:
    job = new_job(receiver)
    forbid(cluster, job)
    with watching(cluster.api, cluster.namespace, grace=3.0) as watch:
        watch.backend.create(job)
        patches = wait_told(receiver, "failed", timeout=60)
    assert patches[-1].json["failure_code"] == "UNSCHEDULABLE"
    assert words in patches[-1].json["failure_reason"]
