"""One training per style at a time, in the order of acceptance, whatever clocks and watches do."""

from typing import Any

import pytest

from dispatcher.job import QUEUE_LABEL, JobOptions, build_job, load_template
from dispatcher.style_lanes import WAITS_ANNOTATION, StyleLanes, end_of_hold, hold, waits
from job_contract.request import TrainingRequest

TEMPLATE = load_template(None)


def job(task: str, style: int | str = 42) -> dict[str, Any]:
    request = TrainingRequest(style_id=style, image_paths=["/a"], task_id=task)
    built = build_job(request, TEMPLATE, JobOptions())
    built["metadata"] |= {"name": task, "creationTimestamp": "2026-11-24T08:00:00Z"}
    return built


def waiting(task: str, accepted_ns: int) -> dict[str, Any]:
    held = job(task)
    hold(held, accepted_ns)
    return held


def test_the_first_job_of_a_style_may_start_and_the_next_waits() -> None:
    lanes = StyleLanes()
    assert lanes.enter(job("a"), 1) is None
    assert lanes.enter(job("b"), 2) == 2
    assert lanes.enter(job("c", style=43), 3) is None


def test_a_redelivered_message_keeps_its_place() -> None:
    lanes = StyleLanes()
    lanes.enter(job("a"), 1)
    lanes.enter(job("b"), 2)
    assert lanes.enter(job("a"), 3) is None
    assert lanes.enter(job("b"), 4) == 2


@pytest.mark.parametrize("created", ["2026-11-24T08:00:05Z", "1970-01-01T00:00:00Z", "2100-01-01T00:00:00Z"])
def test_a_job_that_waits_is_not_next_while_another_may_run(created: str) -> None:
    """The API server's clock once decided it: ahead of the dispatcher's, both trained at once."""
    lanes, first = StyleLanes(), job("a")
    lanes.enter(first, 1)
    lanes.enter(job("b"), 2)
    first["metadata"]["creationTimestamp"] = created
    lanes.observe(first)
    lanes.observe(waiting("b", 2))
    assert not lanes.is_next("b")
    assert lanes.leave("a")
    assert lanes.is_next("b")


def test_those_that_wait_go_in_the_order_of_acceptance() -> None:
    lanes = StyleLanes()
    for held in (waiting("late", 30), waiting("early", 10), waiting("middle", 20)):
        lanes.observe(held)
    order = []
    while names := [name for name in ("late", "early", "middle") if lanes.others(name) or lanes.count("")]:
        following = [name for name in names if lanes.is_next(name) and name not in order]
        if not following:
            break
        order.append(following[0])
        lanes.leave(following[0])
    assert order[:3] == ["early", "middle", "late"]


def test_a_released_job_may_run_and_comes_before_those_that_wait() -> None:
    lanes, released = StyleLanes(), waiting("b", 20)
    released["spec"]["suspend"] = False
    lanes.observe(released)
    lanes.observe(waiting("a", 10))
    assert lanes.is_next("b")
    assert not lanes.is_next("a")
    assert released["metadata"]["annotations"][WAITS_ANNOTATION] == "20"
    assert not waits(released)


def test_a_job_whose_create_timed_out_keeps_its_style_until_it_is_seen_or_cancelled() -> None:
    lanes = StyleLanes()
    lanes.enter(job("a"), 1)
    assert lanes.expected_for("a") > 60
    lanes.observe(job("a"))
    assert lanes.expected_for("a") == 0
    lanes.enter(job("b"), 2)
    lanes.cancel("b")
    assert lanes.expected_for("b") == 0


def test_only_other_unfinished_jobs_count_towards_the_limit() -> None:
    lanes = StyleLanes()
    lanes.enter(job("a"), 1)
    lanes.observe(job("b", style=43))
    assert lanes.count(besides="a") == 1
    assert lanes.count(besides="z") == 2
    lanes.leave("b")
    assert lanes.count(besides="z") == 1


def test_leaving_twice_is_harmless() -> None:
    lanes = StyleLanes()
    lanes.observe(job("a"))
    assert lanes.leave("a")
    assert not lanes.leave("a")


def test_style_0_is_a_style() -> None:
    """Taken for no style at all, its Jobs once trained side by side."""
    lanes = StyleLanes()
    assert lanes.enter(job("a", style=0), 1) is None
    assert lanes.enter(job("b", style=0), 2) == 2


def test_styles_that_no_label_can_hold_have_lanes_too() -> None:
    lanes = StyleLanes()
    assert lanes.enter(job("a", style="_x"), 1) is None
    assert lanes.enter(job("b", style="_x"), 2) == 2
    assert lanes.enter(job("c", style="_y"), 3) is None


def test_where_dispatchers_share_the_styles_no_job_starts_before_it_is_released() -> None:
    lanes = StyleLanes(shared=True)
    assert lanes.enter(job("a"), 1) == 1
    assert lanes.enter(job("b"), 2) == 2
    assert lanes.is_next("a")
    assert lanes.start("a")
    # A message that comes again keeps its place, and never starts beside what was released.
    assert lanes.enter(job("b"), 3) == 2
    assert lanes.enter(job("a"), 4) == 4


def test_a_released_job_keeps_its_style_though_the_watch_shows_it_waiting_still() -> None:
    """Another dispatcher's clock may put a later Job before it, which was once released beside it."""
    lanes = StyleLanes(shared=True)
    lanes.observe(waiting("a", 10))
    assert lanes.start("a")
    lanes.observe(waiting("earlier", 5))
    lanes.observe(waiting("a", 10))
    assert not lanes.is_next("earlier")
    assert not lanes.start("earlier")
    lanes.leave("a")
    assert lanes.start("earlier")


def test_of_two_workers_that_look_at_two_jobs_of_a_style_one_releases() -> None:
    lanes = StyleLanes()
    lanes.observe(waiting("a", 10))
    assert lanes.is_next("a")
    lanes.observe(waiting("b", 5))
    assert lanes.is_next("b")
    assert lanes.start("b")
    assert not lanes.start("a")


def test_a_job_that_entered_first_but_was_created_suspended_by_an_earlier_process_waits() -> None:
    """After a kill messages come again in another order; what the API server shows counts."""
    lanes = StyleLanes()
    assert lanes.enter(job("b"), 20) is None
    lanes.enter(job("a"), 30)
    lanes.observe(waiting("b", 10))
    lanes.observe(job("a"))
    assert not lanes.is_next("b")


def test_a_job_of_a_name_that_was_released_before_waits_again() -> None:
    lanes = StyleLanes(shared=True)
    lanes.observe(waiting("a", 10))
    assert lanes.start("a")
    lanes.leave("a")
    lanes.observe(waiting("a", 20))
    lanes.observe(waiting("b", 15))
    assert lanes.is_next("b")


def test_a_job_whose_release_is_not_confirmed_waits_while_a_rerun_by_hand_may_run() -> None:
    """Its PATCH had failed, and the name decided which of the two that may run was next."""
    lanes = StyleLanes()
    lanes.observe(waiting("a", 10))
    assert lanes.start("a")
    lanes.observe(job("rerun"))
    assert not lanes.is_next("a")
    assert not lanes.start("a")
    lanes.leave("rerun")
    assert lanes.is_next("a")
    assert lanes.start("a")


def test_a_message_that_comes_again_starts_no_job_beside_a_rerun_by_hand() -> None:
    """Its create had failed, and somebody started a rerun before the next attempt."""
    lanes = StyleLanes()
    assert lanes.enter(job("a"), 1) is None
    lanes.observe(job("rerun"))
    assert lanes.enter(job("a"), 2) == 2
    lanes.observe(waiting("a", 2))
    assert not lanes.is_next("a")
    lanes.leave("rerun")
    assert lanes.is_next("a")


def test_what_waits_for_two_reruns_by_hand_starts_when_both_are_gone() -> None:
    lanes = StyleLanes()
    for rerun in ("rerun-1", "rerun-2"):
        lanes.observe(job(rerun))
    lanes.observe(waiting("a", 10))
    assert not lanes.is_next("a")
    lanes.leave("rerun-1")
    assert not lanes.is_next("a")
    lanes.leave("rerun-2")
    assert lanes.is_next("a")


def test_a_job_that_waits_is_in_no_queue_of_kueue_before_its_turn() -> None:
    """In its queue Kueue would start it beside the one that it waits for."""
    held = job("a")
    held["metadata"]["labels"][QUEUE_LABEL] = "gpus"
    hold(held, 10)
    assert QUEUE_LABEL not in held["metadata"]["labels"]
    assert waits(held)
    change = end_of_hold(held)
    assert change["metadata"]["labels"] == {QUEUE_LABEL: "gpus"}
    assert "spec" not in change  # Kueue ends its suspension
    assert set(change["metadata"]["annotations"]) == set(held["metadata"]["annotations"])
    assert set(change["metadata"]["annotations"].values()) == {None}
