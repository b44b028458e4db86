"""A training's deadline: its wait for others takes nothing from its own time, and adds nothing to it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dispatcher.backends.merge_patch import merge_patch
from dispatcher.deadline import DEADLINE_ANNOTATION, MOVED_ANNOTATION, own_seconds, with_deadline
from dispatcher.diagnosis import VERDICT_ANNOTATION, Diagnosis, Phase, diagnose
from dispatcher.relay_step import PROCESSING_ANNOTATION, Extend, GiveUp, Step, TellProgress, Wait, next_step
from dispatcher.stuck import Stuck, Unexplained
from job_contract import names
from job_contract.outcome import FailureCode, TrainingFailure
from tests.dispatcher.cluster import Scene, annotations, batch_api, wait_told
from tests.dispatcher.support import wait_until
from tests.parts.api_server import ApiServer
from tests.parts.job_controller import JobController
from tests.parts.receiver import Receiver

START = datetime(2026, 11, 24, 8, tzinfo=UTC)
GRACE = timedelta(minutes=10)
OWN = 7200
NO_GPU = TrainingFailure(failure_code=FailureCode.UNSCHEDULABLE, failure_reason="No GPU; add one.")
WITHOUT_ROOM = Diagnosis(Phase.WAITING, started=False, stuck=Stuck(START, NO_GPU, for_room=True))

Job = dict[str, Any]


def job(limit: int | None = OWN, annotations: dict[str, str] | None = None) -> Job:
    return {
        "metadata": {"name": "j", "finalizers": [names.FINALIZER], "annotations": annotations or {}},
        "spec": {"activeDeadlineSeconds": limit},
        "status": {"startTime": START.isoformat()},
    }


def moved(limit: int, own: object = OWN) -> Job:
    """A Job whose deadline the dispatcher has changed."""
    return job(limit, {DEADLINE_ANNOTATION: str(own), MOVED_ANNOTATION: str(limit)})


def due(
    waiting: Job,
    after: timedelta,
    diagnosis: Diagnosis = WITHOUT_ROOM,
    *,
    grace: timedelta = GRACE,
    room_free_since: datetime | None = None,
) -> Step:
    return next_step(
        waiting,
        diagnosis,
        now=START + after,
        grace=grace,
        is_next_of_style=True,
        room_free_since=room_free_since,
    )


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


@pytest.mark.parametrize(("own", "grace"), [(OWN, 600), (60, 600), (12, 4), (1, 0.5)])
def test_a_training_that_waits_for_hours_still_has_all_its_own_time_and_few_patches(
    own: int, grace: float
) -> None:
    """However short its own time is beside the grace, which is between two looks."""
    waiting, after, patches = job(own), seconds(0.5), 0
    while after < seconds(100 * grace):
        match due(waiting, after, grace=seconds(grace)):
            case Extend(deadline):
                assert deadline > waiting["spec"]["activeDeadlineSeconds"]
                waiting = merge_patch(waiting, with_deadline(waiting, deadline))
                patches += 1
            case Wait(float() as wait):
                assert 0 < wait <= grace
                after += seconds(wait)
            case other:
                pytest.fail(f"{other} after {after}")
        ahead = waiting["spec"]["activeDeadlineSeconds"] - after.total_seconds()
        assert own - 0.001 <= ahead <= own + grace + 1
    assert patches <= 101
    assert waiting["metadata"]["annotations"][DEADLINE_ANNOTATION] == str(own)


def test_what_earlier_attempts_ran_is_not_given_a_second_time() -> None:
    """Preempted after 50 minutes, it waits an hour for another GPU: 70 of its 120 minutes are left."""
    again = Diagnosis(Phase.WAITING, started=True, stuck=WITHOUT_ROOM.stuck, ran=timedelta(minutes=50))
    told = job(annotations={PROCESSING_ANNOTATION: "processing"})
    assert due(told, timedelta(minutes=110), again) == Extend((110 + 70 + 10) * 60)


def test_the_time_of_an_attempt_is_that_of_its_container() -> None:
    def ended(began: int, finished: int, reason: str = "Error") -> Job:
        times = [(START + timedelta(minutes=minute)).isoformat() for minute in (began, finished)]
        state = {"exitCode": 75, "reason": reason, "startedAt": times[0], "finishedAt": times[1]}
        containers = [{"name": names.CONTAINER_NAME, "state": {"terminated": state}}]
        metadata = {"name": f"p{began}", "creationTimestamp": times[0]}
        return {"metadata": metadata, "status": {"phase": "Failed", "containerStatuses": containers}}

    pods = [ended(10, 40), ended(50, 70), ended(-29_000_000, 71, "StartError")]
    waiting = {**job(), "metadata": {"name": "j", "uid": "u", "creationTimestamp": START.isoformat()}}
    assert diagnose(waiting, pods).ran == timedelta(minutes=50)
    assert diagnose(waiting, []).ran == timedelta()


@pytest.mark.parametrize(
    ("diagnosis", "room_free_since"),
    [
        (Diagnosis(Phase.WAITING, started=False), None),
        (Diagnosis(Phase.WAITING, started=False, stuck=Stuck(START, NO_GPU)), None),
        (Diagnosis(Phase.WAITING, started=False, unexplained=Unexplained(START, "uid")), None),
        (WITHOUT_ROOM, START),
    ],
    ids=["pending", "without an image", "unexplained", "with room that nobody holds"],
)
def test_no_other_wait_moves_the_deadline(diagnosis: Diagnosis, room_free_since: datetime | None) -> None:
    assert not isinstance(due(job(), GRACE, diagnosis, room_free_since=room_free_since), Extend)


def test_a_training_that_runs_is_not_given_more_time() -> None:
    runs = Diagnosis(Phase.RUNNING, started=True, running_pod="p")
    told = job(annotations={PROCESSING_ANNOTATION: "processing"})
    assert due(told, timedelta(minutes=110), runs) == TellProgress("p")


def test_a_job_without_a_deadline_or_a_start_waits_on() -> None:
    for waiting in (job(limit=None), {**job(), "status": {}}):
        assert due(waiting, timedelta(hours=9)) == Wait(600.0)


def test_a_deadline_that_is_over_or_was_set_to_end_the_training_is_not_moved() -> None:
    """Only the Job controller has the last word; a verdict's deadline of one second stays."""
    assert due(job(), seconds(OWN)) == Wait(600.0)
    assert due(moved(1), timedelta(minutes=5)) == Wait(600.0)
    given_up = merge_patch(job(annotations={VERDICT_ANNOTATION: "{}"}), with_deadline(job(), 1))
    assert due(given_up, seconds(0.5)) == Wait()


@pytest.mark.parametrize("by_hand", [3600, 20_000])
def test_a_deadline_that_is_set_by_hand_during_the_wait_counts_as_the_trainings_own(by_hand: int) -> None:
    """A longer one was used up by the wait."""
    waiting = merge_patch(moved(9000), {"spec": {"activeDeadlineSeconds": by_hand}})
    assert due(waiting, timedelta(minutes=50)) == Extend(50 * 60 + by_hand + 10 * 60)
    assert with_deadline(waiting, 1)["metadata"]["annotations"][DEADLINE_ANNOTATION] == str(by_hand)


def test_a_trainings_own_time_is_changed_by_its_annotation_too() -> None:
    assert due(moved(9000, own=20_000), timedelta(minutes=50)) == Extend(50 * 60 + 20_000 + 10 * 60)


def test_a_deadline_that_is_far_enough_ahead_is_not_moved() -> None:
    assert due(moved(100_000), timedelta(hours=20)) == Wait(600.0)


def test_a_start_that_kubernetes_sets_anew_takes_nothing_from_the_trainings_own_time() -> None:
    """So it does when Kueue, or a person, has suspended the Job for a while."""
    resumed = moved(50_000)
    assert due(resumed, seconds(1)) == Wait(600.0)
    assert due(resumed, seconds(50_000 - OWN)) == Extend(50_000 + 600)


def test_a_training_without_room_has_its_grace_before_it_is_given_up_however_short_its_own_time() -> None:
    """Else it would fail as one that trained for too long."""
    short = job(limit=60)
    assert due(short, seconds(30), room_free_since=START) == Extend(30 + 60 + 600)
    assert due(short, GRACE, room_free_since=START) == GiveUp(NO_GPU)


@pytest.mark.parametrize("noted", ["", "0", "-5", "7200.0", "soon", "9" * 5000])
def test_a_note_that_is_no_number_of_seconds_counts_as_none(noted: str) -> None:
    assert own_seconds(moved(9000, noted)) == 9000


def test_a_training_that_took_too_long_is_told_its_own_time_and_not_what_its_wait_added() -> None:
    late = moved(50_000)
    late["status"]["conditions"] = [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]
    failure = diagnose(late, []).failure
    assert failure is not None
    assert failure.failure_code is FailureCode.DEADLINE_EXCEEDED
    assert failure.failure_reason == (
        "The training did not finish within its 7200 seconds; use fewer epochs or images, "
        "or raise the deadline (JOB_DEADLINE_SECONDS)."
    )


# On an API server


GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."


@pytest.fixture
def scene(api_server: ApiServer, controller: JobController, receiver: Receiver) -> Scene:
    return Scene(api_server, controller, receiver)


def deadline(scene: Scene, name: str) -> int:
    return int(scene.controller.job(name)["spec"]["activeDeadlineSeconds"])


def one_trains_and_another_waits(scene: Scene) -> tuple[str, str]:
    first = scene.create()
    scene.controller.start_pod(first)
    wait_told(scene.receiver, "processing")
    second = scene.create(43)
    scene.controller.unschedulable(scene.controller.create_pod(second), GPU)
    wait_until(lambda: deadline(scene, second) > OWN, what="the deadline is moved")
    return first, second


def test_the_deadline_moves_as_long_as_another_has_the_gpu_and_no_longer(scene: Scene) -> None:
    with scene.watched(grace=1.0):
        first, second = one_trains_and_another_waits(scene)
        moved = deadline(scene, second)
        wait_until(lambda: deadline(scene, second) > moved, what="the deadline is moved again")
        assert annotations(scene.server, second)[DEADLINE_ANNOTATION] == str(OWN)
        assert deadline(scene, first) == OWN
        scene.complete(first)
        scene.complete(second, 43)


@pytest.mark.parametrize("by_hand", [5000, 50_000])
def test_a_deadline_that_somebody_sets_meanwhile_is_not_overwritten(scene: Scene, by_hand: int) -> None:
    """The watch is behind, so that the dispatcher moves a deadline that is not there any more."""
    with scene.watched(grace=1.0):
        _, second = one_trains_and_another_waits(scene)
        scene.server.silence_watches()
        change = {"spec": {"activeDeadlineSeconds": by_hand}}
        batch_api(scene.server).patch_namespaced_job(
            second, scene.server.namespace, change, _content_type="application/merge-patch+json"
        )
        asked = scene.server.count("patch", "jobs")
        wait_until(lambda: scene.server.count("patch", "jobs") > asked, what="it is tried to move it")
        assert deadline(scene, second) == by_hand
        scene.server.resume_watches()
        wait_until(lambda: annotations(scene.server, second)[DEADLINE_ANNOTATION] == str(by_hand))
