"""Literal statuses, as Kubernetes 1.31 and later write them, and what each of them means."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.diagnosis import VERDICT_ANNOTATION, Phase, diagnose
from job_contract.outcome import FailureCode, TrainingFailure, TrainingResult
from tests.dispatcher.statuses import (
    BAD_IMAGE,
    COMPLETE,
    CRITERIA_MET,
    DISRUPTED,
    FAILED,
    FAILURE_TARGET,
    RESULT,
    STARTED,
    SUSPENDED,
    condition,
    ended,
    job,
    pod,
    running,
    waiting,
)


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
