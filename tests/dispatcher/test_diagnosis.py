"""Literal statuses, as Kubernetes 1.31 and later write them, and what each of them means."""

import itertools
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.diagnosis import VERDICT_ANNOTATION, Phase, diagnose
from dispatcher.stuck import Unexplained
from job_contract.outcome import FailureCode, TrainingFailure, TrainingResult

RESULT = '{"model_path":"/models/42/lora_weights.safetensors","loss":0.1,"epochs":200,"seconds":61.5}'
BAD_IMAGE = '{"failure_code":"INVALID_IMAGES","failure_reason":"b.png is truncated; send it again."}'
STARTED = "2026-11-24T08:00:00Z"


def condition(kind: str, reason: str = "", message: str = "", status: str = "True") -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastProbeTime": STARTED,
        "lastTransitionTime": "2026-11-24T08:05:00Z",
    }


FAILURE_TARGET = condition(
    "FailureTarget", "BackoffLimitExceeded", "Job has reached the specified backoff limit"
)
FAILED = condition("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
CRITERIA_MET = condition(
    "SuccessCriteriaMet", "CompletionsReached", "Reached expected number of succeeded pods"
)
COMPLETE = condition("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
SUSPENDED = condition("Suspended", "JobResumed", "Job resumed", status="False")


def job(
    *conditions: dict[str, Any], deleting: bool = False, verdict: str = "", **status: Any
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "lora-42", "uid": "u", "creationTimestamp": STARTED}
    if deleting:
        metadata["deletionTimestamp"] = STARTED
    if verdict:
        metadata["annotations"] = {VERDICT_ANNOTATION: verdict}
    return {
        "metadata": metadata,
        "spec": {"activeDeadlineSeconds": 7200},
        "status": {"conditions": list(conditions), **status} if conditions else status,
    }


def pod(
    state: dict[str, Any] | None = None, name: str = "p1", created: str = STARTED, **status: Any
) -> dict[str, Any]:
    containers = [{"name": "trainer", "image": "trainer:1", "state": state}] if state is not None else []
    sidecar = {"name": "sidecar", "state": {"running": {"startedAt": STARTED}}}
    return {
        "metadata": {"name": name, "creationTimestamp": created},
        "status": {"phase": "Pending", "containerStatuses": [sidecar, *containers], **status},
    }


def ended(code: int, message: str = "", reason: str = "", **more: Any) -> dict[str, Any]:
    terminated = {
        "exitCode": code,
        "reason": reason or ("Error" if code else "Completed"),
        "startedAt": STARTED,
    }
    return pod(
        {"terminated": {**terminated, **({"message": message} if message else {})}},
        **{"phase": "Failed" if code else "Succeeded", **more},
    )


def running(name: str = "p1", created: str = STARTED) -> dict[str, Any]:
    return pod({"running": {"startedAt": STARTED}}, name, created, phase="Running")


def waiting(reason: str, message: str = "", **status: Any) -> dict[str, Any]:
    return pod({"waiting": {"reason": reason, "message": message}}, **status)


DISRUPTED = condition("DisruptionTarget", "PreemptionByScheduler", "default-scheduler: preempting")


def failure(job_: dict[str, Any], *pods: dict[str, Any]) -> TrainingFailure:
    diagnosis = diagnose(job_, pods)
    assert diagnosis.phase is Phase.FAILED
    assert diagnosis.failure
    return diagnosis.failure


# What goes well


@pytest.mark.parametrize("order", list(itertools.permutations([SUSPENDED, CRITERIA_MET, COMPLETE])))
def test_complete_counts_wherever_its_condition_stands(order: tuple[dict[str, Any], ...]) -> None:
    diagnosis = diagnose(job(*order, succeeded=1), [ended(0, RESULT)])
    assert diagnosis.phase is Phase.COMPLETED
    assert diagnosis.result == TrainingResult.model_validate_json(RESULT)
    assert diagnosis.started


def test_failures_before_the_pod_that_succeeded_do_not_matter() -> None:
    pods = [
        ended(0, RESULT, name="p2", created="2026-11-24T08:10:00Z"),
        ended(70, BAD_IMAGE, name="p1"),
    ]
    diagnosis = diagnose(job(CRITERIA_MET, COMPLETE, succeeded=1, failed=1), pods)
    assert (diagnosis.phase, diagnosis.failure) == (Phase.COMPLETED, None)


def test_a_container_that_runs_has_started() -> None:
    diagnosis = diagnose(job(active=1, ready=1), [running()])
    assert (diagnosis.phase, diagnosis.started, diagnosis.running_pod) == (Phase.RUNNING, True, "p1")


@pytest.mark.parametrize(
    "pods",
    [
        [],
        [pod()],
        [waiting("ContainerCreating")],
        [waiting("PodInitializing")],
        [pod({})],
        [{"metadata": {"name": "p"}, "status": {}}],
        [{"metadata": {"name": "p"}}],
    ],
    ids=["no pod", "no node", "creating", "initializing", "no state", "empty status", "no status"],
)
def test_nothing_has_started_while_the_container_does_not_run(pods: list[dict[str, Any]]) -> None:
    diagnosis = diagnose(job(active=1), pods)
    assert (diagnosis.phase, diagnosis.started, diagnosis.stuck) == (Phase.WAITING, False, None)
    assert len(pods) == 0 or diagnosis.unexplained is None


# What is no end, though it looks like one


def test_a_failed_pod_whose_retry_is_due_is_no_failure() -> None:
    diagnosis = diagnose(job(failed=1), [ended(70, BAD_IMAGE)])
    assert (diagnosis.phase, diagnosis.started, diagnosis.failure) == (Phase.WAITING, True, None)


def test_counters_decide_nothing() -> None:
    assert diagnose(job(failed=4, active=1), [running()]).phase is Phase.RUNNING
    assert diagnose(job(succeeded=1), [ended(0, RESULT)]).phase is Phase.WAITING


@pytest.mark.parametrize(
    "target", [FAILURE_TARGET, CRITERIA_MET], ids=["FailureTarget", "SuccessCriteriaMet"]
)
def test_a_verdict_of_the_job_controller_waits_for_its_pods(target: dict[str, Any]) -> None:
    assert not diagnose(job(target, failed=4), [ended(70, BAD_IMAGE)]).terminal


@pytest.mark.parametrize("kind", ["Failed", "Complete", "FailureTarget"])
@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_a_condition_that_is_not_true_says_nothing(kind: str, status: str) -> None:
    assert not diagnose(job(condition(kind, status=status)), [running()]).terminal


# What goes wrong in the trainer


@pytest.mark.parametrize("order", list(itertools.permutations([SUSPENDED, FAILURE_TARGET, FAILED])))
def test_the_trainers_own_words_are_passed_on(order: tuple[dict[str, Any], ...]) -> None:
    told = failure(job(*order, failed=4), ended(70, BAD_IMAGE))
    assert told == TrainingFailure.model_validate_json(BAD_IMAGE)


def test_the_last_pod_to_fail_says_why() -> None:
    last = BAD_IMAGE.replace("b.png", "c.png")
    pods = [
        ended(70, last, name="a", created="2026-11-24T08:10:00Z"),
        ended(70, BAD_IMAGE, name="z", created="2026-11-24T08:05:00Z"),
    ]
    assert "c.png" in failure(job(FAILURE_TARGET, FAILED, failed=2), *pods).failure_reason


def test_pod_failure_policy_passes_on_the_trainers_words() -> None:
    policy = "Container trainer for pod default/p1 failed with exit code 65 matching FailJob rule at index 0"
    conditions = [condition(kind, "PodFailurePolicy", policy) for kind in ("FailureTarget", "Failed")]
    told = failure(job(*conditions, failed=1), ended(65, BAD_IMAGE))
    assert told.failure_code is FailureCode.INVALID_IMAGES


@pytest.mark.parametrize(
    ("the_pod", "code", "words"),
    [
        (ended(137, reason="OOMKilled"), FailureCode.OUT_OF_MEMORY, "memory limit"),
        (ended(1, BAD_IMAGE, reason="OOMKilled"), FailureCode.OUT_OF_MEMORY, "memory limit"),
        (ended(137), FailureCode.OUT_OF_MEMORY, "137"),
        (ended(139), FailureCode.TRAINING_ERROR, "139"),
        (ended(65), FailureCode.INVALID_REQUEST, "check the images and the request"),
        (ended(78, "cut off: {"), FailureCode.TRAINING_ERROR, "check its settings"),
        (ended(70, "Traceback: boom"), FailureCode.TRAINING_ERROR, "70"),
        (ended(128, "exec: python: not found", "StartError"), FailureCode.TRAINING_ERROR, "TRAINER_IMAGE"),
        (ended(127, "no such file", "ContainerCannotRun"), FailureCode.TRAINING_ERROR, "no such file"),
        (ended(75, conditions=[DISRUPTED]), FailureCode.EVICTED, "preempting"),
        (
            ended(75, '{"failure_code":"EVICTED","failure_reason":"Interrupted."}', conditions=[DISRUPTED]),
            FailureCode.EVICTED,
            "preempting",
        ),
        (ended(70, BAD_IMAGE, conditions=[DISRUPTED]), FailureCode.INVALID_IMAGES, "b.png"),
        (
            ended(137, conditions=[condition("DisruptionTarget", "TerminationByKubelet", "low on memory")]),
            FailureCode.EVICTED,
            "low on memory",
        ),
        (
            pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory."),
            FailureCode.EVICTED,
            "low on resource",
        ),
        (
            {
                **ended(137),
                "status": {
                    **ended(137)["status"],
                    "reason": "Evicted",
                    "message": "The node was low on resource: ephemeral-storage.",
                },
            },
            FailureCode.EVICTED,
            "ephemeral-storage",
        ),
        (
            pod(
                phase="Failed", reason="NodeLost", message="Node gpu-1 which was running pod is unresponsive"
            ),
            FailureCode.EVICTED,
            "unresponsive",
        ),
        (
            pod(
                phase="Failed",
                reason="UnexpectedAdmissionError",
                message="Allocate failed due to no healthy devices present; cannot allocate nvidia.com/gpu",
            ),
            FailureCode.GPU_UNAVAILABLE,
            "no healthy devices",
        ),
        (
            pod(phase="Failed", reason="OutOfnvidia.com/gpu", message="Node didn't have enough resource"),
            FailureCode.GPU_UNAVAILABLE,
            "enough resource",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:30],
)
def test_what_ended_the_last_pod(the_pod: dict[str, Any], code: FailureCode, words: str) -> None:
    told = failure(job(FAILURE_TARGET, FAILED, failed=4), the_pod)
    assert told.failure_code is code
    assert words in told.failure_reason


@pytest.mark.parametrize("pods", [[], [ended(70, BAD_IMAGE)], [ended(75, conditions=[DISRUPTED])]])
def test_the_deadline_goes_before_what_it_did_to_the_pod(pods: list[dict[str, Any]]) -> None:
    conditions = [
        condition(kind, "DeadlineExceeded", "Job was active longer than specified deadline")
        for kind in ("FailureTarget", "Failed")
    ]
    told = failure(job(*conditions), *pods)
    assert told.failure_code is FailureCode.DEADLINE_EXCEEDED
    assert "7200 seconds" in told.failure_reason


def by_policy(exit_code: int, index: int = 0) -> list[dict[str, Any]]:
    text = (
        f"Container trainer for pod default/lora-42-x7k2p failed with exit code {exit_code} matching "
        f"FailJob rule at index {index}"
    )
    return [condition(kind, "PodFailurePolicy", text) for kind in ("FailureTarget", "Failed")]


@pytest.mark.parametrize(
    ("conditions", "code", "words"),
    [
        ((FAILURE_TARGET, FAILED), FailureCode.TRAINING_ERROR, "backoff limit"),
        (by_policy(64), FailureCode.INVALID_REQUEST, "the command in the Job template"),
        (by_policy(65), FailureCode.INVALID_REQUEST, "check the images and the request"),
        (by_policy(78), FailureCode.TRAINING_ERROR, "check its settings"),
        (by_policy(9), FailureCode.TRAINING_ERROR, "exit code 9 "),
        ([condition("Failed", "PodFailurePolicy")], FailureCode.TRAINING_ERROR, "PodFailurePolicy"),
        ([condition("Failed", "BackoffLimitExceeded")], FailureCode.TRAINING_ERROR, "Every attempt"),
        ([condition("Failed")], FailureCode.TRAINING_ERROR, "no reason"),
    ],
    ids=str,
)
def test_7_a_failed_job_whose_pods_are_gone_says_what_is_still_known_and_what_is_not(
    conditions: list[dict[str, Any]], code: FailureCode, words: str
) -> None:
    """A TTL of 0 that runs out while no dispatcher runs takes the pods and their last words first."""
    told = failure(job(*conditions, failed=1))
    assert told.failure_code is code
    assert words in told.failure_reason
    assert "its pods are gone, and with them what they had to say" in told.failure_reason


def test_7_the_exit_code_of_a_pods_name_is_not_the_trainers() -> None:
    text = "Pod default/exit code 65-x has condition DisruptionTarget matching FailJob rule at index 1"
    told = failure(job(condition("Failed", "BackoffLimitExceeded", text)))
    assert told.failure_code is FailureCode.TRAINING_ERROR


@pytest.mark.parametrize("message", ["", "done", BAD_IMAGE], ids=["none", "not ours", "a failure"])
def test_exit_0_without_the_trainers_word_on_the_file_is_not_completed(message: str) -> None:
    told = failure(job(CRITERIA_MET, COMPLETE, succeeded=1), ended(0, message))
    assert told.failure_code is FailureCode.STORAGE_ERROR


# What cannot start


@pytest.mark.parametrize(
    ("the_pod", "code", "words"),
    [
        (
            waiting("ImagePullBackOff", 'Back-off pulling image "trainer:1": not found'),
            FailureCode.IMAGE_PULL,
            "trainer:1",
        ),
        (waiting("ErrImagePull", "unauthorized"), FailureCode.IMAGE_PULL, "unauthorized"),
        (waiting("InvalidImageName", "invalid reference"), FailureCode.IMAGE_PULL, "trainer:1"),
        (
            waiting("CreateContainerConfigError", 'secret "lora-env" not found'),
            FailureCode.UNSCHEDULABLE,
            'secret "lora-env" not found',
        ),
        (
            pod(
                conditions=[
                    condition(
                        "PodScheduled",
                        "Unschedulable",
                        "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
                        status="False",
                    )
                ]
            ),
            FailureCode.UNSCHEDULABLE,
            "Insufficient nvidia.com/gpu",
        ),
        (
            pod(
                conditions=[
                    condition(
                        "PodScheduled",
                        "Unschedulable",
                        'persistentvolumeclaim "lora-trainer-models" not found',
                        status="False",
                    )
                ]
            ),
            FailureCode.UNSCHEDULABLE,
            "create the volume claim",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:30],
)
def test_a_pod_that_cannot_start_is_stuck_and_not_failed(
    the_pod: dict[str, Any], code: FailureCode, words: str
) -> None:
    diagnosis = diagnose(job(active=1), [the_pod])
    assert (diagnosis.phase, diagnosis.started) == (Phase.WAITING, False)
    assert diagnosis.stuck
    assert diagnosis.stuck.failure.failure_code is code
    assert words in diagnosis.stuck.failure.failure_reason


def test_the_grace_of_an_image_begins_when_the_pod_has_its_node() -> None:
    """A node may come 20 minutes after the pod, by an autoscaler."""
    stuck = diagnose(job(), [waiting("InvalidImageName", startTime="2026-11-24T08:20:00Z")]).stuck
    assert stuck
    assert stuck.since == datetime(2026, 11, 24, 8, 20, tzinfo=UTC)


def test_the_grace_of_the_scheduler_begins_when_it_found_no_node() -> None:
    unschedulable = condition("PodScheduled", "Unschedulable", "no nodes", status="False")
    stuck = diagnose(job(), [pod(conditions=[unschedulable])]).stuck
    assert stuck
    assert stuck.since == datetime(2026, 11, 24, 8, 5, tzinfo=UTC)


def test_a_retry_that_runs_is_not_stuck_because_an_earlier_pod_was() -> None:
    stuck = waiting("ImagePullBackOff")
    diagnosis = diagnose(job(), [running("p2", "2026-11-24T08:10:00Z"), stuck])
    assert (diagnosis.phase, diagnosis.stuck) == (Phase.RUNNING, None)


# What the Events say where no status does


def event(
    reason: str, message: str = "", at: str = "2026-11-24T08:01:00Z", about: str = "u"
) -> dict[str, Any]:
    return {
        "metadata": {"name": "e"},
        "involvedObject": {"uid": about},
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
        "eventTime": None,
    }


def creating(reason: str = "ContainerCreating", message: str = "", **status: Any) -> dict[str, Any]:
    """A pod that has its node, and no container yet."""
    the_pod = waiting(reason, message, startTime="2026-11-24T08:00:30Z", **status)
    the_pod["metadata"]["uid"] = "pod-uid"
    return the_pod


def at(minutes: int, seconds: int = 0) -> datetime:
    return datetime(2026, 11, 24, 8, minutes, seconds, tzinfo=UTC)


def seen(reason: str, message: str, *times: datetime, container: str = "trainer") -> dict[str, Any]:
    """An Event about the pod's container, counted up from the first to the last of these times."""
    counted = event(reason, message, times[-1].isoformat(), "pod-uid")
    counted["firstTimestamp"] = times[0].isoformat()
    counted["involvedObject"]["fieldPath"] = f"spec.containers{{{container}}}"
    return counted


QUOTA = (
    'Error creating: pods "lora-42-x7k2p" is forbidden: exceeded quota: gpus, '
    "requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=4, "
    "limited: requests.nvidia.com/gpu=4"
)


def stuck_by(pods: list[dict[str, Any]], *events: dict[str, Any]) -> TrainingFailure:
    diagnosis = diagnose(job(), pods, events)
    assert (diagnosis.phase, diagnosis.unexplained) == (Phase.WAITING, None)
    assert diagnosis.stuck
    return diagnosis.stuck.failure


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (QUOTA, ("exceeded quota: gpus", "raise the ResourceQuota")),
        (
            'Error creating: pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot',
            ("violates PodSecurity", "security context"),
        ),
        (
            'Error creating: pods "x" is forbidden: error looking up service account ns/trainer: '
            'serviceaccount "trainer" not found',
            ('serviceaccount "trainer" not found', "create the service account"),
        ),
        (
            'Error creating: pods "x" is forbidden: [maximum cpu usage per Container is 1, but limit is 2]',
            ("maximum cpu usage", "LimitRange"),
        ),
        (
            'Error creating: pods "x" is forbidden: no PriorityClass with name gold was found',
            ("gold", "create the PriorityClass"),
        ),
        (
            'Error creating: Internal error occurred: failed calling webhook "policy.example.org": timeout',
            ("policy.example.org", "admission webhook"),
        ),
        ("Error creating: something new", ("something new", "change the Job template")),
        ("", ("FailedCreate", "change the Job template")),
    ],
    ids=lambda value: str(value)[16:50],
)
def test_13_a_job_that_may_have_no_pod_is_stuck_by_what_the_cluster_forbids(
    message: str, words: tuple[str, str]
) -> None:
    told = stuck_by([], event("FailedCreate", message))
    assert told.failure_code is FailureCode.UNSCHEDULABLE
    for word in words:
        assert word in told.failure_reason
    assert "Error creating" not in told.failure_reason


@pytest.mark.parametrize(
    ("reason", "message", "words"),
    [
        (
            "FailedMount",
            'MountVolume.SetUp failed for volume "env" : secret "lora-env" not found',
            "lora-env",
        ),
        ("FailedMount", 'MountVolume.SetUp failed for volume "x" : configmap "plan" not found', "plan"),
        ("FailedAttachVolume", 'Multi-Attach error for volume "pvc-1" Volume is already used', "free it"),
        ("FailedMapVolume", "MapVolume.SetUpDevice failed", "SetUpDevice"),
        ("FailedCreatePodSandBox", 'plugin type="calico" failed (add)', "calico"),
    ],
)
def test_13_a_pod_whose_container_is_not_created_is_stuck_by_what_its_events_name(
    reason: str, message: str, words: str
) -> None:
    told = stuck_by([creating()], event(reason, message, about="pod-uid"))
    assert told.failure_code is FailureCode.UNSCHEDULABLE
    assert words in told.failure_reason


def test_without_events_a_training_that_does_not_start_names_what_to_ask_about() -> None:
    from_job, from_pod = diagnose(job(), []).unexplained, diagnose(job(), [creating()]).unexplained
    assert from_job == Unexplained(datetime(2026, 11, 24, 8, tzinfo=UTC), "u")
    assert from_pod == Unexplained(datetime(2026, 11, 24, 8, 0, 30, tzinfo=UTC), "pod-uid")


def test_a_retry_that_may_have_no_pod_is_asked_about_from_the_last_pods_end_on() -> None:
    last = ended(70, BAD_IMAGE)
    state = last["status"]["containerStatuses"][1]["state"]["terminated"]
    state["finishedAt"] = "2026-11-24T08:30:00Z"
    unexplained = diagnose(job(failed=1), [last]).unexplained
    assert unexplained == Unexplained(datetime(2026, 11, 24, 8, 30, tzinfo=UTC), "u")
    told = diagnose(job(failed=1), [last], [event("FailedCreate", QUOTA, "2026-11-24T08:31:00Z")]).stuck
    assert told
    assert "exceeded quota" in told.failure.failure_reason


@pytest.mark.parametrize(
    ("pods", "events"),
    [
        ([], [event("SuccessfulCreate"), event("FailedCreate", QUOTA)]),
        ([], [event("SuccessfulCreate", at="2026-11-24T08:02:00Z"), event("FailedCreate", QUOTA)]),
        ([], [event("FailedCreate", QUOTA, about="another")]),
        ([], [event("Suspended"), event("StatusParked")]),
        (
            [creating()],
            [
                event("FailedMount", "timed out", about="pod-uid"),
                event("Pulling", at="2026-11-24T08:09:00Z", about="pod-uid"),
            ],
        ),
        ([creating()], [event("FailedCreate", QUOTA), event("Scheduled", about="pod-uid")]),
    ],
    ids=[
        "created at once",
        "created since",
        "another Job's",
        "no failure",
        "pulls now",
        "the Job's, not the pod's",
    ],
)
def test_an_event_of_the_past_or_of_another_object_says_nothing(
    pods: list[dict[str, Any]], events: list[dict[str, Any]]
) -> None:
    """A big image that is pulled for long after a first mount failed is no failure."""
    diagnosis = diagnose(job(), pods, events)
    assert diagnosis.stuck is None
    assert diagnosis.unexplained


def test_the_event_that_names_what_is_missing_is_told_and_not_the_one_that_only_timed_out() -> None:
    named = event("FailedMount", 'secret "lora-env" not found', about="pod-uid")
    vague = event(
        "FailedMount",
        "Unable to attach or mount volumes: timed out waiting for the condition",
        "2026-11-24T08:05:00Z",
        "pod-uid",
    )
    for events in ([named, vague], [vague, named]):
        assert "lora-env" in stuck_by([creating()], *events).failure_reason
    assert "timed out" in stuck_by([creating()], vague).failure_reason


@pytest.mark.parametrize(
    "times",
    [
        {"lastTimestamp": None, "eventTime": "2026-11-24T08:02:00.123456Z"},
        {"lastTimestamp": None, "series": {"count": 9, "lastObservedTime": "2026-11-24T08:02:00.123456Z"}},
    ],
    ids=["eventTime", "series"],
)
def test_an_event_is_read_whoever_wrote_it(times: dict[str, Any]) -> None:
    seen = {**event("FailedCreate", QUOTA), **times}
    assert "exceeded quota" in stuck_by([], seen).failure_reason


def test_the_grace_of_what_events_say_begins_when_it_began() -> None:
    """A quota that one retry met for a moment, hours after the Job began, must not end it at once."""
    succeeded = event("SuccessfulCreate", at="2026-11-24T09:00:00Z")
    first = {**event("FailedCreate", QUOTA, "2026-11-24T10:05:00Z"), "firstTimestamp": "2026-11-24T10:00:00Z"}
    later = event("FailedCreate", QUOTA, "2026-11-24T10:10:00Z")
    stuck = diagnose(job(), [], [succeeded, later, first]).stuck
    assert stuck
    assert stuck.since == datetime(2026, 11, 24, 10, tzinfo=UTC)
    # One that is counted up over the whole life of the Job began anew after what went well.
    counted = {**first, "firstTimestamp": "2026-11-24T08:00:00Z"}
    stuck = diagnose(job(), [], [succeeded, counted]).stuck
    assert stuck
    assert stuck.since == datetime(2026, 11, 24, 9, tzinfo=UTC)


def test_a_pod_that_was_evicted_before_its_container_was_made_leaves_a_job_without_a_pod() -> None:
    evicted = creating(phase="Failed")
    evicted["status"] |= {"reason": "Evicted", "containerStatuses": []}
    assert diagnose(job(), [evicted]).unexplained == Unexplained(
        datetime(2026, 11, 24, 8, 0, 30, tzinfo=UTC), "u"
    )
    told = diagnose(job(), [evicted], [event("FailedCreate", QUOTA)]).stuck
    assert told
    assert "exceeded quota" in told.failure.failure_reason


@pytest.mark.parametrize("target", [FAILURE_TARGET, CRITERIA_MET])
def test_a_job_that_is_suspended_or_about_to_end_waits_for_nothing(target: dict[str, Any]) -> None:
    suspended = job()
    suspended["spec"]["suspend"] = True
    for the_job in (suspended, job(target)):
        diagnosis = diagnose(the_job, [], [event("FailedCreate", QUOTA)])
        assert (diagnosis.stuck, diagnosis.unexplained) == (None, None)


def test_a_job_that_was_resumed_has_its_grace_from_then_on() -> None:
    """Until the Job controller has seen that, startTime and Events are those of the time before."""
    before = [{**event("FailedCreate", QUOTA), "firstTimestamp": STARTED}]
    paused = condition("Suspended", "JobSuspended", "Job suspended")
    diagnosis = diagnose(job(paused, startTime=STARTED), [], before)
    assert (diagnosis.stuck, diagnosis.unexplained) == (None, None)
    resumed = job(SUSPENDED, startTime="2026-11-24T09:00:00Z")
    for pods in ([], [ended(70, BAD_IMAGE)]):
        stuck = diagnose(resumed, pods, before).stuck
        assert stuck
        assert stuck.since == datetime(2026, 11, 24, 9, tzinfo=UTC)


# Since when an image cannot be pulled, or a container not be made

PULL_FAILS = 'Failed to pull image "trainer:1": unexpected EOF'


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError"])
def test_what_the_kubelet_tries_again_is_asked_about_and_told_all_the_same(reason: str) -> None:
    stuck = diagnose(job(), [creating(reason, "it says why")]).stuck
    assert stuck
    assert (stuck.since, stuck.about) == (at(0, 30), "pod-uid")
    assert "it says why" in stuck.failure.failure_reason


@pytest.mark.parametrize("reason", ["InvalidImageName", "ErrImageNeverPull"])
def test_an_image_that_is_not_tried_again_needs_no_events(reason: str) -> None:
    stuck = diagnose(job(), [creating(reason)]).stuck
    assert stuck
    assert (stuck.since, stuck.about) == (at(0, 30), None)


def test_the_grace_of_a_pull_begins_when_it_first_failed() -> None:
    """Ten gigabytes that came well for 14 minutes and then broke off once: the kubelet pulls again."""
    events = [
        seen("Pulling", 'Pulling image "trainer:1"', at(1)),
        seen("Failed", PULL_FAILS, at(15)),
        seen("Failed", "Error: ErrImagePull", at(15), at(16)),
        seen("BackOff", 'Back-off pulling image "trainer:1"', at(15, 10), at(16, 10)),
    ]
    stuck = diagnose(job(), [creating("ErrImagePull")], events).stuck
    assert stuck
    assert (stuck.since, stuck.about, stuck.trying_since) == (at(15), None, None)


def test_a_pull_that_goes_on_after_one_that_failed_is_known_to_go_on() -> None:
    """The status shows the old failure until the new pull has ended."""
    failed = seen("Failed", PULL_FAILS, at(15))
    pulling = seen("Pulling", 'Pulling image "trainer:1"', at(1), at(16))
    stuck = diagnose(job(), [creating("ImagePullBackOff")], [failed, pulling]).stuck
    assert stuck
    assert (stuck.since, stuck.trying_since) == (at(15), at(16))
    again = seen("Failed", "Error: ErrImagePull", at(15), at(20))
    stuck = diagnose(job(), [creating("ErrImagePull")], [failed, pulling, again]).stuck
    assert stuck
    assert (stuck.since, stuck.trying_since) == (at(15), None)


def test_a_pull_that_has_succeeded_since_fails_no_more() -> None:
    events = [seen("Failed", PULL_FAILS, at(15)), seen("Pulled", "Successfully pulled", at(30))]
    stuck = diagnose(job(), [creating("ErrImagePull")], events).stuck
    assert stuck
    assert stuck.about == "pod-uid"


def test_what_happens_to_another_container_does_not_move_the_grace_of_the_trainer() -> None:
    events = [
        seen("Failed", PULL_FAILS, at(15), at(25)),
        seen("BackOff", "Back-off restarting failed container", at(2), at(26), container="sidecar"),
        seen("Pulled", "Successfully pulled", at(2), at(24), container="sidecar"),
    ]
    stuck = diagnose(job(), [creating("ErrImagePull")], events).stuck
    assert stuck
    assert (stuck.since, stuck.trying_since) == (at(15), None)


def test_the_grace_of_a_container_that_cannot_be_made_begins_after_its_pull() -> None:
    """Each try says first that the image is there; a pull that failed before has nothing to do with it."""
    events = [
        seen("Pulling", 'Pulling image "trainer:1"', at(1), at(3)),
        seen("Failed", PULL_FAILS, at(2)),
        seen("Failed", "Error: ErrImagePull", at(2)),
        seen("Pulled", "Successfully pulled image", at(15)),
        seen("Pulled", "already present on machine", at(16), at(25)),
        seen("Failed", 'Error: secret "lora-env" not found', at(15), at(25)),
    ]
    the_pod = creating("CreateContainerConfigError", 'secret "lora-env" not found')
    stuck = diagnose(job(), [the_pod], events).stuck
    assert stuck
    assert (stuck.since, stuck.about) == (at(15), None)
    assert "lora-env" in stuck.failure.failure_reason


# What others may have


@pytest.mark.parametrize(
    ("message", "for_room"),
    [
        ("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", True),
        ("0/3 nodes are available: 1 Insufficient memory, 2 node(s) had untolerated taint(s).", True),
        ("0/1 nodes are available: 1 Too many pods.", True),
        (
            "0/1 nodes are available: 1 node has pod using PersistentVolumeClaim with the same name and "
            "ReadWriteOncePod access mode.",
            True,
        ),
        ("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.", False),
        ('persistentvolumeclaim "lora-trainer-models" not found', False),
        ("", False),
    ],
    ids=lambda value: str(value)[:60],
)
def test_13_a_pod_without_a_node_lacks_room_where_others_may_have_it(message: str, for_room: bool) -> None:
    unschedulable = condition("PodScheduled", "Unschedulable", message, status="False")
    stuck = diagnose(job(), [pod(conditions=[unschedulable])]).stuck
    assert stuck
    assert stuck.for_room == for_room


@pytest.mark.parametrize(
    ("reason", "message", "for_room"),
    [
        ("FailedAttachVolume", 'Multi-Attach error for volume "pvc-1" Volume is already used', True),
        ("FailedMount", 'MountVolume.SetUp failed for volume "env" : secret "lora-env" not found', False),
        ("FailedCreatePodSandBox", 'plugin type="calico" failed (add)', False),
    ],
)
def test_13_a_volume_that_is_attached_elsewhere_is_lack_of_room(
    reason: str, message: str, for_room: bool
) -> None:
    stuck = diagnose(job(), [creating()], [event(reason, message, about="pod-uid")]).stuck
    assert stuck
    assert stuck.for_room == for_room


def test_13_a_quota_that_is_used_up_is_lack_of_room_and_a_missing_account_is_not() -> None:
    account = 'Error creating: pods "x" is forbidden: serviceaccount "trainer" not found'
    for message, for_room in ((QUOTA, True), (account, False)):
        stuck = diagnose(job(), [], [event("FailedCreate", message)]).stuck
        assert stuck
        assert stuck.for_room == for_room


# Deleted and given up

VERDICT = '{"failure_code":"IMAGE_PULL","failure_reason":"The image x cannot be pulled; check it."}'


def test_a_deleted_job_is_a_cancelled_training() -> None:
    for pods in ([], [running()], [ended(70, BAD_IMAGE)]):
        assert failure(job(deleting=True, active=1), *pods).failure_code is FailureCode.JOB_DELETED


def test_a_job_that_had_completed_when_it_was_deleted_is_completed() -> None:
    for conditions in ((), (CRITERIA_MET,), (CRITERIA_MET, COMPLETE)):
        diagnosis = diagnose(job(*conditions, deleting=True), [ended(0, RESULT)])
        assert diagnosis.phase is Phase.COMPLETED


def test_a_job_that_had_failed_when_it_was_deleted_failed_for_its_own_reason() -> None:
    told = failure(job(FAILURE_TARGET, FAILED, deleting=True), ended(70, BAD_IMAGE))
    assert told.failure_code is FailureCode.INVALID_IMAGES


def test_what_was_decided_once_stays_whatever_came_after() -> None:
    deadline = condition("Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
    assert failure(job(deadline, verdict=VERDICT)).failure_code is FailureCode.IMAGE_PULL
    assert failure(job(deleting=True, verdict=VERDICT)).failure_code is FailureCode.IMAGE_PULL
    assert (
        failure(job(deleting=True, verdict=VERDICT), ended(0, RESULT)).failure_code is FailureCode.IMAGE_PULL
    )


def test_a_training_that_completed_all_the_same_is_completed() -> None:
    assert diagnose(job(COMPLETE, verdict=VERDICT), [ended(0, RESULT)]).phase is Phase.COMPLETED


def test_a_verdict_that_cannot_be_read_is_none() -> None:
    assert failure(job(FAILED, verdict="{"), ended(70, BAD_IMAGE)).failure_code is FailureCode.INVALID_IMAGES


# Anything at all

TIMES = st.sampled_from([STARTED, "2026-11-24T08:05:00Z", "2026-11-24T08:05:00+00:00"])
WORDS = st.text(max_size=20) | st.sampled_from(["", RESULT, BAD_IMAGE, VERDICT])
REASONS = st.sampled_from(
    [
        "",
        "DeadlineExceeded",
        "ImagePullBackOff",
        "CreateContainerError",
        "Unschedulable",
        "OOMKilled",
        "Evicted",
        "ContainerCreating",
        "PodFailurePolicy",
        "BackoffLimitExceeded",
        "FailedCreate",
        "SuccessfulCreate",
        "FailedMount",
        "FailedCreatePodSandBox",
        "Pulling",
        "Pulled",
        "Failed",
        "BackOff",
    ]
)
UIDS = st.sampled_from(["u", "pod-uid", ""])


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


CONDITIONS = st.none() | st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(
                [
                    "Complete",
                    "Failed",
                    "FailureTarget",
                    "SuccessCriteriaMet",
                    "DisruptionTarget",
                    "PodScheduled",
                    "Suspended",
                ]
            ),
            "status": st.sampled_from(["True", "False", "Unknown"]),
        },
        optional={"reason": REASONS, "message": WORDS, "lastTransitionTime": TIMES | st.none()},
    )
)
STATES = optional(
    waiting=st.none() | optional(reason=REASONS, message=WORDS),
    running=st.none() | optional(startedAt=TIMES),
    terminated=st.none()
    | st.fixed_dictionaries(
        {"exitCode": st.integers(0, 255)}, optional={"reason": REASONS, "message": WORDS | st.none()}
    ),
)
PODS = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries(
            {"name": st.text(min_size=1)}, optional={"creationTimestamp": TIMES, "uid": UIDS}
        )
    },
    optional={
        "status": optional(
            phase=st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown"]),
            reason=REASONS,
            message=WORDS,
            startTime=TIMES,
            conditions=CONDITIONS,
            containerStatuses=st.none()
            | st.lists(
                st.fixed_dictionaries(
                    {"name": st.sampled_from(["trainer", "sidecar"])}, optional={"state": STATES}
                )
            ),
        )
    },
)
JOBS = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries(
            {"name": st.text(min_size=1)},
            optional={
                "uid": UIDS,
                "creationTimestamp": TIMES,
                "deletionTimestamp": TIMES,
                "annotations": st.none() | st.dictionaries(st.just(VERDICT_ANNOTATION), WORDS),
            },
        ),
        "spec": st.fixed_dictionaries(
            {"template": st.just({"spec": {"containers": [{"name": "trainer"}]}})},
            optional={"activeDeadlineSeconds": st.none() | st.integers(1)},
        ),
    },
    optional={
        "status": optional(
            conditions=CONDITIONS, failed=st.integers(), active=st.integers(), startTime=TIMES
        ),
    },
)
EVENTS = st.fixed_dictionaries(
    {},
    optional={
        "involvedObject": st.none() | optional(uid=UIDS),
        "reason": REASONS,
        "message": WORDS | st.none(),
        "lastTimestamp": TIMES | st.none(),
        "firstTimestamp": TIMES | st.none(),
        "eventTime": st.sampled_from(["2026-11-24T08:05:00.000001Z"]) | st.none(),
        "series": st.none() | optional(lastObservedTime=TIMES),
    },
)


@given(JOBS, st.lists(PODS, max_size=4), st.lists(EVENTS, max_size=4))
def test_no_status_and_no_event_raises_and_every_failure_has_a_sentence(
    job_: dict[str, Any], pods: list[dict[str, Any]], events: list[dict[str, Any]]
) -> None:
    diagnosis = diagnose(job_, pods, events)
    assert (diagnosis.failure is not None) == (diagnosis.phase is Phase.FAILED)
    assert (diagnosis.result is not None) == (diagnosis.phase is Phase.COMPLETED)
    assert diagnosis.running_pod is not None or diagnosis.phase is not Phase.RUNNING
    stuck = diagnosis.stuck.failure if diagnosis.stuck else None
    for told in (failure for failure in (diagnosis.failure, stuck) if failure):
        assert len(told.failure_reason.strip()) > 0
        assert len(json.dumps(told.failure_reason)) < 30_000
    assert diagnose(job_, list(reversed(pods)), events).phase is diagnosis.phase


@given(JOBS, st.lists(PODS, max_size=4), st.lists(EVENTS, max_size=4))
def test_events_only_explain_what_was_unexplained_and_their_order_does_not_matter(
    job_: dict[str, Any], pods: list[dict[str, Any]], events: list[dict[str, Any]]
) -> None:
    without, with_events = diagnose(job_, pods), diagnose(job_, pods, events)
    assert with_events == diagnose(job_, pods, list(reversed(events)))
    asked = without.stuck or without.unexplained
    if asked is None or asked.about is None:
        assert with_events == without
    elif with_events.stuck:
        assert with_events.stuck.since >= asked.since
        assert with_events.stuck.about in (None, asked.about)
    else:
        assert with_events == without
    assert with_events.phase is without.phase
