"""The failures that message-to-Job dispatchers are known for, each against an API server on a socket."""

import dataclasses
import io
import json
import logging
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kubernetes import config

from dispatcher.backends.kubernetes import KubernetesBackend
from dispatcher.backends.kubernetes_client import load_client
from dispatcher.errors import (
    BackendBusyError,
    BackendUnavailableError,
    DispatcherError,
    JobConflictError,
    JobRefusedError,
    StaleJobError,
)
from dispatcher.logs import configure_logs
from dispatcher.relay_step import PARKED_ANNOTATION, TERMINAL_ANNOTATION
from job_contract import names
from tests.dispatcher.cluster import (
    RESULT,
    annotations,
    batch_api,
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


@pytest.fixture
def backend(api_server: ApiServer) -> KubernetesBackend:
    return KubernetesBackend(api_server.client(), api_server.namespace, "lora-trainer")


def finalizers(api_server: ApiServer, name: str) -> list[str]:
    job = api_server.get("jobs", name)
    return list(job["metadata"].get("finalizers") or ()) if job else []


def is_released(api_server: ApiServer, name: str) -> bool:
    return names.FINALIZER not in finalizers(api_server, name)


# Creating


def test_creating_twice_makes_one_job(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver
) -> None:
    assert backend.create(new_job(receiver)) is True
    assert backend.create(new_job(receiver)) is False
    assert len(api_server.all("jobs")) == 1


def test_16_a_create_that_timed_out_but_committed_is_found_by_its_retry(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver
) -> None:
    api_server.inject(Fault(reset=True, after=True, verb="create", resource="jobs"))
    with pytest.raises(BackendUnavailableError):
        backend.create(new_job(receiver))
    assert backend.create(new_job(receiver)) is False
    assert len(api_server.all("jobs")) == 1


def test_16_a_taken_name_with_another_request_is_no_success(
    backend: KubernetesBackend, receiver: Receiver
) -> None:
    first, second = new_job(receiver), new_job(receiver)
    text = second["spec"]["template"]["metadata"]["annotations"]
    text[names.REQUEST_ANNOTATION] = text[names.REQUEST_ANNOTATION].replace("a.jpg", "b.jpg")
    backend.create(first)
    with pytest.raises(JobConflictError, match="task_id"):
        backend.create(second)


def test_14_a_409_that_is_not_already_exists_loses_no_message(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver
) -> None:
    """A quota that changes meanwhile answers a create with 409 "the object has been modified"."""
    api_server.inject(Fault(409, verb="create", resource="jobs"))
    with pytest.raises(BackendUnavailableError):
        backend.create(new_job(receiver))
    assert backend.create(new_job(receiver)) is True


def test_14_a_full_quota_is_busy_and_not_refused(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver
) -> None:
    api_server.job_quota = 1
    backend.create(new_job(receiver))
    with pytest.raises(BackendBusyError, match="exceeded quota"):
        backend.create(new_job(receiver, "task-2"))


def test_14_a_403_that_is_no_quota_is_not_busy(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver
) -> None:
    api_server.rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]
    with pytest.raises(BackendUnavailableError, match="403") as caught:
        backend.create(new_job(receiver))
    assert not isinstance(caught.value, BackendBusyError)


@pytest.mark.parametrize(("header", "seconds"), [({"Retry-After": "7"}, 7.0), ({}, None)])
def test_15_a_429_is_busy_for_as_long_as_it_says(
    backend: KubernetesBackend,
    api_server: ApiServer,
    receiver: Receiver,
    header: dict[str, str],
    seconds: float | None,
) -> None:
    api_server.inject(Fault(429, headers=header, verb="create", resource="jobs"))
    with pytest.raises(BackendBusyError) as caught:
        backend.create(new_job(receiver))
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize("status", [400, 403, 409, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("body", [b"<html>no JSON</html>", b"", b"[]", b'"x"', b"\xff"], ids=repr)
def test_15_a_body_that_is_not_json_breaks_nothing(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver, status: int, body: bytes
) -> None:
    api_server.inject(Fault(status, body=body, verb="create", resource="jobs"))
    with pytest.raises(DispatcherError):
        backend.create(new_job(receiver))


def test_a_manifest_that_the_cluster_never_takes_is_refused(
    backend: KubernetesBackend, receiver: Receiver
) -> None:
    job = new_job(receiver)
    job["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    with pytest.raises(JobRefusedError, match="restartPolicy"):
        backend.create(job)


def test_a_hanging_api_server_is_unavailable(
    api_server: ApiServer, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.backends.kubernetes._CREATE_TIMEOUT", (0.3, 0.3))
    backend = KubernetesBackend(api_server.client(), api_server.namespace, "lora-trainer")
    api_server.inject(Fault(hang=True, verb="create", times=9))
    with pytest.raises(BackendUnavailableError):
        backend.create(new_job(receiver))
    api_server.release_hangs()


def test_an_api_server_that_is_down_is_unavailable(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver
) -> None:
    api_server.stop()
    with pytest.raises(BackendUnavailableError):
        backend.create(new_job(receiver))
    api_server.start()
    assert backend.create(new_job(receiver))


@pytest.mark.parametrize(
    "fault",
    [Fault(500), Fault(200, body=b"<html>"), Fault(200, body=b"[]"), Fault(reset=True)],
    ids=["500", "HTML", "no object", "reset"],
)
def test_whatever_an_api_server_answers_to_a_list_of_jobs_is_jobs_or_an_error_of_ours(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver, fault: Fault
) -> None:
    backend.create(new_job(receiver))
    api_server.inject(dataclasses.replace(fault, verb="list", times=9))
    with pytest.raises(BackendUnavailableError):
        list(backend.jobs_now())
    api_server.clear_faults()
    assert [name_of(job) for job in backend.jobs_now()] == [name_of(new_job(receiver))]


# Patching


def test_a_patch_of_a_version_that_is_past_is_stale(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver
) -> None:
    job = new_job(receiver)
    backend.create(job)
    version = (api_server.get("jobs", name_of(job)) or {})["metadata"]["resourceVersion"]
    backend.patch(name_of(job), {"metadata": {"annotations": {"a": "1"}}}, version)
    with pytest.raises(StaleJobError):
        backend.patch(name_of(job), {"metadata": {"finalizers": []}}, version)
    assert finalizers(api_server, name_of(job)) == [names.FINALIZER]


def test_a_patch_of_a_job_that_is_gone_is_no_error(backend: KubernetesBackend) -> None:
    backend.patch("gone", {"metadata": {"annotations": {"a": "1"}}})


# Relaying


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


# Watching


def _complete(controller: JobController, receiver: Receiver, backend: KubernetesBackend, task: str) -> str:
    job = new_job(receiver, task, style=task)
    backend.create(job)
    controller.finish(name_of(job), 0, RESULT)
    return name_of(job)


@pytest.mark.parametrize("how", ["close", "reset", "expire"])
def test_2_a_watch_that_ends_leaves_no_gap(
    api_server: ApiServer, controller: JobController, receiver: Receiver, how: str
) -> None:
    with watching(api_server.client(), api_server.namespace) as watch:
        wait_until(lambda: api_server.open_watches == 2)
        _complete(controller, receiver, watch.backend, "before")
        api_server.end_watches(how)
        _complete(controller, receiver, watch.backend, "after")
        wait_told(receiver, "processing", "completed", style="before")
        wait_told(receiver, "processing", "completed", style="after")


@pytest.mark.parametrize("as_status", [False, True], ids=["in the stream", "as the status"])
def test_2_410_gone_lists_anew_and_leaves_no_gap(
    api_server: ApiServer, controller: JobController, receiver: Receiver, as_status: bool
) -> None:
    with watching(api_server.client(), api_server.namespace) as watch:
        wait_until(lambda: api_server.open_watches == 2)
        api_server.silence_watches()
        _complete(controller, receiver, watch.backend, "gap")
        api_server.compact(gone_as_status=as_status)
        lists = api_server.count("list", "jobs")
        api_server.end_watches("close")
        wait_until(lambda: api_server.count("list", "jobs") > lists, what="listed anew")
        api_server.resume_watches()
        wait_told(receiver, "processing", "completed", style="gap")


def test_1_a_watch_that_goes_silent_is_given_up(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    with watching(api_server.client(), api_server.namespace, silence_seconds=0.7) as watch:
        wait_until(lambda: api_server.open_watches >= 2)
        api_server.silence_watches()
        _complete(controller, receiver, watch.backend, "silent")
        wait_told(receiver, "processing", "completed", style="silent")
        api_server.resume_watches()


def test_1_bookmarks_keep_a_quiet_watch_alive(api_server: ApiServer) -> None:
    api_server.bookmark_interval = 0.2
    with watching(api_server.client(), api_server.namespace, silence_seconds=1.0) as watch:
        wait_until(lambda: api_server.open_watches == 2)
        lists, until = api_server.count("list", "jobs"), time.monotonic() + 2.0
        wait_until(lambda: time.monotonic() > until)
        assert api_server.count("list", "jobs") == lists
        assert watch.backend.silent_for() < 1.0


def test_3_a_delete_between_list_and_watch_is_seen(api_server: ApiServer, receiver: Receiver) -> None:
    """The watch goes on from the list's version, so what happens between the two is in it."""
    job = new_job(receiver)
    del job["metadata"]["finalizers"]
    batch_api(api_server).create_namespaced_job(api_server.namespace, job)
    hang = api_server.inject(Fault(hang=True, verb="watch", resource="jobs"))
    with watching(api_server.client(), api_server.namespace) as watch:
        wait_until(lambda: hang.hits == 1)
        assert watch.backend.snapshot(name_of(job))
        batch_api(api_server).patch_namespaced_job(
            name_of(job), api_server.namespace, {"metadata": {"finalizers": None}}
        )
        batch_api(api_server).delete_namespaced_job(name_of(job), api_server.namespace)
        api_server.release_hangs()
        wait_until(lambda: watch.backend.snapshot(name_of(job)) is None)
        assert name_of(job) in watch.changes


def test_4_api_errors_for_a_while_are_recovered_from(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    with watching(api_server.client(), api_server.namespace) as watch:
        wait_until(lambda: api_server.open_watches == 2)
        for verb, body in (("watch", None), ("list", b"<html>"), ("list", b"[]"), ("watch", b"{}")):
            api_server.inject(Fault(500 if body is None else 200, verb=verb, body=body))
        api_server.end_watches("reset")
        _complete(controller, receiver, watch.backend, "after")
        wait_told(receiver, "processing", "completed", style="after")


def test_4_an_api_server_that_restarts_is_come_back_to(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    with watching(api_server.client(), api_server.namespace) as watch:
        wait_until(lambda: api_server.open_watches == 2)
        api_server.stop()
        wait_until(lambda: watch.backend.silent_for() > 0.5)
        api_server.start()
        _complete(controller, receiver, watch.backend, "after")
        wait_told(receiver, "processing", "completed", style="after")


def test_a_server_that_hangs_up_on_every_watch_is_not_hammered(api_server: ApiServer) -> None:
    api_server.inject(Fault(200, body=b"", verb="watch", times=10_000))
    with watching(api_server.client(), api_server.namespace):
        until = time.monotonic() + 1.5
        wait_until(lambda: time.monotonic() > until)
    assert api_server.count("watch") < 40
    assert api_server.count("list") < 10


def test_many_jobs_are_listed_in_pages(api_server: ApiServer, receiver: Receiver) -> None:
    for number in range(520):
        job = new_job(receiver, f"t{number}", number)
        job["metadata"] |= {"uid": f"uid-{number}", "creationTimestamp": "2026-11-24T08:00:00Z"}
        api_server.put({**job, "status": {}})
    with watching(api_server.client(), api_server.namespace) as watch:
        assert len(watch.backend.names()) == 520
    assert api_server.count("list", "jobs") >= 2


def test_stopping_takes_no_time_though_watches_are_open(api_server: ApiServer) -> None:
    with watching(api_server.client(), api_server.namespace):
        wait_until(lambda: api_server.open_watches == 2)
        began = time.monotonic()
    assert time.monotonic() - began < 5


# Credentials


def test_20_a_token_rotated_on_disk_is_read_again(
    api_server: ApiServer, controller: JobController, receiver: Receiver, tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(api_server.token)
    api = api_server.client()
    configuration = api.configuration

    def refresh(configuration: Any) -> None:  # what load_incluster_config installs
        configuration.api_key["authorization"] = "Bearer " + token_file.read_text()

    configuration.refresh_api_key_hook = refresh
    with watching(api, api_server.namespace) as watch:
        wait_until(lambda: api_server.open_watches == 2)
        api_server.tokens = {"new-token": next(iter(api_server.tokens.values()))}
        api_server.end_watches("close")
        wait_until(lambda: any(request.status == 401 for request in api_server.requests))
        token_file.write_text("new-token")
        _complete(controller, receiver, watch.backend, "after")
        wait_told(receiver, "processing", "completed", style="after")


def test_20_the_kubeconfig_is_used_and_a_missing_one_is_said(
    api_server: ApiServer, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION",
        str(api_server.kubeconfig(tmp_path / "kubeconfig")),
    )
    api = load_client(connections=4)
    assert KubernetesBackend(api, api_server.namespace, "lora-trainer").create(new_job(receiver))
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "nowhere")
    )
    with pytest.raises(DispatcherError, match="KUBECONFIG"):
        load_client(connections=4)


@pytest.fixture
def captured() -> Iterator[io.StringIO]:
    """All log lines, as the program writes them."""
    text, root = io.StringIO(), logging.getLogger()
    handlers, level = root.handlers, root.level
    configure_logs("json", ["planted-secret"], logging.DEBUG)
    logging.StreamHandler.setStream(root.handlers[0], text)  # type: ignore[arg-type]
    yield text
    root.handlers, root.level = handlers, level


def test_20_no_log_line_has_a_secret_that_an_api_error_prints(
    api_server: ApiServer, controller: JobController, receiver: Receiver, captured: io.StringIO
) -> None:
    """ApiException prints headers and body: both hold what must not be in a log."""
    secret = "planted-secret"
    body = json.dumps({"message": f"denied: https://host/x?sig={secret} Bearer {secret}"}).encode()
    leak = {"Set-Cookie": secret, "X-Token": secret}
    with watching(api_server.client(), api_server.namespace) as watch:
        wait_until(lambda: api_server.open_watches == 2)
        for verb, resource in (("patch", "jobs"), ("watch", "jobs"), ("list", "pods"), ("create", "events")):
            api_server.inject(Fault(500, verb=verb, resource=resource, body=body, headers=leak))
        api_server.end_watches("reset")
        _complete(controller, receiver, watch.backend, "leak")
        wait_told(receiver, "processing", "completed", style="leak")
        api_server.inject(Fault(500, verb="create", resource="jobs", body=body, headers=leak))
        with pytest.raises(BackendUnavailableError) as caught:
            watch.backend.create(new_job(receiver, "x"))
        assert secret not in str(caught.value)
    assert "500" in captured.getvalue()
    assert secret not in captured.getvalue()


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


def test_events_are_written_again_after_a_token_file_was_empty_for_a_moment(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    """While the kubelet replaces it; the client's error for it once ended the thread that writes them."""
    api, empty = api_server.client(), threading.Event()

    def refresh(_configuration: object) -> None:
        if empty.is_set() and threading.current_thread().name == "events":
            empty.clear()
            raise config.ConfigException("Token file exists but empty.")

    api.configuration.refresh_api_key_hook = refresh
    job = new_job(receiver)
    with watching(api, api_server.namespace) as watch:
        empty.set()
        watch.backend.create(job)
        controller.finish(name_of(job), 0, RESULT)
        api_server.wait_for(
            lambda: [event for event in api_server.all("events") if event["reason"] == "StatusRelayed"]
        )
        assert not empty.is_set()


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


def test_concurrent_creates_of_one_job_make_one(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver
) -> None:
    created: list[bool] = []
    threads = [
        threading.Thread(target=lambda: created.append(backend.create(new_job(receiver)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(created) == [False] * 7 + [True]
    assert len(api_server.all("jobs")) == 1


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
