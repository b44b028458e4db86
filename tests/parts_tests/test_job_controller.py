"""Jobs and pods go through the states that Kubernetes takes them through, by hand and by themselves."""

import json
from typing import Any

import pytest
from kubernetes import client

from tests.parts.api_server import ApiServer
from tests.parts.job_controller import JobController, Run
from tests.parts_tests.jobs import job


def conditions(jobs: Any, name: str) -> list[tuple[str, str]]:
    status = jobs.read_namespaced_job(name, "default").status
    return [(item.type, item.reason) for item in status.conditions or []]


def test_success_has_its_criteria_met_before_it_is_complete(
    jobs: Any, core: Any, controller: JobController
) -> None:
    jobs.create_namespaced_job("default", job("a"))
    pod = controller.start_pod("a")
    running = jobs.read_namespaced_job("a", "default").status
    assert (running.active, running.ready, running.start_time is None) == (1, 1, False)
    read = core.read_namespaced_pod(pod, "default")
    assert read.metadata.labels["batch.kubernetes.io/job-name"] == "a"
    assert read.metadata.owner_references[0].controller is True
    assert read.metadata.finalizers == ["batch.kubernetes.io/job-tracking"]
    assert read.status.container_statuses[0].state.running is not None
    controller.finish("a", 0, '{"model_path": "/models/a"}')
    assert conditions(jobs, "a") == [
        ("SuccessCriteriaMet", "CompletionsReached"),
        ("Complete", "CompletionsReached"),
    ]
    ended = jobs.read_namespaced_job("a", "default").status
    assert (ended.succeeded, ended.active, ended.completion_time is None) == (1, None, False)
    read = core.read_namespaced_pod(pod, "default")
    terminated = read.status.container_statuses[0].state.terminated
    assert (terminated.exit_code, terminated.reason, terminated.message) == (
        0,
        "Completed",
        '{"model_path": "/models/a"}',
    )
    assert read.metadata.finalizers is None


def test_failed_pods_are_retried_up_to_the_limit_and_told_by_an_event(
    jobs: Any, core: Any, controller: JobController
) -> None:
    jobs.create_namespaced_job("default", job("a"))
    controller.finish("a", 70)
    assert conditions(jobs, "a") == []
    assert jobs.read_namespaced_job("a", "default").status.failed == 1
    controller.oom("a")
    assert conditions(jobs, "a") == [
        ("FailureTarget", "BackoffLimitExceeded"),
        ("Failed", "BackoffLimitExceeded"),
    ]
    reasons = [event.reason for event in core.list_namespaced_event("default").items]
    assert reasons.count("SuccessfulCreate") == 2
    assert "BackoffLimitExceeded" in reasons


def test_exit_code_of_the_policy_fails_at_once_and_a_disruption_is_not_counted(
    jobs: Any, controller: JobController
) -> None:
    jobs.create_namespaced_job("default", job("a", backoffLimit=0))
    controller.preempt("a", exit_code=75)
    controller.evict("a")
    assert jobs.read_namespaced_job("a", "default").status.failed is None
    assert conditions(jobs, "a") == []
    pod = controller.finish("a", 65)
    assert conditions(jobs, "a") == [("FailureTarget", "PodFailurePolicy"), ("Failed", "PodFailurePolicy")]
    message = jobs.read_namespaced_job("a", "default").status.conditions[1].message
    assert message == (
        f"Container trainer for pod default/{pod} failed with exit code 65 matching FailJob rule at index 0"
    )


def test_deadline_ends_the_running_pod(jobs: Any, core: Any, controller: JobController) -> None:
    jobs.create_namespaced_job("default", job("a", activeDeadlineSeconds=60))
    controller.start_pod("a")
    controller.exceed_deadline("a")
    assert conditions(jobs, "a") == [("FailureTarget", "DeadlineExceeded"), ("Failed", "DeadlineExceeded")]
    assert core.list_namespaced_pod("default").items == []


def test_waiting_reasons_and_unschedulable_are_in_pod_and_events(
    jobs: Any, core: Any, controller: JobController
) -> None:
    jobs.create_namespaced_job("default", job("a"))
    pod = controller.create_pod("a")
    controller.unschedulable(pod, "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    scheduled = core.read_namespaced_pod(pod, "default").status.conditions[0]
    assert (scheduled.type, scheduled.status, scheduled.reason) == ("PodScheduled", "False", "Unschedulable")
    controller.wait_with(pod, "ImagePullBackOff", 'Back-off pulling image "trainer:1"')
    state = core.read_namespaced_pod(pod, "default").status.container_statuses[0].state
    assert state.waiting.reason == "ImagePullBackOff"
    selected = core.list_namespaced_event("default", field_selector=f"involvedObject.name={pod}").items
    assert {event.reason for event in selected} == {"FailedScheduling", "BackOff"}


def test_log_is_400_before_the_container_starts_and_then_its_last_lines(
    jobs: Any, core: Any, controller: JobController
) -> None:
    jobs.create_namespaced_job("default", job("a"))
    pod = controller.create_pod("a")
    controller.schedule(pod)
    with pytest.raises(client.ApiException) as caught:
        core.read_namespaced_pod_log(pod, "default")
    assert caught.value.status == 400
    controller.run(pod)
    controller.write_log(pod, "epoch 1/2\nepoch 2/2")
    assert core.read_namespaced_pod_log(pod, "default", tail_lines=1).strip() == "epoch 2/2"


def test_pods_follow_a_job_that_is_gone(jobs: Any, core: Any, controller: JobController) -> None:
    """In the background its pods run on while a finalizer holds it, and are deleted with it."""
    jobs.create_namespaced_job("default", job("a"))
    pod = controller.start_pod("a")
    jobs.delete_namespaced_job("a", "default", propagation_policy="Background")
    assert core.read_namespaced_pod(pod, "default").metadata.deletion_timestamp is None
    jobs.patch_namespaced_job("a", "default", [{"op": "remove", "path": "/metadata/finalizers"}])
    assert core.read_namespaced_pod(pod, "default").metadata.deletion_timestamp is not None
    controller.end_deleted_pods()
    assert core.list_namespaced_pod("default").items == []


def test_foreground_deletion_waits_for_the_pods_and_orphaning_keeps_them(
    jobs: Any, core: Any, api_server: ApiServer, controller: JobController
) -> None:
    for name in ("a", "b"):
        manifest = job(name)
        del manifest["metadata"]["finalizers"]
        jobs.create_namespaced_job("default", manifest)
        controller.start_pod(name)
    jobs.delete_namespaced_job("a", "default", propagation_policy="Foreground")
    held = api_server.get("jobs", "a")
    assert held is not None
    assert held["metadata"]["finalizers"] == ["foregroundDeletion"]
    controller.end_deleted_pods()
    assert api_server.get("jobs", "a") is None
    jobs.delete_namespaced_job("b", "default")  # batch/v1 orphans unless it is told otherwise
    [pod] = core.list_namespaced_pod("default").items
    assert pod.metadata.owner_references is None


def test_jobs_run_by_themselves_with_retries(
    jobs: Any, api_server: ApiServer, controller: JobController
) -> None:
    controller.run_all(lambda job, attempt: Run(70, seconds=0.05) if attempt == 1 else Run(log="epoch 1/1"))
    for number in range(20):
        jobs.create_namespaced_job("default", job(f"j{number}"))

    def all_complete() -> bool:
        statuses = [item["status"] for item in api_server.all("jobs")]
        return all(status.get("succeeded") == 1 and status.get("failed") == 1 for status in statuses)

    api_server.wait_for(all_complete)
    assert {tuple(conditions(jobs, f"j{number}"))[-1][0] for number in range(20)} == {"Complete"}
    message = api_server.all("pods")[-1]["status"]["containerStatuses"][0]["state"]["terminated"]
    assert "model_path" in json.loads(message.get("message", '{"model_path": ""}'))


def test_suspended_job_waits_and_then_runs(
    jobs: Any, api_server: ApiServer, controller: JobController
) -> None:
    controller.run_all(lambda job, attempt: Run(seconds=None))
    jobs.create_namespaced_job("default", job("a", suspend=True))
    api_server.wait_for(lambda: conditions(jobs, "a") == [("Suspended", "JobSuspended")])
    assert api_server.all("pods") == []
    jobs.patch_namespaced_job("a", "default", {"spec": {"suspend": False}})
    api_server.wait_for(lambda: jobs.read_namespaced_job("a", "default").status.ready == 1)
    assert conditions(jobs, "a") == [("Suspended", "JobResumed")]
    jobs.patch_namespaced_job("a", "default", {"spec": {"suspend": True}})
    api_server.wait_for(lambda: api_server.all("pods") == [])
    assert jobs.read_namespaced_job("a", "default").status.failed is None


def test_deadline_and_ttl_pass_by_themselves_and_the_finalizer_holds_the_job(
    jobs: Any, api_server: ApiServer, controller: JobController
) -> None:
    controller.run_all(lambda job, attempt: Run(seconds=None))
    jobs.create_namespaced_job("default", job("a", activeDeadlineSeconds=1, ttlSecondsAfterFinished=0))

    def held() -> bool:
        stored = api_server.get("jobs", "a")
        return stored is not None and "deletionTimestamp" in stored["metadata"]

    api_server.wait_for(held)
    assert conditions(jobs, "a")[-1] == ("Failed", "DeadlineExceeded")
    jobs.patch_namespaced_job("a", "default", [{"op": "remove", "path": "/metadata/finalizers/0"}])
    api_server.wait_for(lambda: api_server.get("jobs", "a") is None)
    assert api_server.all("pods") == []
