"""Each Job's statuses reach the backend in order, once, and true, whatever fails on the way."""

from datetime import timedelta
from typing import Any

import pytest

from dispatcher.backends.kubernetes import KubernetesBackend
from dispatcher.relay_step import PARKED_ANNOTATION, TERMINAL_ANNOTATION
from job_contract import names
from tests.dispatcher.cluster import (
    RESULT,
    annotations,
    batch_api,
    finalizers,
    name_of,
    new_job,
    told,
    wait_told,
    watching,
)
from tests.dispatcher.support import wait_until
from tests.parts.api_server import ApiServer, Fault
from tests.parts.job_controller import JobController
from tests.parts.receiver import Answer, Receiver

BAD_IMAGE = '{"failure_code":"INVALID_IMAGES","failure_reason":"b.png is truncated; send it again."}'
SOFTWARE = '{"failure_code":"TRAINING_ERROR","failure_reason":"The loss is no number; lower learning_rate."}'


def is_released(api_server: ApiServer, name: str) -> bool:
    return names.FINALIZER not in finalizers(api_server, name)


def test_11_a_pod_that_dies_and_is_retried_gives_no_failed(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    job = new_job(receiver)
    with watching(api_server.client(), api_server.namespace) as watch:
        watch.backend.create(job)
        controller.create_pod(name_of(job))
        controller.finish(name_of(job), 70, SOFTWARE)
        wait_told(receiver, "processing")
        controller.start_pod(name_of(job))
        controller.finish(name_of(job), 0, RESULT)
        patches = wait_told(receiver, "processing", "completed")
    assert patches[-1].json == {
        "style_id": 42,
        "task_id": "task-1",
        "training_status": "completed",
        "model_path": "/models/42/lora_weights.safetensors",
        "s3_uri": None,
        "training_metric": {"loss": 0.1, "epochs": 100},
    }
    assert is_released(api_server, name_of(job))


def test_processing_is_not_told_before_the_container_runs(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    job = new_job(receiver)
    with watching(api_server.client(), api_server.namespace) as watch:
        watch.backend.create(job)
        pod = controller.create_pod(name_of(job))
        controller.schedule(pod)
        wait_until(lambda: watch.backend.snapshot(name_of(job)) and watch.backend.snapshot(name_of(job)).pods)  # type: ignore[union-attr]
        assert receiver.patches == []
        controller.run(pod)
        wait_told(receiver, "processing")


def test_12_exit_0_without_the_file_does_not_become_completed(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    job = new_job(receiver)
    with watching(api_server.client(), api_server.namespace) as watch:
        watch.backend.create(job)
        controller.finish(name_of(job), 0, "")
        wait_told(receiver, "processing", "failed")
    assert receiver.patches[-1].json["failure_code"] == "STORAGE_ERROR"


def test_9_10_a_failed_job_has_one_failed_with_the_trainers_words(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    job = new_job(receiver)
    with watching(api_server.client(), api_server.namespace) as watch:
        watch.backend.create(job)
        for _ in range(4):
            controller.start_pod(name_of(job))
            controller.finish(name_of(job), 70, SOFTWARE)
        wait_told(receiver, "processing", "failed")
    assert receiver.patches[-1].json["failure_reason"].startswith("The loss is no number")


def test_6_8_a_deleted_job_is_told_before_it_goes_and_does_not_stay_terminating(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    job = new_job(receiver)
    batch = batch_api(api_server)
    with watching(api_server.client(), api_server.namespace) as watch:
        watch.backend.create(job)
        controller.start_pod(name_of(job))
        wait_told(receiver, "processing")
        batch.delete_namespaced_job(name_of(job), api_server.namespace, propagation_policy="Background")
        wait_told(receiver, "processing", "failed")
        wait_until(lambda: any("deletionTimestamp" in pod["metadata"] for pod in api_server.all("pods")))
        controller.end_deleted_pods()
        wait_until(lambda: api_server.get("jobs", name_of(job)) is None, what="the Job is gone")
    assert receiver.patches[-1].json["failure_code"] == "JOB_DELETED"


def test_a_job_deleted_before_it_started_is_told_too(api_server: ApiServer, receiver: Receiver) -> None:
    job = new_job(receiver)
    with watching(api_server.client(), api_server.namespace) as watch:
        watch.backend.create(job)
        wait_until(lambda: watch.backend.snapshot(name_of(job)))
        batch_api(api_server).delete_namespaced_job(name_of(job), api_server.namespace)
        wait_told(receiver, "failed")
        wait_until(lambda: api_server.get("jobs", name_of(job)) is None)


def test_7_a_job_that_ended_and_expired_while_nobody_watched_is_told(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    """The TTL controller deletes in the foreground, pods first: exit code and contract have to do."""
    job = new_job(receiver, ttl_seconds=0)
    KubernetesBackend(api_server.client(), api_server.namespace, "lora-trainer").create(job)
    controller.finish(name_of(job), 0, RESULT)
    controller.expire_ttl(name_of(job))
    with watching(api_server.client(), api_server.namespace):
        wait_told(receiver, "processing", "completed")
        wait_until(lambda: api_server.get("jobs", name_of(job)) is None, what="the Job is gone")
        wait_until(lambda: not api_server.all("pods"), what="its pods are gone")
    told = receiver.patches[-1].json
    assert told["model_path"] == "/models/42/lora_weights.safetensors"
    assert told["training_metric"] == {"loss": None, "epochs": 100}  # the loss went with the pod


@pytest.mark.parametrize(
    ("exit_code", "attempts", "code", "words"),
    [
        (65, 1, "INVALID_REQUEST", "check the images and the request"),
        (70, 4, "TRAINING_ERROR", "Every attempt"),
    ],
)
def test_7_a_job_that_failed_and_expired_while_nobody_watched_is_told_with_what_is_still_known(
    api_server: ApiServer,
    controller: JobController,
    receiver: Receiver,
    exit_code: int,
    attempts: int,
    code: str,
    words: str,
) -> None:
    job = new_job(receiver, ttl_seconds=0)
    KubernetesBackend(api_server.client(), api_server.namespace, "lora-trainer").create(job)
    for _ in range(attempts):
        controller.finish(name_of(job), exit_code, SOFTWARE)
    controller.expire_ttl(name_of(job))
    wait_until(lambda: not api_server.all("pods"), what="its pods are gone")
    with watching(api_server.client(), api_server.namespace):
        wait_told(receiver, "failed")
        wait_until(lambda: api_server.get("jobs", name_of(job)) is None, what="the Job is gone")
    told = receiver.patches[-1].json
    assert told["failure_code"] == code
    assert words in told["failure_reason"]
    assert "pods are gone" in told["failure_reason"]


def test_8_a_permanent_refusal_is_parked_where_kubectl_describe_shows_it(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    job = new_job(receiver)
    receiver.answer = lambda patch: Answer(410 if patch.status == "completed" else 200)
    with watching(api_server.client(), api_server.namespace) as watch:
        watch.backend.create(job)
        controller.finish(name_of(job), 0, RESULT)
        wait_until(lambda: is_released(api_server, name_of(job)), what="the finalizer is gone")
        assert (
            "completed: the backend answered 410" in annotations(api_server, name_of(job))[PARKED_ANNOTATION]
        )
        wait_until(lambda: any(event["reason"] == "StatusParked" for event in api_server.all("events")))
        # Whoever mends the backend removes the annotation, and it is told again.
        receiver.answer = None
        watch.backend.patch(name_of(job), {"metadata": {"annotations": {TERMINAL_ANNOTATION: None}}})
        wait_told(receiver, "processing", "completed")
        wait_until(lambda: is_released(api_server, name_of(job)))


def test_a_dead_backend_is_told_in_order_once_it_is_back(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    job = new_job(receiver)
    receiver.answer = lambda _patch: Answer(503)
    with watching(api_server.client(), api_server.namespace) as watch:
        watch.backend.create(job)
        controller.finish(name_of(job), 0, RESULT)
        receiver.wait_for(lambda patches: len(patches) >= 3)
        assert names.FINALIZER in finalizers(api_server, name_of(job))
        receiver.answer = None
        wait_told(receiver, "processing", "completed")
    assert {patch.status for patch in receiver.patches if patch.answered == 503} == {"processing"}


def test_retry_after_is_not_undercut_by_a_change_of_the_job(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    job = new_job(receiver)
    receiver.script.append(Answer(503, {"Retry-After": "1"}))
    with watching(api_server.client(), api_server.namespace) as watch:
        watch.backend.create(job)
        controller.start_pod(name_of(job))
        receiver.wait_for(lambda patches: len(patches) == 1)
        controller.finish(name_of(job), 0, RESULT)
        wait_told(receiver, "processing", "completed")
    first, second = receiver.patches[:2]
    assert second.monotonic - first.monotonic >= 0.95


def test_what_was_told_is_written_down_though_the_api_server_failed_meanwhile(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    """A release without the annotation lets the next dispatcher tell everything again."""
    job = new_job(receiver)
    with watching(api_server.client(), api_server.namespace) as watch:
        watch.backend.create(job)
        controller.start_pod(name_of(job))
        wait_told(receiver, "processing")
        wait_until(lambda: len(annotations(api_server, name_of(job))) == 1)
        fault = api_server.inject(Fault(500, verb="patch", resource="jobs", times=2))
        controller.finish(name_of(job), 0, RESULT)
        wait_until(lambda: is_released(api_server, name_of(job)))
        assert fault.hits == 2
        assert annotations(api_server, name_of(job))[TERMINAL_ANNOTATION].startswith("completed ")
    with watching(api_server.client(), api_server.namespace) as watch:
        wait_until(lambda: watch.backend.snapshot(name_of(job)))
    assert [patch.status for patch in receiver.patches] == ["processing", "completed"]


def test_progress_of_the_log_reaches_the_backend_between_processing_and_completed(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    job = new_job(receiver)
    with watching(api_server.client(), api_server.namespace, progress=0.2) as watch:
        watch.backend.create(job)
        pod = controller.start_pod(name_of(job))
        api_server.write_log(pod, "epoch 10/100  loss 0.5  ETA 0:01:30\n")
        receiver.wait_for(lambda patches: any("progress" in (patch.json or {}) for patch in patches))
        controller.finish(name_of(job), 0, RESULT)
        wait_told(receiver, "processing", "completed")
    (progress,) = [patch.json["progress"] for patch in receiver.patches if "progress" in patch.json]
    assert progress == {
        "current_epoch": 10,
        "total_epochs": 100,
        "progress_percent": 10.0,
        "estimated_seconds": 90,
    }
    assert receiver.patches[-1].status == "completed"


def test_a_rerun_by_hand_is_adopted_and_told(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    """`kubectl create job --from=cronjob` makes a Job with the labels and a STYLE_ID, and nothing else."""
    job = new_job(receiver, environment={"STYLE_ID": "42"})
    job["metadata"]["name"] = "rerun-42"
    del job["metadata"]["finalizers"]
    del job["spec"]["template"]["metadata"]["annotations"]
    batch_api(api_server).create_namespaced_job(api_server.namespace, job)
    with watching(api_server.client(), api_server.namespace, backend_url=receiver.url):
        wait_until(lambda: names.FINALIZER in finalizers(api_server, "rerun-42"))
        controller.finish("rerun-42", 0, RESULT)
        wait_told(receiver, "processing", "completed")
    assert receiver.patches[-1].json["task_id"] is None
    assert receiver.patches[-1].json["style_id"] == 42


def test_jobs_of_another_instance_are_left_alone(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    other, ours = new_job(receiver, "other", 1, instance="staging"), new_job(receiver, "ours", 2)
    with watching(api_server.client(), api_server.namespace) as watch:
        watch.backend.create(other)
        watch.backend.create(ours)
        controller.finish(name_of(other), 0, RESULT)
        controller.finish(name_of(ours), 0, RESULT)
        wait_told(receiver, "processing", "completed", style=2)
    assert told(receiver, 1) == []
    assert finalizers(api_server, name_of(other)) == [names.FINALIZER]


def test_5_one_job_that_cannot_be_relayed_does_not_stop_the_rest(
    api_server: ApiServer, controller: JobController, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = new_job(receiver, "bad", 1), new_job(receiver, "good", 2)
    with watching(api_server.client(), api_server.namespace) as watch:
        real = watch.relay._take

        def take(step: Any, job: Any, *rest: Any) -> Any:
            if job["metadata"]["name"] == name_of(bad):
                raise RuntimeError("a bug")
            return real(step, job, *rest)

        monkeypatch.setattr(watch.relay, "_take", take)
        for job in (bad, good):
            watch.backend.create(job)
            controller.finish(name_of(job), 0, RESULT)
        wait_told(receiver, "processing", "completed", style=2)


def test_a_lost_event_or_an_unreadable_log_loses_no_status(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    api_server.inject(Fault(500, verb="create", resource="events", times=99))
    api_server.inject(Fault(500, verb="get", resource="pods/log", times=99))
    job = new_job(receiver)
    with watching(api_server.client(), api_server.namespace, progress=0.1) as watch:
        watch.backend.create(job)
        controller.start_pod(name_of(job))
        wait_told(receiver, "processing")
        wait_until(lambda: api_server.count("get", "pods/log") > 0)
        controller.finish(name_of(job), 0, RESULT)
        wait_told(receiver, "processing", "completed")


def test_ten_failed_job_patches_make_no_status_wait_and_none_be_given_up(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    """They counted as failures of the backend: its first 503 was taken for the last of many."""
    job = new_job(receiver)
    del job["metadata"]["finalizers"]
    fault = api_server.inject(Fault(503, verb="patch", resource="jobs", containing=b"finalizers", times=3))
    receiver.script.append(Answer(503))
    with watching(api_server.client(), api_server.namespace, give_up=timedelta(0)):
        batch_api(api_server).create_namespaced_job(api_server.namespace, job)
        wait_until(lambda: fault.hits == 3)
        controller.finish(name_of(job), 0, RESULT)
        wait_told(receiver, "processing", "completed")
    assert PARKED_ANNOTATION not in annotations(api_server, name_of(job))


def test_the_events_of_a_job_tell_its_story(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    job = new_job(receiver)
    with watching(api_server.client(), api_server.namespace) as watch:
        watch.backend.create(job)
        controller.finish(name_of(job), 0, RESULT)

        def ours() -> list[str]:
            return [
                event["message"]
                for event in api_server.all("events")
                if event["source"].get("component") == "lora-trainer-dispatcher"
                and event["involvedObject"]["name"] == name_of(job)
            ]

        wait_until(lambda: len(ours()) == 2)
    assert any("processing" in text for text in ours())
    assert any("completed" in text for text in ours())


@pytest.mark.parametrize(
    ("exit_code", "words", "statuses", "code"),
    [
        (0, RESULT, ("processing", "completed"), None),
        (65, BAD_IMAGE, ("processing", "failed"), "INVALID_IMAGES"),
    ],
)
def test_a_watch_of_pods_that_is_behind_the_jobs_makes_no_status_false(
    api_server: ApiServer,
    controller: JobController,
    receiver: Receiver,
    exit_code: int,
    words: str,
    statuses: tuple[str, ...],
    code: str | None,
) -> None:
    """Complete seen before the pod's last words was once told as failed: no word on the file."""
    job = new_job(receiver)
    with watching(api_server.client(), api_server.namespace) as watch:
        watch.backend.create(job)
        wait_until(lambda: watch.backend.snapshot(name_of(job)))
        blind = api_server.inject(Fault(hang=True, verb="watch", resource="pods"))
        api_server.inject(Fault(hang=True, verb="watch", resource="pods", times=99))
        wait_until(lambda: api_server.open_watches == 2)
        api_server.end_watches("close")
        wait_until(lambda: blind.hits == 1)
        controller.finish(name_of(job), exit_code, words)
        wait_told(receiver, *statuses)
        api_server.clear_faults()
        api_server.release_hangs()
        wait_until(lambda: api_server.open_watches == 2)
    assert receiver.patches[-1].json.get("failure_code") == code
