"""What one machine's Job controller does next: the rules of batch/v1, decided from dicts alone."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dispatcher.backends.local_status import Finish, Nothing, Remove, StartPod, StopPods, next_action
from dispatcher.job import JobOptions, build_job, load_template
from job_contract import names
from job_contract.request import TrainingRequest

TEMPLATE = load_template(None)
NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
BACKOFF = timedelta(seconds=10)


def job(**spec: Any) -> dict[str, Any]:
    request = TrainingRequest(style_id=42, image_paths=["/a"], task_id="t")
    built = build_job(request, TEMPLATE, JobOptions())
    built["spec"] |= spec
    built["status"] = {}
    return built


def pod(
    exit_code: int | None, *, began: float = 0, ended: float = 1, disrupted: bool = False
) -> dict[str, Any]:
    """Return an attempt; began and ended are seconds after NOW, exit_code None is one that runs."""
    state: dict[str, Any] = {"running": {}}
    if exit_code is not None:
        state = {"terminated": {"exitCode": exit_code, "finishedAt": at(ended).isoformat()}}
    return {
        "metadata": {"name": "p", "creationTimestamp": at(began).isoformat()},
        "status": {
            "startTime": at(began).isoformat(),
            "conditions": [{"type": "DisruptionTarget", "status": "True"}] if disrupted else [],
            "containerStatuses": [{"name": names.CONTAINER_NAME, "state": state}],
        },
    }


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def action(job: dict[str, Any], *pods: dict[str, Any], now: float = 0) -> Any:
    return next_action(job, pods, at(now), BACKOFF)


def verdict(job: dict[str, Any], *pods: dict[str, Any], now: float = 0) -> list[tuple[str, str]]:
    """Return type and reason of the conditions that the Job gets."""
    finish = action(job, *pods, now=now)
    assert isinstance(finish, Finish), finish
    return [(condition["type"], condition["reason"]) for condition in finish.conditions]


def finished(seconds_ago: float, **spec: Any) -> dict[str, Any]:
    over = job(**spec)
    over["status"]["conditions"] = [
        {"type": "Complete", "status": "True", "lastTransitionTime": at(-seconds_ago).isoformat()}
    ]
    return over


def test_a_new_job_starts_at_once() -> None:
    assert action(job()) == StartPod(NOW)


def test_a_suspended_job_starts_no_pod_and_stops_the_one_that_runs() -> None:
    assert action(job(suspend=True)) == Nothing()
    assert action(job(suspend=True), pod(None)) == StopPods()


def test_a_running_job_is_looked_at_again_at_its_deadline() -> None:
    assert action(job(activeDeadlineSeconds=60), pod(None), now=20) == Nothing(at(60))


@pytest.mark.parametrize(("failures", "wait"), [(1, 10), (2, 20), (3, 40)])
def test_retries_wait_ten_seconds_and_twice_that_each_time(failures: int, wait: float) -> None:
    pods = [pod(69, began=n, ended=n + 1) for n in range(failures)]
    assert action(job(), *pods, now=failures) == StartPod(at(failures + wait))


def test_the_back_off_ends_at_six_minutes() -> None:
    pods = [pod(69)] * 12
    assert action(job(backoffLimit=20, activeDeadlineSeconds=None), *pods) == StartPod(at(1 + 360))


def test_the_fourth_failure_is_the_last() -> None:
    expected = [("FailureTarget", "BackoffLimitExceeded"), ("Failed", "BackoffLimitExceeded")]
    assert verdict(job(), *[pod(70)] * 4) == expected
    assert isinstance(action(job(), *[pod(70)] * 3), StartPod)


@pytest.mark.parametrize("code", [64, 65, 78])
def test_a_code_that_no_retry_can_help_fails_the_job_at_once(code: int) -> None:
    assert verdict(job(), pod(code)) == [
        ("FailureTarget", "PodFailurePolicy"),
        ("Failed", "PodFailurePolicy"),
    ]


def test_exit_0_completes_the_job_whatever_came_before() -> None:
    conditions = verdict(job(), pod(70), pod(0, began=20, ended=30), now=30)
    assert [kind for kind, _ in conditions] == ["SuccessCriteriaMet", "Complete"]


def test_disruptions_cost_no_retry_but_never_follow_at_once() -> None:
    """A pod that is lost as soon as it starts would else be started thousands of times a minute."""
    pods = [pod(75, disrupted=True)] * 9
    assert action(job(), *pods, now=1) == StartPod(at(11))


def test_a_job_past_its_deadline_is_stopped_and_then_fails_for_that_reason() -> None:
    late = job(activeDeadlineSeconds=60)
    assert action(late, pod(None), now=60) == StopPods()
    # Whatever policy would have made of a pod that was stopped.
    stopped = pod(75, ended=61, disrupted=True)
    assert verdict(late, stopped, now=61)[-1] == ("Failed", "DeadlineExceeded")
    assert verdict(job(activeDeadlineSeconds=60, backoffLimit=0), pod(137, ended=61), now=61)[-1] == (
        "Failed",
        "DeadlineExceeded",
    )


def test_a_training_that_ended_in_time_is_completed_though_nobody_looked_until_after_the_deadline() -> None:
    conditions = verdict(job(activeDeadlineSeconds=60), pod(0, ended=59), now=10_000)
    assert conditions[-1][0] == "Complete"


def test_the_deadline_counts_no_time_in_which_nothing_ran() -> None:
    """A dispatcher that was off overnight must not fail the training that it interrupted."""
    interrupted = pod(75, ended=20, disrupted=True)
    resumed = pod(None, began=10_000)
    day = job(activeDeadlineSeconds=60)
    assert isinstance(action(day, interrupted, now=10_000), StartPod)
    assert action(day, interrupted, resumed, now=10_005) == Nothing(at(10_040))
    assert action(day, interrupted, resumed, now=10_040) == StopPods()


def test_a_finished_job_stays_for_its_ttl_and_for_as_long_as_somebody_holds_it() -> None:
    assert action(finished(5, ttlSecondsAfterFinished=60)) == Nothing(at(55))
    assert action(finished(61, ttlSecondsAfterFinished=60)) == Nothing()
    released = finished(61, ttlSecondsAfterFinished=60)
    released["metadata"]["finalizers"] = []
    assert action(released) == Remove()


def test_a_job_without_ttl_stays() -> None:
    over = finished(10**6, ttlSecondsAfterFinished=None)
    over["metadata"]["finalizers"] = []
    assert action(over) == Nothing()


def test_a_deleted_job_is_stopped_and_goes_when_nobody_holds_it() -> None:
    deleted = job()
    deleted["metadata"]["deletionTimestamp"] = NOW.isoformat()
    assert action(deleted, pod(None)) == StopPods()
    assert action(deleted, pod(75)) == Nothing()
    deleted["metadata"]["finalizers"] = []
    assert action(deleted, pod(75)) == Remove()
