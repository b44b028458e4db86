"""Trainings that never start: no status ends them by itself, so a grace period does, with the reason."""

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from dispatcher.diagnosis import VERDICT_ANNOTATION, diagnose
from dispatcher.job import Manifest
from dispatcher.pod_status import is_running
from dispatcher.relay_step import GiveUp, next_step
from job_contract import names
from tests.dispatcher.cluster import (
    RESULT,
    Watching,
    annotations,
    name_of,
    new_job,
    told,
    wait_told,
    watching,
)
from tests.dispatcher.support import wait_until
from tests.parts.api_server import ApiServer, Fault
from tests.parts.cluster import Cluster, Pods
from tests.parts.job_controller import JobController
from tests.parts.kube_store import now
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


def test_an_image_that_cannot_be_pulled_is_given_up_though_no_events_may_be_read(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    job = new_job(receiver)
    api_server.inject(Fault(403, verb="list", resource="events", times=99))
    with watching(api_server.client(), api_server.namespace, grace=1.0) as watch:
        watch.backend.create(job)
        controller.wait_with(controller.create_pod(name_of(job)), "ErrImagePull", "no such image")
        wait_until(lambda: VERDICT_ANNOTATION in annotations(api_server, name_of(job)))


# What others have


GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."


def _lacks_a_gpu(controller: JobController, job: str) -> None:
    controller.unschedulable(controller.create_pod(job), GPU)


def _lacks_a_volume(controller: JobController, job: str) -> None:
    pod = controller.create_pod(job)
    controller.schedule(pod)
    controller.event(pod, "FailedAttachVolume", 'Multi-Attach error for volume "pvc-1": used by pod(s) a')


def _lacks_quota(controller: JobController, job: str) -> None:
    controller.sync(job)
    controller.record(controller.job(job), "FailedCreate", QUOTA)


LACKS = pytest.mark.parametrize("lack", [_lacks_a_gpu, _lacks_a_volume, _lacks_quota])
Lack = Callable[[JobController, str], None]


def _let_a_grace_period_pass(
    api_server: ApiServer, controller: JobController, receiver: Receiver, watch: Watching
) -> None:
    """Return once another Job, stuck later than all that are there, has been given up."""
    job = new_job(receiver, "stuck", "stuck")
    watch.backend.create(job)
    controller.sync(name_of(job))
    controller.record(controller.job(name_of(job)), "FailedCreate", 'serviceaccount "trainer" not found')
    wait_until(lambda: VERDICT_ANNOTATION in annotations(api_server, name_of(job)))


@LACKS
def test_13_a_training_waits_for_another_that_takes_longer_than_the_grace_period(
    api_server: ApiServer, controller: JobController, receiver: Receiver, lack: Lack
) -> None:
    """One GPU and two styles: the second is no failure, it waits for the first."""
    first, second = new_job(receiver), new_job(receiver, "task-2", 43)
    with watching(api_server.client(), api_server.namespace, grace=2.0) as watch:
        watch.backend.create(first)
        controller.start_pod(name_of(first))
        wait_told(receiver, "processing")
        watch.backend.create(second)
        lack(controller, name_of(second))
        _let_a_grace_period_pass(api_server, controller, receiver, watch)
        controller.finish(name_of(first), 0, RESULT)
        wait_told(receiver, "processing", "completed")
        controller.finish(name_of(second), 0, RESULT)
        wait_told(receiver, "processing", "completed", style=43)
    assert VERDICT_ANNOTATION not in annotations(api_server, name_of(second))


def test_13_a_training_that_finds_no_room_a_grace_period_after_the_last_other_is_given_up(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    first, second = new_job(receiver), new_job(receiver, "task-2", 43)
    with watching(api_server.client(), api_server.namespace, grace=2.0) as watch:
        watch.backend.create(first)
        controller.start_pod(name_of(first))
        wait_told(receiver, "processing")
        watch.backend.create(second)
        _lacks_a_gpu(controller, name_of(second))
        _let_a_grace_period_pass(api_server, controller, receiver, watch)
        assert VERDICT_ANNOTATION not in annotations(api_server, name_of(second))
        controller.finish(name_of(first), 0, RESULT)
        wait_until(lambda: VERDICT_ANNOTATION in annotations(api_server, name_of(second)))


@LACKS
def test_13_trainings_that_nobody_keeps_from_starting_are_given_up_after_their_grace_period(
    api_server: ApiServer, controller: JobController, receiver: Receiver, lack: Lack
) -> None:
    """A cluster without a GPU: two that lack one do not wait for each other."""
    jobs = [new_job(receiver), new_job(receiver, "task-2", 43)]
    with watching(api_server.client(), api_server.namespace, grace=2.0) as watch:
        for job in jobs:
            watch.backend.create(job)
            lack(controller, name_of(job))
        wait_until(lambda: all(VERDICT_ANNOTATION in annotations(api_server, name_of(job)) for job in jobs))
        assert api_server.count("list", "pods") == 1 + len(jobs)


# A pull that fails, and one that goes on


def test_13_a_pull_that_broke_off_once_after_a_long_time_is_not_given_up_at_once(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    job = new_job(receiver)
    with watching(api_server.client(), api_server.namespace, grace=3.0) as watch:
        watch.backend.create(job)
        pod = controller.create_pod(name_of(job))
        controller.schedule(pod)
        controller.event(pod, "Pulling", 'Pulling image "trainer:1"', kind="Normal")
        # The grace since the pod has its node is over.
        wait_until(lambda: api_server.count("list", "events") == 1)
        controller.event(pod, "Failed", 'Failed to pull image "trainer:1": unexpected EOF')
        controller.wait_with(pod, "ErrImagePull", "unexpected EOF")
        wait_until(lambda: api_server.count("list", "events") > 1)
        controller.run(pod)
        controller.finish(name_of(job), 0, RESULT)
        wait_told(receiver, "processing", "completed")
    assert VERDICT_ANNOTATION not in annotations(api_server, name_of(job))


def test_13_a_pull_that_is_tried_again_and_goes_on_is_not_given_up(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    """The status still shows how the first try ended."""
    job = new_job(receiver)
    with watching(api_server.client(), api_server.namespace, grace=3.0) as watch:
        watch.backend.create(job)
        pod = controller.create_pod(name_of(job))
        controller.wait_with(pod, "ErrImagePull", "unexpected EOF")
        failed_at = now()
        wait_until(lambda: now() > failed_at)
        controller.event(pod, "Pulling", 'Pulling image "trainer:1"', kind="Normal")
        # The grace since the pod has its node is over, and since the pull first failed.
        wait_until(lambda: api_server.count("list", "events") >= 1)
        controller.run(pod)
        controller.finish(name_of(job), 0, RESULT)
        wait_told(receiver, "processing", "completed")
    assert VERDICT_ANNOTATION not in annotations(api_server, name_of(job))


GRACE = timedelta(minutes=10)
SCHEDULED = datetime(2026, 11, 24, 8, tzinfo=UTC)


def _given_up(told: Sequence[tuple[int, str]]) -> timedelta | None:
    """Return when the relay gives a pod up whose image fails, looking every 10 seconds for two hours.

    told: the Events of the kubelet, seconds after the pod had its node and their message.
    """
    reasons = {"Pulling": "Pulling", "Back-off": "BackOff", "Failed": "Failed"}
    pod = {
        "metadata": {"name": "p", "uid": "pod-uid"},
        "status": {
            "startTime": SCHEDULED.isoformat(),
            "containerStatuses": [{"name": "trainer", "state": {"waiting": {"reason": "ImagePullBackOff"}}}],
        },
    }
    job = {"metadata": {"name": "j", "uid": "u", "finalizers": [names.FINALIZER]}, "spec": {}}
    for second in range(0, 7200, 10):
        events: dict[str, dict[str, Any]] = {}
        for after, message in told:
            if after <= second:
                at = (SCHEDULED + timedelta(seconds=after)).isoformat()
                first = events.get(message, {}).get("firstTimestamp", at)
                events[message] = {
                    "involvedObject": {"uid": "pod-uid"},
                    "reason": reasons[message.split()[0]],
                    "message": message,
                    "firstTimestamp": first,
                    "lastTimestamp": at,
                }
        step = next_step(
            job,
            diagnose(job, [pod], list(events.values())),
            now=SCHEDULED + timedelta(seconds=second),
            grace=GRACE,
            is_next_of_style=True,
            room_free_since=None,
        )
        if isinstance(step, GiveUp):
            return timedelta(seconds=second)
    return None


def _kubelet(fails_after: int, tries: Sequence[int]) -> list[tuple[int, str]]:
    """What a kubelet tells of tries that fail so many seconds after they begin, and of the waits between."""
    told = []
    for begins, until in pairwise([*tries, 7200]):
        failed = begins + fails_after
        told += [(begins, "Pulling image"), (failed, "Failed to pull image")]
        told += [(second, "Back-off pulling image") for second in range(failed + 12, until, 12)]
    return told


BACK_OFFS = [0, 12, 34, 76, 158, 320, *range(622, 7200, 302)]


@pytest.mark.parametrize(
    "told",
    [
        _kubelet(1, BACK_OFFS),
        # From the 25th Event on a client keeps to one in 5 minutes, and it may be this one each time.
        [(at, text) for at, text in _kubelet(1, BACK_OFFS) if at < 320 or text == "Pulling image"],
    ],
    ids=["all Events", "of the later tries only their beginning"],
)
def test_13_an_image_that_is_never_found_is_given_up_soon_after_its_grace_period(
    told: list[tuple[int, str]],
) -> None:
    given_up = _given_up(sorted(told))
    assert given_up
    assert GRACE <= given_up <= GRACE + timedelta(minutes=6)


def test_13_an_image_that_breaks_off_after_a_long_time_has_a_second_try_and_no_third() -> None:
    """Each pull of it takes 14 minutes."""
    first, second = 14 * 60, 28 * 60 + 10
    assert _given_up([(0, "Pulling image"), (first, "Failed to pull"), (first + 10, "Pulling image")]) is None
    told = [(0, "Pulling image"), (first, "Failed to pull"), (first + 10, "Pulling image")]
    assert _given_up([*told, (second, "Failed to pull")]) == timedelta(seconds=second)


# When the watch is behind


def test_a_training_that_runs_by_now_is_not_given_up_by_a_watch_that_is_behind(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    job = new_job(receiver)
    with watching(api_server.client(), api_server.namespace, grace=2.0) as watch:
        watch.backend.create(job)
        pod = controller.create_pod(name_of(job))
        controller.unschedulable(pod, GPU)
        wait_until(lambda: [p for p in _pods_of(watch, job) if p["status"].get("conditions")])
        api_server.silence_watches()
        controller.schedule(pod)
        controller.run(pod)
        wait_told(receiver, "processing")  # by the pods as they are, not as the watch shows them
        assert not any(map(is_running, _pods_of(watch, job)))
        assert VERDICT_ANNOTATION not in annotations(api_server, name_of(job))
        api_server.resume_watches()
        controller.finish(name_of(job), 0, RESULT)
        wait_told(receiver, "processing", "completed")
    assert VERDICT_ANNOTATION not in annotations(api_server, name_of(job))


def _pods_of(watch: Watching, job: Manifest) -> tuple[Manifest, ...]:
    snapshot = watch.backend.snapshot(name_of(job))
    return snapshot.pods if snapshot else ()


# What a real Job controller writes, which the in-process one does not imitate


def _forbid_pods(cluster: Cluster, _job: Manifest) -> None:
    _limit_pods(cluster, 0)


def _limit_pods(cluster: Cluster, most: int) -> None:
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": str(most)}}}
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


@pytest.mark.cluster
@pytest.mark.skipif(
    not {"KUBECONFIG", "KUBEBUILDER_ASSETS"} & set(os.environ), reason="needs a real Job controller"
)
def test_13_a_training_waits_while_another_uses_up_a_real_quota(
    cluster: Cluster, pods: Pods, receiver: Receiver
) -> None:
    """A third, stuck later by what no training has, is given up: the grace period is over."""
    _limit_pods(cluster, 1)
    first, second = new_job(receiver), new_job(receiver, "task-2", 43)
    with watching(cluster.api, cluster.namespace, grace=3.0) as watch:
        watch.backend.create(first)
        pods.start(name_of(first))
        wait_told(receiver, "processing", timeout=60)
        watch.backend.create(second)
        third = new_job(receiver, "task-3", 44)
        _name_a_missing_account(cluster, third)
        wait_until(lambda: _failed_creates(cluster, second), 30)
        watch.backend.create(third)
        wait_told(receiver, "failed", style=44, timeout=60)
        assert told(receiver, 43) == []
        pods.finish(name_of(first), 0, RESULT)
        wait_told(receiver, "processing", "completed", timeout=60)


def _failed_creates(cluster: Cluster, job: Manifest) -> Sequence[Any]:
    of_job = f"involvedObject.name={name_of(job)},reason=FailedCreate"
    found: Sequence[Any] = cluster.core.list_namespaced_event(cluster.namespace, field_selector=of_job).items
    return found
