"""Who holds what others wait for, and since when nobody does."""

from datetime import UTC, datetime, timedelta
from typing import Any

from dispatcher.diagnosis import VERDICT_ANNOTATION, Diagnosis, Phase
from dispatcher.room import Room
from dispatcher.stuck import Stuck
from job_contract.outcome import FailureCode, TrainingFailure

START = datetime(2026, 11, 24, 8, tzinfo=UTC)
FAILURE = TrainingFailure(failure_code=FailureCode.UNSCHEDULABLE, failure_reason="No room; make some.")
WAITING = Diagnosis(Phase.WAITING, started=False)
WITHOUT_ROOM = Diagnosis(Phase.WAITING, started=False, stuck=Stuck(START, FAILURE, for_room=True))
WITHOUT_IMAGE = Diagnosis(Phase.WAITING, started=False, stuck=Stuck(START, FAILURE))


def job(name: str, **annotations: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "annotations": annotations}}


def pod(phase: str = "Pending", scheduled: str = "True") -> dict[str, Any]:
    conditions = [{"type": "PodScheduled", "status": scheduled}]
    return {"metadata": {"name": "p"}, "status": {"phase": phase, "conditions": conditions}}


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


def test_room_that_nobody_was_seen_to_take_is_free_since_the_start() -> None:
    room = Room(Clock())
    room.observe(job("pending"), WITHOUT_ROOM, [pod(scheduled="False")])
    room.observe(job("no pod"), WAITING, [])
    room.observe(job("over"), WAITING, [pod("Succeeded"), pod("Failed")])
    assert room.free_since() == START


def test_a_pod_takes_room_from_when_it_has_a_node_until_it_is_over() -> None:
    """An image may be pulled for longer than the grace of those that wait for the GPU meanwhile."""
    clock = Clock()
    room = Room(clock)
    for diagnosis, phase in ((WAITING, "Pending"), (WITHOUT_IMAGE, "Pending"), (WAITING, "Running")):
        room.observe(job("job"), diagnosis, [pod("Failed"), pod(phase)])
        assert room.free_since() is None
    clock.now = START + timedelta(minutes=15)
    room.observe(job("job"), WAITING, [pod("Succeeded")])
    clock.now = START + timedelta(minutes=20)
    room.observe(job("job"), WAITING, [pod("Succeeded")])
    assert room.free_since() == START + timedelta(minutes=15)


def test_room_is_free_once_the_last_one_has_left_it_or_is_gone() -> None:
    clock = Clock()
    room = Room(clock)
    room.observe(job("a"), WAITING, [pod("Running")])
    room.observe(job("b"), WAITING, [pod("Running")])
    room.observe(job("a"), WAITING, [])
    assert room.free_since() is None
    clock.now = START + timedelta(minutes=15)
    room.forget("b")
    assert room.free_since() == START + timedelta(minutes=15)


def test_two_that_wait_on_their_nodes_for_a_volume_do_not_wait_for_each_other() -> None:
    clock = Clock()
    room = Room(clock)
    for name in ("a", "b"):
        room.observe(job(name), WAITING, [pod()])
    clock.now = START + timedelta(minutes=10)
    for name in ("a", "b"):
        room.observe(job(name), WITHOUT_ROOM, [pod()])
    assert room.free_since() == START
    # The first is given up, and its pod about to go.
    room.observe(job("a", **{VERDICT_ANNOTATION: "{}"}), WAITING, [pod()])
    room.observe(job("a", **{VERDICT_ANNOTATION: "{}"}), WAITING, [])
    assert room.free_since() == START


def test_a_training_that_is_given_up_holds_its_room_until_its_pod_is_gone() -> None:
    clock = Clock()
    room = Room(clock)
    room.observe(job("job"), WITHOUT_IMAGE, [pod()])
    room.observe(job("job", **{VERDICT_ANNOTATION: "{}"}), WITHOUT_IMAGE, [pod()])
    assert room.free_since() is None
    clock.now = START + timedelta(minutes=10)
    room.observe(job("job", **{VERDICT_ANNOTATION: "{}"}), WAITING, [])
    assert room.free_since() == clock.now


def test_room_of_one_that_was_evicted_and_waits_again_is_free_since_then() -> None:
    clock = Clock()
    room = Room(clock)
    room.observe(job("job"), WAITING, [pod("Running")])
    clock.now = START + timedelta(minutes=10)
    room.observe(job("job"), WITHOUT_ROOM, [pod("Failed"), pod(scheduled="False")])
    assert room.free_since() == clock.now
