"""Every state that a Job can be in against everything that was told: what is due, and what never is."""

import itertools
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dispatcher.diagnosis import VERDICT_ANNOTATION, Diagnosis, Phase
from dispatcher.relay_memory import JobMemory
from dispatcher.relay_step import (
    PROCESSING_ANNOTATION,
    TERMINAL_ANNOTATION,
    Adopt,
    GiveUp,
    ReadEvents,
    Release,
    Start,
    Status,
    Step,
    Tell,
    TellProgress,
    Wait,
    next_step,
)
from dispatcher.stuck import Stuck, Unexplained
from dispatcher.style_lanes import WAITS_ANNOTATION
from job_contract import names
from job_contract.outcome import FailureCode, TrainingFailure, TrainingResult
from tests.dispatcher.cluster import new_job, watching
from tests.dispatcher.support import wait_until
from tests.parts.api_server import ApiServer
from tests.parts.job_controller import JobController
from tests.parts.receiver import Patch, Receiver

NOW = datetime(2026, 11, 24, 8, tzinfo=UTC)
GRACE = timedelta(minutes=10)
RESULT = TrainingResult(model_path="/m", epochs=1, seconds=1.0)
FAILURE = TrainingFailure(failure_code=FailureCode.TRAINING_ERROR, failure_reason="It broke; mend it.")
CANCELLED = TrainingFailure(failure_code=FailureCode.JOB_DELETED, failure_reason="It was cancelled.")
PULL = TrainingFailure(failure_code=FailureCode.IMAGE_PULL, failure_reason="No image; push it.")

DIAGNOSES = {
    "waiting": Diagnosis(Phase.WAITING, started=False),
    "retrying": Diagnosis(Phase.WAITING, started=True),
    "stuck": Diagnosis(Phase.WAITING, started=False, stuck=Stuck(NOW - GRACE, PULL)),
    "without room": Diagnosis(Phase.WAITING, started=False, stuck=Stuck(NOW - GRACE, PULL, for_room=True)),
    "undated": Diagnosis(Phase.WAITING, started=False, stuck=Stuck(NOW - GRACE, PULL, about="uid")),
    "unexplained": Diagnosis(Phase.WAITING, started=False, unexplained=Unexplained(NOW - GRACE, "uid")),
    "running": Diagnosis(Phase.RUNNING, started=True, running_pod="pod"),
    "completed": Diagnosis(Phase.COMPLETED, started=True, result=RESULT),
    "failed": Diagnosis(Phase.FAILED, started=True, failure=FAILURE),
    "never started": Diagnosis(Phase.FAILED, started=False, failure=FAILURE),
    "cancelled": Diagnosis(Phase.FAILED, started=True, failure=CANCELLED),
    "cancelled early": Diagnosis(Phase.FAILED, started=False, failure=CANCELLED),
    "cancelled and ending": Diagnosis(Phase.FAILED, started=True, failure=CANCELLED, running_pod="pod"),
}
FLAGS = ("held", "deleting", "processing_told", "terminal_told", "verdict", "suspended", "next")


def job(*flags: str) -> dict[str, Any]:
    annotations = {}
    for flag, name in (
        ("processing_told", PROCESSING_ANNOTATION),
        ("terminal_told", TERMINAL_ANNOTATION),
        ("verdict", VERDICT_ANNOTATION),
        ("suspended", WAITS_ANNOTATION),
    ):
        if flag in flags:
            annotations[name] = "1"
    metadata: dict[str, Any] = {"name": "j", "annotations": annotations}
    metadata["finalizers"] = ["other/finalizer", *([names.FINALIZER] if "held" in flags else [])]
    if "deleting" in flags:
        metadata["deletionTimestamp"] = "2026-11-24T08:00:00Z"
    return {"metadata": metadata, "spec": {"suspend": "suspended" in flags}}


def step(
    diagnosis: str, *flags: str, now: datetime = NOW, room_free_since: datetime | None = NOW - GRACE
) -> Step:
    return due_of(DIAGNOSES[diagnosis], *flags, now=now, room_free_since=room_free_since)


def due_of(
    diagnosis: Diagnosis, *flags: str, now: datetime = NOW, room_free_since: datetime | None = NOW - GRACE
) -> Step:
    return next_step(
        job(*flags),
        diagnosis,
        now=now,
        grace=GRACE,
        is_next_of_style="next" in flags,
        room_free_since=room_free_since,
    )


ALL = [
    (diagnosis, flags)
    for diagnosis in DIAGNOSES
    for count in range(len(FLAGS) + 1)
    for flags in itertools.combinations(FLAGS, count)
]


def test_nothing_is_told_after_the_last_word() -> None:
    for diagnosis, flags in ALL:
        if "terminal_told" in flags:
            assert isinstance(step(diagnosis, *flags), Release | Wait), (diagnosis, flags)


def test_a_job_is_let_go_only_when_its_end_was_told_and_nothing_runs() -> None:
    for diagnosis, flags in ALL:
        if isinstance(step(diagnosis, *flags), Release):
            assert "terminal_told" in flags, (diagnosis, flags)
            assert "held" in flags
            assert DIAGNOSES[diagnosis].running_pod is None


def test_no_finalizer_leaks_once_the_end_was_told() -> None:
    for diagnosis, flags in ALL:
        if {"terminal_told", "held"} <= set(flags) and DIAGNOSES[diagnosis].running_pod is None:
            assert step(diagnosis, *flags) == Release(), (diagnosis, flags)


def test_nothing_is_told_of_a_job_that_is_not_held() -> None:
    """Without the finalizer the Job could go before what was told is written down."""
    for diagnosis, flags in ALL:
        if "held" not in flags:
            assert isinstance(step(diagnosis, *flags), Adopt | Wait), (diagnosis, flags)
            if "deleting" in flags:
                assert step(diagnosis, *flags) == Wait()


def test_processing_is_told_once_the_container_has_started_and_not_before() -> None:
    for diagnosis, flags in ALL:
        if step(diagnosis, *flags) == Tell(Status.PROCESSING):
            assert DIAGNOSES[diagnosis].started, (diagnosis, flags)
            assert "processing_told" not in flags


def test_an_end_is_told_only_of_a_job_that_has_ended_and_after_processing_where_that_is_due() -> None:
    for diagnosis, flags in ALL:
        due = step(diagnosis, *flags)
        if due in (Tell(Status.COMPLETED), Tell(Status.FAILED)):
            assert DIAGNOSES[diagnosis].terminal, (diagnosis, flags)
            assert "processing_told" in flags or not DIAGNOSES[diagnosis].started
            assert (due == Tell(Status.COMPLETED)) == (diagnosis == "completed")


def test_every_held_job_that_ended_has_its_end_told_in_a_few_steps() -> None:
    """Carrying out each step in turn ends in Release or Wait with the end told, from any state."""
    for diagnosis, flags in ALL:
        if "held" not in flags or not DIAGNOSES[diagnosis].terminal:
            continue
        now = set(flags)
        for _ in range(5):
            match step(diagnosis, *now):
                case Tell(Status.PROCESSING):
                    now.add("processing_told")
                case Tell():
                    now.add("terminal_told")
                case GiveUp():
                    now.add("verdict")
                case Release() | Wait():
                    break
                case other:
                    pytest.fail(f"{other} of {diagnosis} {flags}")
        assert "terminal_told" in now, (diagnosis, flags)


def test_a_cancellation_is_written_down_before_it_is_told() -> None:
    assert step("cancelled", "held", "deleting", "processing_told") == GiveUp(CANCELLED)
    assert step("cancelled", "held", "deleting", "processing_told", "verdict") == Tell(Status.FAILED)


@pytest.mark.parametrize(
    ("diagnosis", "flags", "due"),
    [
        ("waiting", "", Adopt()),
        ("completed", "", Adopt()),
        ("waiting", "held", Wait()),
        ("retrying", "held processing_told", Wait()),
        ("retrying", "held", Tell(Status.PROCESSING)),
        ("running", "held", Tell(Status.PROCESSING)),
        ("running", "held processing_told", TellProgress("pod")),
        ("completed", "held", Tell(Status.PROCESSING)),
        ("completed", "held processing_told", Tell(Status.COMPLETED)),
        ("never started", "held", Tell(Status.FAILED)),
        ("waiting", "held suspended next", Start()),
        ("waiting", "held suspended", Wait()),
        ("completed", "terminal_told deleting", Wait()),
    ],
)
def test_what_is_due(diagnosis: str, flags: str, due: Step) -> None:
    assert step(diagnosis, *flags.split()) == due


def test_a_stuck_pod_has_its_grace_period() -> None:
    assert step("stuck", "held", now=NOW - timedelta(minutes=3)) == Wait(180.0)
    assert step("stuck", "held", now=NOW - timedelta(seconds=0)) == GiveUp(PULL)
    assert step("stuck", "held", "verdict") == Wait()


def test_events_are_read_only_when_the_grace_period_is_over() -> None:
    assert step("unexplained", "held", now=NOW - timedelta(minutes=3)) == Wait(180.0)
    assert step("unexplained", "held") == ReadEvents("uid")
    assert step("unexplained", "held", "verdict") == Wait()


def test_13_what_others_have_is_waited_for_while_they_train_and_for_a_grace_period_afterwards() -> None:
    """A backlog that one GPU works through must not fail as if there were none."""
    assert step("without room", "held", room_free_since=None) == Wait(600.0)
    assert step("without room", "held", room_free_since=NOW - timedelta(minutes=3)) == Wait(420.0)
    assert step("without room", "held", room_free_since=NOW - GRACE) == GiveUp(PULL)
    assert step("without room", "held", now=NOW - timedelta(minutes=3)) == Wait(180.0)
    assert step("without room", "held", "verdict", room_free_since=None) == Wait()
    # What no other training has is missing all the same.
    assert step("stuck", "held", room_free_since=None) == GiveUp(PULL)


def test_13_the_look_after_the_last_training_has_ended_is_not_late() -> None:
    """A look while it ran was at 8:00; it ended right after that, and the grace is over at 8:10."""
    assert step("without room", "held", room_free_since=None) == Wait(GRACE.total_seconds())
    assert step("without room", "held", now=NOW + GRACE, room_free_since=NOW) == GiveUp(PULL)


def test_events_are_asked_since_when_before_a_training_is_given_up() -> None:
    assert step("undated", "held", now=NOW - timedelta(minutes=3)) == Wait(180.0)
    assert step("undated", "held") == ReadEvents("uid")


def test_a_pull_that_goes_on_at_the_end_of_its_grace_is_waited_for_and_a_later_one_is_not() -> None:
    began = NOW - timedelta(minutes=20)
    for tried, due in ((-GRACE - timedelta(seconds=1), Wait(60.0)), (-GRACE, GiveUp(PULL))):
        stuck = Stuck(began, PULL, trying_since=NOW + tried)
        assert due_of(Diagnosis(Phase.WAITING, started=False, stuck=stuck), "held") == due


def test_what_no_event_dates_counts_from_the_first_time_that_they_were_asked_in_vain() -> None:
    lane, undated = JobMemory("uid"), DIAGNOSES["undated"]
    assert due_of(lane.dated(undated, NOW), "held") == Wait(600.0)
    later = NOW + timedelta(minutes=4)
    assert due_of(lane.dated(undated, later), "held", now=later) == Wait(360.0)
    assert due_of(lane.dated(undated, NOW + GRACE), "held", now=NOW + GRACE) == GiveUp(PULL)
    assert lane.dated(DIAGNOSES["stuck"], later) == DIAGNOSES["stuck"]
    assert due_of(lane.dated(undated, later), "held", now=later) == Wait(600.0)


def test_a_suspended_job_that_does_not_wait_for_its_style_is_left_to_whoever_suspended_it() -> None:
    suspended = job("held", "next")
    suspended["spec"]["suspend"] = True
    due = next_step(
        suspended, DIAGNOSES["waiting"], now=NOW, grace=GRACE, is_next_of_style=True, room_free_since=NOW
    )
    assert due == Wait()


# When progress is told first


def test_trainings_that_start_together_do_not_report_together() -> None:
    """A thousand of them would come at once every 30 seconds."""
    lanes = [JobMemory("uid") for _ in range(100)]
    before = time.monotonic()
    for lane in lanes:
        lane.choose_first_progress(30.0)
    after = time.monotonic()
    dues = sorted(lane.progress_due for lane in lanes)
    assert before + 30 <= dues[0] <= before + 34
    assert after + 36 <= dues[-1] <= after + 40
    chosen = [lane.progress_due for lane in lanes]
    for lane in lanes:
        lane.choose_first_progress(30.0)
    assert [lane.progress_due for lane in lanes] == chosen


def test_a_relay_that_starts_again_reports_no_sooner_than_the_one_before_it_would(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    job = new_job(receiver)

    def reports() -> list[Patch]:
        return [patch for patch in receiver.patches if "progress" in (patch.json or {})]

    with watching(api_server.client(), api_server.namespace, progress=1.0) as watch:
        watch.backend.create(job)
        pod = controller.start_pod(job["metadata"]["name"])
        api_server.write_log(pod, "epoch 1/100  loss 0.5  ETA 0:01:30\n")
        wait_until(reports)
    api_server.write_log(pod, "epoch 2/100  loss 0.5  ETA 0:01:29\n")
    with watching(api_server.client(), api_server.namespace, progress=1.0):
        wait_until(lambda: len(reports()) == 2)
    processing, first, second = receiver.patches
    assert first.monotonic - processing.monotonic >= 1
    assert second.monotonic - first.monotonic >= 1
