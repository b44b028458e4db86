"""What needs no fault to be shown: the same tests on the in-process server and on any cluster.

`make test-cluster` runs them on the cluster of KUBECONFIG, else on a control plane of the programs in
KUBEBUILDER_ASSETS, else on the tests' own API server, in a namespace of their own that is gone afterwards.
Where the cluster has nodes the pods really run, with TEST_IMAGE; where not, a stand-in plays the node. What
takes compaction or broken connections is in test_relay.py and test_reflector.py: no cluster does that on
demand.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dispatcher.backends.lease import Lease
from dispatcher.errors import (
    BackendBusyError,
    BackendUnavailableError,
    JobConflictError,
    JobRefusedError,
    StaleJobError,
)
from dispatcher.job import Manifest
from job_contract import names
from job_contract.outcome import FailureCode
from job_contract.progress import Progress, format_progress
from tests.dispatcher.cluster import RESULT, name_of, new_job, told, wait_told, watching
from tests.dispatcher.support import wait_until
from tests.parts.cluster import Cluster, Pods
from tests.parts.node_stand_in import NodeStandIn
from tests.parts.receiver import Receiver

pytestmark = pytest.mark.cluster


def test_the_job_is_taken_as_it_is_and_only_once(cluster: Cluster, receiver: Receiver) -> None:
    job = new_job(receiver)
    assert cluster.backend.create(job) is True
    assert cluster.backend.create(job) is False
    stored = cluster.job(name_of(job))
    assert stored
    assert stored["metadata"]["finalizers"] == [names.FINALIZER]
    assert stored["spec"]["backoffLimit"] == 3
    assert stored["spec"]["podFailurePolicy"] == job["spec"]["podFailurePolicy"]


def test_a_taken_name_with_another_request_is_a_conflict(cluster: Cluster, receiver: Receiver) -> None:
    job, other = new_job(receiver), new_job(receiver)
    annotations = other["spec"]["template"]["metadata"]["annotations"]
    annotations[names.REQUEST_ANNOTATION] = annotations[names.REQUEST_ANNOTATION].replace("a.jpg", "b.jpg")
    cluster.backend.create(job)
    with pytest.raises(JobConflictError):
        cluster.backend.create(other)


def test_an_invalid_job_is_refused(cluster: Cluster, receiver: Receiver) -> None:
    job = new_job(receiver)
    job["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    with pytest.raises(JobRefusedError):
        cluster.backend.create(job)


def test_finalizers_are_changed_only_on_the_version_that_was_read(
    cluster: Cluster, receiver: Receiver
) -> None:
    job = new_job(receiver)
    cluster.backend.create(job)
    version = (cluster.job(name_of(job)) or {})["metadata"]["resourceVersion"]
    cluster.backend.patch(name_of(job), {"metadata": {"annotations": {"a": "1"}}})
    with pytest.raises(StaleJobError):
        cluster.backend.patch(name_of(job), {"metadata": {"finalizers": None}}, version)


def test_a_deleted_job_is_told_and_goes(cluster: Cluster, receiver: Receiver) -> None:
    job = new_job(receiver)
    with watching(cluster.api, cluster.namespace) as watch:
        watch.backend.create(job)
        wait_until(lambda: watch.backend.snapshot(name_of(job)))
        cluster.delete(name_of(job))
        wait_told(receiver, "failed", timeout=30)
        wait_until(lambda: cluster.job(name_of(job)) is None, 30)
    assert receiver.patches[-1].json["failure_code"] == "JOB_DELETED"


def test_a_job_deleted_while_nobody_watches_is_told_afterwards(cluster: Cluster, receiver: Receiver) -> None:
    job = new_job(receiver)
    cluster.backend.create(job)
    cluster.delete(name_of(job))
    with watching(cluster.api, cluster.namespace):
        wait_told(receiver, "failed", timeout=30)
        wait_until(lambda: cluster.job(name_of(job)) is None, 30)


def test_the_second_job_of_a_style_is_released_when_the_first_is_gone(
    cluster: Cluster, receiver: Receiver
) -> None:
    first, second = new_job(receiver, "first"), new_job(receiver, "second")
    with watching(cluster.api, cluster.namespace) as watch:
        for accepted, job in enumerate((first, second), start=1):
            watch.accept(job, accepted)
        wait_until(lambda: watch.backend.snapshot(name_of(second)))
        assert (cluster.job(name_of(second)) or {})["spec"]["suspend"] is True
        cluster.delete(name_of(first))
        wait_until(lambda: (cluster.job(name_of(second)) or {})["spec"].get("suspend") is False, 30)
    assert told(receiver) == ["failed"]


def is_free(cluster: Cluster, name: str) -> bool:
    """Whether a Job is gone, or held by us no more."""
    job = cluster.job(name)
    return job is None or names.FINALIZER not in job["metadata"].get("finalizers", ())


def test_a_training_is_told_from_its_start_to_its_end(
    cluster: Cluster, pods: Pods, receiver: Receiver
) -> None:
    job = pods.runnable(new_job(receiver))
    with watching(cluster.api, cluster.namespace) as watch:
        watch.backend.create(job)
        pods.start(name_of(job))
        wait_told(receiver, "processing", timeout=30)
        pods.finish(name_of(job), 0, RESULT)
        patches = wait_told(receiver, "processing", "completed", timeout=60)
        wait_until(lambda: is_free(cluster, name_of(job)), 30)
    assert patches[-1].json["model_path"] == "/models/42/lora_weights.safetensors"


def test_live_progress_is_told_from_the_log_of_the_pod(
    cluster: Cluster, pods: Pods, receiver: Receiver
) -> None:
    if not isinstance(pods, NodeStandIn):
        pytest.skip("what stands in for the trainer writes no log")
    job = new_job(receiver)
    with watching(cluster.api, cluster.namespace, progress=0.2) as watch:
        watch.backend.create(job)
        pod = pods.start(name_of(job))
        pods.write_log(pod, format_progress(Progress(10, 100, 90), "loss 0.1"))
        receiver.wait_for(lambda patches: any("progress" in (patch.json or {}) for patch in patches), 30)
        pods.finish(name_of(job), 0, RESULT)
        wait_told(receiver, "processing", "completed", timeout=60)
    told_of = [patch.json["progress"] for patch in receiver.patches if "progress" in patch.json]
    assert (told_of[0]["current_epoch"], told_of[0]["estimated_seconds"]) == (10, 90)


def test_a_failed_pod_that_is_tried_again_gives_no_failed(
    cluster: Cluster, pods: Pods, receiver: Receiver
) -> None:
    job = pods.runnable(new_job(receiver))
    with watching(cluster.api, cluster.namespace) as watch:
        watch.backend.create(job)
        pods.finish(name_of(job), 70, '{"failure_code":"TRAINING_ERROR","failure_reason":"Once."}')
        wait_until(lambda: (cluster.job(name_of(job)) or {})["status"].get("failed") == 1, 60)
        pods.start(name_of(job))  # after the Job controller's back-off
        pods.finish(name_of(job), 0, RESULT)
        wait_told(receiver, "processing", "completed", timeout=60)


@pytest.mark.parametrize("code", [64, 65, 78])
def test_an_exit_code_that_no_retry_helps_fails_the_job_at_once(
    cluster: Cluster, pods: Pods, receiver: Receiver, code: int
) -> None:
    job = pods.runnable(new_job(receiver))
    with watching(cluster.api, cluster.namespace) as watch:
        watch.backend.create(job)
        pods.finish(name_of(job), code, '{"failure_code":"INVALID_IMAGES","failure_reason":"No images."}')
        patches = wait_told(receiver, "processing", "failed", timeout=60)
        wait_until(lambda: is_free(cluster, name_of(job)), 30)
    assert patches[-1].json["failure_code"] == FailureCode.INVALID_IMAGES
    assert patches[-1].json["failure_reason"] == "No images."
    assert (cluster.job(name_of(job)) or {})["status"]["failed"] == 1


def test_a_disruption_costs_no_retry(cluster: Cluster, pods: Pods, receiver: Receiver) -> None:
    job = pods.runnable(new_job(receiver))
    job["spec"]["backoffLimit"] = 0
    with watching(cluster.api, cluster.namespace) as watch:
        watch.backend.create(job)
        first = pods.start(name_of(job))
        pods.disrupt(name_of(job), 75)
        wait_until(lambda: first not in [pod["metadata"]["name"] for pod in pods.pods(name_of(job))], 60)
        pods.finish(name_of(job), 0, RESULT)
        wait_told(receiver, "processing", "completed", timeout=60)
    assert "failed" not in (cluster.job(name_of(job)) or {})["status"]


def test_a_training_out_of_retries_says_why_the_last_one_failed(
    cluster: Cluster, pods: Pods, receiver: Receiver
) -> None:
    job = pods.runnable(new_job(receiver))
    job["spec"]["backoffLimit"] = 0
    with watching(cluster.api, cluster.namespace) as watch:
        watch.backend.create(job)
        pods.finish(name_of(job), 69, '{"failure_code":"STORAGE_ERROR","failure_reason":"S3 is full."}')
        patches = wait_told(receiver, "processing", "failed", timeout=60)
    assert patches[-1].json["failure_reason"] == "S3 is full."


def test_a_training_that_takes_too_long_is_told_so(cluster: Cluster, pods: Pods, receiver: Receiver) -> None:
    seconds = 5 if isinstance(pods, NodeStandIn) else 30  # a real node may have to pull the image
    job = pods.runnable(new_job(receiver, deadline_seconds=seconds))
    with watching(cluster.api, cluster.namespace) as watch:
        watch.backend.create(job)
        pods.start(name_of(job))
        patches = wait_told(receiver, "processing", "failed", timeout=90)
        wait_until(lambda: is_free(cluster, name_of(job)), 30)
    assert patches[-1].json["failure_code"] == FailureCode.DEADLINE_EXCEEDED


def test_a_job_that_ends_and_expires_while_nobody_watches_is_told_afterwards(
    cluster: Cluster, pods: Pods, receiver: Receiver
) -> None:
    job = pods.runnable(new_job(receiver, ttl_seconds=0))
    cluster.backend.create(job)
    pods.finish(name_of(job), 0, RESULT)
    wait_until(lambda: "deletionTimestamp" in (cluster.job(name_of(job)) or {})["metadata"], 60)
    with watching(cluster.api, cluster.namespace):
        wait_told(receiver, "processing", "completed", timeout=30)
        wait_until(lambda: cluster.job(name_of(job)) is None, 30)


def test_a_running_job_that_is_deleted_ends_its_pod_and_goes(
    cluster: Cluster, pods: Pods, receiver: Receiver
) -> None:
    job = pods.runnable(new_job(receiver))
    with watching(cluster.api, cluster.namespace) as watch:
        watch.backend.create(job)
        pods.start(name_of(job))
        wait_told(receiver, "processing", timeout=30)
        cluster.delete(name_of(job))
        patches = wait_told(receiver, "processing", "failed", timeout=60)
        wait_until(lambda: cluster.job(name_of(job)) is None and not pods.pods(), 60)
    assert patches[-1].json["failure_code"] == FailureCode.JOB_DELETED


def test_a_job_made_by_hand_from_the_cronjob_is_adopted_and_told(
    cluster: Cluster, pods: Pods, receiver: Receiver
) -> None:
    """What `kubectl create job --from=cronjob/...` makes: an owner, a style id, no finalizer, no request."""
    job = pods.runnable(new_job(receiver, style=7, environment={"STYLE_ID": "7"}))
    spec = {"schedule": "0 0 1 1 *", "suspend": True, "jobTemplate": {"spec": job["spec"]}}
    cronjob = cluster.batch.create_namespaced_cron_job(
        cluster.namespace, {"metadata": {"name": "rerun"}, "spec": spec}
    )
    owner = {"apiVersion": "batch/v1", "kind": "CronJob", "name": "rerun", "uid": cronjob.metadata.uid}
    job["metadata"] = {
        "name": "by-hand",
        "labels": job["metadata"]["labels"],
        "annotations": {"cronjob.kubernetes.io/instantiate": "manual"},
        "ownerReferences": [{**owner, "controller": True}],
    }
    del job["spec"]["template"]["metadata"]["annotations"]
    with watching(cluster.api, cluster.namespace, backend_url=receiver.url) as watch:
        cluster.batch.create_namespaced_job(cluster.namespace, job)
        wait_until(lambda: not is_free(cluster, "by-hand"), 30, "the Job is held")
        assert watch.backend.snapshot("by-hand")
        pods.start("by-hand")
        pods.finish("by-hand", 0, RESULT)
        wait_told(receiver, "processing", "completed", style=7, timeout=60)
        wait_until(lambda: is_free(cluster, "by-hand"), 30)


def test_a_full_quota_is_busy_and_a_freed_place_takes_the_next(cluster: Cluster, receiver: Receiver) -> None:
    quota = {"metadata": {"name": "trainings"}, "spec": {"hard": {"count/jobs.batch": "1"}}}
    cluster.core.create_namespaced_resource_quota(cluster.namespace, quota)

    def in_force() -> bool:
        read = cluster.core.read_namespaced_resource_quota("trainings", cluster.namespace)
        return bool(read.status.hard)

    def created(job: Manifest) -> bool:
        try:
            return cluster.backend.create(job)
        except (BackendBusyError, BackendUnavailableError):
            return False

    wait_until(in_force, 30)
    first, second = new_job(receiver, "first", style=1), new_job(receiver, "second", style=2)
    with watching(cluster.api, cluster.namespace) as watch:
        wait_until(lambda: created(first), 30, "the quota's use is known")
        with pytest.raises(BackendBusyError, match="exceeded quota: trainings"):
            watch.backend.create(second)
        wait_until(lambda: watch.backend.snapshot(name_of(first)))
        cluster.delete(name_of(first))
        wait_until(lambda: created(second), 60, "the deleted Job's place is free")


def test_jobs_of_a_style_train_one_after_the_other_in_order(
    cluster: Cluster, pods: Pods, receiver: Receiver
) -> None:
    jobs = [pods.runnable(new_job(receiver, task)) for task in ("first", "second", "third")]

    def waiting() -> list[bool]:
        return [(cluster.job(name_of(job)) or {})["spec"]["suspend"] for job in jobs]

    with watching(cluster.api, cluster.namespace) as watch:
        for accepted, job in enumerate(jobs, start=1):
            watch.accept(job, accepted)
        assert waiting() == [False, True, True]
        pods.finish(name_of(jobs[0]), 0, RESULT)
        wait_until(lambda: waiting() == [False, False, True], 60)
        pods.finish(name_of(jobs[1]), 65, "")
        wait_until(lambda: waiting() == [False, False, False], 60)
        pods.finish(name_of(jobs[2]), 0, RESULT)
        wait_until(lambda: all(is_free(cluster, name_of(job)) for job in jobs), 60)
    assert told(receiver) == ["processing", "completed", "processing", "failed", "processing", "completed"]


def test_a_training_killed_for_its_memory_is_told_so(
    cluster: Cluster, pods: Pods, receiver: Receiver
) -> None:
    if not isinstance(pods, NodeStandIn):
        pytest.skip("no pod is made to use up a real node's memory")
    job = new_job(receiver)
    job["spec"]["backoffLimit"] = 0
    with watching(cluster.api, cluster.namespace) as watch:
        watch.backend.create(job)
        pods.finish(name_of(job), 137, reason="OOMKilled")
        patches = wait_told(receiver, "processing", "failed", timeout=60)
    assert patches[-1].json["failure_code"] == FailureCode.OUT_OF_MEMORY


def test_an_image_that_cannot_be_pulled_is_given_up_after_the_grace_period(
    cluster: Cluster, pods: Pods, receiver: Receiver
) -> None:
    if not isinstance(pods, NodeStandIn):
        pytest.skip("whether and how fast a real node gives up an image is not for this test")
    job = new_job(receiver)
    with watching(cluster.api, cluster.namespace, grace=1) as watch:
        watch.backend.create(job)
        pods.wait_with(name_of(job), "ImagePullBackOff", 'Back-off pulling image "x"')
        patches = wait_told(receiver, "failed", timeout=60)
        wait_until(lambda: is_free(cluster, name_of(job)) and not pods.pods(), 60)
    assert patches[-1].json["failure_code"] == FailureCode.IMAGE_PULL


@contextmanager
def candidate(cluster: Cluster, identity: str) -> Iterator[Lease]:
    lease = Lease(
        cluster.api,
        cluster.namespace,
        "relay",
        identity,
        lambda: None,
        lambda: None,
        duration_seconds=15,
        renew_seconds=0.2,
    )
    stop = threading.Event()
    thread = threading.Thread(target=lease.run, args=(stop,))
    thread.start()
    try:
        yield lease
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def test_of_two_dispatchers_one_holds_the_lease_and_hands_it_over(cluster: Cluster) -> None:
    with candidate(cluster, "b") as second:
        with candidate(cluster, "a") as first:
            holders = wait_until(lambda: [lease for lease in (first, second) if lease.is_held()], 30)
            end = time.monotonic() + 2
            while time.monotonic() < end:
                assert holders == [lease for lease in (first, second) if lease.is_held()]
        wait_until(second.is_held, 10)
