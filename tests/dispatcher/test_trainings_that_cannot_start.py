"""Trainings that never start: no status ends them by itself, so a grace period does, with the reason."""

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from dispatcher.diagnosis import diagnose
from dispatcher.job import Manifest
from dispatcher.pod_status import is_running
from dispatcher.relay_step import GiveUp, next_step
from job_contract import names
from tests.dispatcher.cluster import RESULT, Scene, name_of, new_job, stick, told, wait_told, watching
from tests.dispatcher.support import wait_until
from tests.parts.api_server import ApiServer, Fault
from tests.parts.cluster import Cluster, Pods
from tests.parts.job_controller import JobController
from tests.parts.kube_store import now
from tests.parts.receiver import Receiver


@pytest.fixture
def scene(api_server: ApiServer, controller: JobController, receiver: Receiver) -> Scene:
    return Scene(api_server, controller, receiver)


@pytest.mark.parametrize(
    ("reason", "message", "code"),
    [
        ("ImagePullBackOff", 'Back-off pulling image "trainer:1"', "IMAGE_PULL"),
        ("CreateContainerConfigError", 'secret "lora-env" not found', "UNSCHEDULABLE"),
    ],
)
def test_13_a_pod_that_cannot_start_is_given_up_after_its_grace_period(
    scene: Scene, reason: str, message: str, code: str
) -> None:
    with scene.watched(grace=1.0):
        job = scene.create()
        stick(scene.controller, job, reason, message)
        failed = scene.wait_failed(job)
    assert scene.is_given_up(job)
    assert failed["failure_code"] == code
    assert message.split('"')[1] in failed["failure_reason"]


def test_13_a_pod_that_starts_within_its_grace_period_is_not_given_up(scene: Scene) -> None:
    with scene.watched(grace=3.0):
        job = scene.create()
        pod = scene.controller.create_pod(job)
        scene.controller.unschedulable(pod, GPU)
        scene.controller.schedule(pod)
        scene.controller.run(pod)
        scene.complete(job)
    assert not scene.is_given_up(job)


GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
QUOTA = (
    'Error creating: pods "x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, '
    "used: requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=4"
)


def test_13_a_job_whose_pod_a_quota_forbids_is_given_up_and_the_quota_is_named(scene: Scene) -> None:
    """Such a Job has no pod, and no condition that says why: only Events do."""
    with scene.watched(grace=2.0):
        job, other = scene.create(), scene.create(43)
        scene.controller.sync(other)
        scene.forbid_pods(job, QUOTA)
        failed = scene.wait_failed(job)
        # Of the other no Event says anything: it goes on waiting.
        wait_until(lambda: scene.server.count("list", "events") >= 2)
        assert not scene.is_given_up(other)
    assert failed["failure_code"] == "UNSCHEDULABLE"
    assert "exceeded quota: gpus" in failed["failure_reason"]


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("FailedMount", 'MountVolume.SetUp failed for volume "env" : secret "lora-env" not found'),
        ("FailedAttachVolume", 'Multi-Attach error for volume "lora-env" Volume is already used by a pod'),
        ("FailedCreatePodSandBox", 'plugin type="lora-env" failed (add): no more addresses'),
    ],
)
def test_13_a_container_that_is_never_created_is_given_up_and_what_is_missing_is_named(
    scene: Scene, reason: str, message: str
) -> None:
    with scene.watched(grace=2.0):
        job = scene.create()
        scene.controller.event(scene.create_pod_on_a_node(job), reason, message)
        failed = scene.wait_failed(job)
    assert failed["failure_code"] == "UNSCHEDULABLE"
    assert "lora-env" in failed["failure_reason"]


def test_13_an_image_that_is_pulled_for_longer_than_the_grace_period_is_not_given_up(scene: Scene) -> None:
    with scene.watched(grace=1.0):
        job = scene.create()
        pod = scene.create_pod_on_a_node(job)
        scene.controller.event(pod, "FailedMount", "it was not there yet")
        scene.controller.event(pod, "Pulling", 'Pulling image "trainer:1"', kind="Normal")
        wait_until(lambda: scene.server.count("list", "events") == 1)
        scene.controller.run(pod)
        scene.complete(job)
    assert not scene.is_given_up(job)


def test_events_are_not_asked_for_while_trainings_start_as_they_should(scene: Scene) -> None:
    with scene.watched(grace=600.0):
        for style in range(5):
            scene.complete(scene.create(style), style)
    assert scene.server.count("list", "events") == 0
    assert scene.server.count("watch", "events") == 0


def test_events_that_may_not_be_read_give_nothing_up(scene: Scene) -> None:
    """A Role of an earlier release lacks `list`; then the sentence is missing, and nothing else."""
    denied = scene.server.inject(Fault(403, verb="list", resource="events", times=99))
    with scene.watched(grace=1.0):
        job = scene.create()
        scene.forbid_pods(job, QUOTA)
        wait_until(lambda: denied.hits == 1)
        scene.complete(job)


def test_an_image_that_cannot_be_pulled_is_given_up_though_no_events_may_be_read(scene: Scene) -> None:
    scene.server.inject(Fault(403, verb="list", resource="events", times=99))
    with scene.watched(grace=1.0):
        job = scene.create()
        stick(scene.controller, job)
        scene.wait_given_up(job)


# What others have


def _lacks_a_gpu(scene: Scene, job: str) -> None:
    scene.controller.unschedulable(scene.controller.create_pod(job), GPU)


def _lacks_a_volume(scene: Scene, job: str) -> None:
    pod = scene.create_pod_on_a_node(job)
    used = 'Multi-Attach error for volume "pvc-1": used by pod(s) a'
    scene.controller.event(pod, "FailedAttachVolume", used)


def _lacks_quota(scene: Scene, job: str) -> None:
    scene.forbid_pods(job, QUOTA)


LACKS = pytest.mark.parametrize("lack", [_lacks_a_gpu, _lacks_a_volume, _lacks_quota])
Lack = Callable[[Scene, str], None]


def _one_trains_and_another_waits(scene: Scene, lack: Lack) -> tuple[str, str]:
    """Return both once another Job, stuck later than they, has been given up: a grace period is over."""
    first = scene.create()
    scene.controller.start_pod(first)
    wait_told(scene.receiver, "processing")
    second = scene.create(43)
    lack(scene, second)
    stuck = scene.create("stuck")
    scene.forbid_pods(stuck, 'serviceaccount "trainer" not found')
    scene.wait_given_up(stuck)
    assert not scene.is_given_up(second)
    return first, second


@LACKS
def test_13_a_training_waits_for_another_that_takes_longer_than_the_grace_period(
    scene: Scene, lack: Lack
) -> None:
    """One GPU and two styles: the second is no failure, it waits for the first and keeps its own time."""
    with scene.watched(grace=2.0):
        first, second = _one_trains_and_another_waits(scene, lack)
        wait_until(lambda: scene.controller.job(second)["spec"]["activeDeadlineSeconds"] > 7200)
        scene.complete(first)
        scene.complete(second, 43)
    assert not scene.is_given_up(second)


def test_13_a_training_that_finds_no_room_a_grace_period_after_the_last_other_is_given_up(
    scene: Scene,
) -> None:
    with scene.watched(grace=2.0):
        first, second = _one_trains_and_another_waits(scene, _lacks_a_gpu)
        scene.controller.finish(first, 0, RESULT)
        scene.wait_given_up(second)


@LACKS
def test_13_trainings_that_nobody_keeps_from_starting_are_given_up_after_their_grace_period(
    scene: Scene, lack: Lack
) -> None:
    """A cluster without a GPU: two that lack one do not wait for each other."""
    with scene.watched(grace=2.0):
        jobs = [scene.create(style) for style in (42, 43)]
        for job in jobs:
            lack(scene, job)
        scene.wait_given_up(*jobs)
        assert scene.server.count("list", "pods") == 1 + len(jobs)


# A pull that fails, and one that goes on


def test_13_a_pull_that_broke_off_once_after_a_long_time_is_not_given_up_at_once(scene: Scene) -> None:
    with scene.watched(grace=3.0):
        job = scene.create()
        pod = scene.create_pod_on_a_node(job)
        scene.controller.event(pod, "Pulling", 'Pulling image "trainer:1"', kind="Normal")
        # The grace since the pod has its node is over.
        wait_until(lambda: scene.server.count("list", "events") == 1)
        scene.controller.event(pod, "Failed", 'Failed to pull image "trainer:1": unexpected EOF')
        scene.controller.wait_with(pod, "ErrImagePull", "unexpected EOF")
        wait_until(lambda: scene.server.count("list", "events") > 1)
        scene.controller.run(pod)
        scene.complete(job)
    assert not scene.is_given_up(job)


def test_13_a_pull_that_is_tried_again_and_goes_on_is_not_given_up(scene: Scene) -> None:
    """The status still shows how the first try ended."""
    with scene.watched(grace=3.0):
        job = scene.create()
        pod = stick(scene.controller, job, "ErrImagePull", "unexpected EOF")
        failed_at = now()
        wait_until(lambda: now() > failed_at)
        scene.controller.event(pod, "Pulling", 'Pulling image "trainer:1"', kind="Normal")
        # The grace since the pod has its node is over, and since the pull first failed.
        wait_until(lambda: scene.server.count("list", "events") >= 1)
        scene.controller.run(pod)
        scene.complete(job)
    assert not scene.is_given_up(job)


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


def test_a_training_that_runs_by_now_is_not_given_up_by_a_watch_that_is_behind(scene: Scene) -> None:
    with scene.watched(grace=2.0):
        job = scene.create()
        pod = scene.controller.create_pod(job)
        scene.controller.unschedulable(pod, GPU)
        wait_until(lambda: [seen for seen in _pods_seen(scene, job) if seen["status"].get("conditions")])
        scene.server.silence_watches()
        scene.controller.schedule(pod)
        scene.controller.run(pod)
        wait_told(scene.receiver, "processing")  # by the pods as they are, not as the watch shows them
        assert not any(map(is_running, _pods_seen(scene, job)))
        assert not scene.is_given_up(job)
        scene.server.resume_watches()
        scene.complete(job)
    assert not scene.is_given_up(job)


def _pods_seen(scene: Scene, job: str) -> tuple[Manifest, ...]:
    snapshot = scene.watch.backend.snapshot(job)
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
    """A third, stuck later by what no training has, is given up: the grace period is over. So is the deadline
    that the second had at first.
    """
    _limit_pods(cluster, 1)
    first, second = new_job(receiver), new_job(receiver, "task-2", 43, deadline_seconds=10)

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
        # Ten seconds of waiting, its own ten and the grace.
        wait_until(lambda: _deadline(cluster, second) >= 23, 60, "its first deadline is over")
        assert told(receiver, 43) == []
        assert not _has_failed(cluster, second)
        pods.finish(name_of(first), 0, RESULT)
        wait_told(receiver, "processing", "completed", timeout=60)


def _deadline(cluster: Cluster, job: Manifest) -> int:
    read = cluster.job(name_of(job)) or {}
    return int(read["spec"]["activeDeadlineSeconds"])


def _has_failed(cluster: Cluster, job: Manifest) -> bool:
    read = cluster.job(name_of(job)) or {}
    return any(condition["type"] == "Failed" for condition in read["status"].get("conditions", ()))


def _failed_creates(cluster: Cluster, job: Manifest) -> Sequence[Any]:
    of_job = f"involvedObject.name={name_of(job)},reason=FailedCreate"
    found: Sequence[Any] = cluster.core.list_namespaced_event(cluster.namespace, field_selector=of_job).items
    return found
