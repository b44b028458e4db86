"""No name is lost, none is with two workers at once, and none comes before its time."""

import random
import threading
import time
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from dispatcher.report import host_of
from dispatcher.work_queue import WorkQueue

ASKERS = 4


def test_a_name_is_handed_out_once_however_often_it_was_added() -> None:
    queue = WorkQueue(ASKERS)
    for _ in range(3):
        queue.add("a")
    queue.add("b")
    first, second = queue.get(), queue.get()
    assert {first, second} == {"a", "b"}
    queue.done("a")
    queue.done("b")
    assert len(queue) == 0


def test_a_name_added_during_its_work_comes_again_and_not_to_another_worker() -> None:
    queue = WorkQueue(ASKERS)
    queue.add("a")
    assert queue.get() == "a"
    queue.add("a")
    queue.add("b")
    assert queue.get() == "b"
    queue.done("a")
    assert queue.get() == "a"


def test_a_change_brings_a_waiting_name_forward_and_a_later_retry_does_not_put_it_off() -> None:
    queue = WorkQueue(ASKERS)
    queue.add("a", delay=3600)
    queue.add("a")
    queue.add("a", delay=7200)
    assert queue.get() == "a"
    queue.done("a")
    assert len(queue) == 0


def test_a_name_does_not_come_before_its_time() -> None:
    queue = WorkQueue(ASKERS)
    began = time.monotonic()
    queue.add("late", delay=0.1)
    queue.add("soon", delay=0.05)
    assert queue.get() == "soon"
    assert queue.get() == "late"
    assert time.monotonic() - began >= 0.1


def test_a_worker_that_waits_for_a_late_name_wakes_for_an_early_one() -> None:
    queue = WorkQueue(ASKERS)
    queue.add("late", delay=3600)
    got: list[str | None] = []
    worker = threading.Thread(target=lambda: got.append(queue.get()))
    worker.start()
    queue.add("early")
    worker.join(5)
    assert got == ["early"]


def asking(queue: WorkQueue, host: str) -> str:
    """Take the next name, and have it ask a host, which there is room for; returns the name."""
    name = queue.get()
    assert name is not None
    assert queue.may_ask(name, host)
    return name


def full_line() -> WorkQueue:
    """Two names ask the host "hangs", which are all that it may have, and three stand in its line."""
    queue = WorkQueue(ASKERS)
    for name in ("asks-1", "asks-2", "first", "second", "third"):
        queue.add(name)
    assert [asking(queue, "hangs") for _ in range(2)] == ["asks-1", "asks-2"]
    for name in ("first", "second", "third"):
        assert queue.get() == name
        assert not queue.may_ask(name, "hangs")
        queue.done(name)
    return queue


def test_a_host_that_hangs_leaves_workers_to_others_and_each_of_those_leaves_some_too() -> None:
    queue = full_line()
    for name in ("other", "another"):
        queue.add(name)
    assert asking(queue, "works") == "other"
    assert queue.get() == "another"
    assert not queue.may_ask("another", "works"), "the last one is for a host that none asks yet"
    queue.done("another")
    queue.add("yet another")
    assert asking(queue, "works, too") == "yet another"
    queue.done("other")
    assert queue.get() == "another"


def test_those_in_a_line_are_handed_out_one_for_each_that_ends_in_their_order() -> None:
    queue = full_line()
    for ended, name in (("asks-1", "first"), ("asks-2", "second"), ("first", "third")):
        queue.done(ended)
        assert queue.get() == name
        assert queue.may_ask(name, "hangs")


def test_nobody_passes_those_that_stand_in_a_line() -> None:
    """Who came while one ended took its room: with many that come, those in the line never had a turn."""
    queue = full_line()
    queue.add("quick", -1)  # due before they were
    assert queue.get() == "quick"
    queue.done("asks-1")
    assert not queue.may_ask("quick", "hangs")
    assert queue.get() == "first"


def test_a_name_that_changes_in_a_line_is_looked_at_at_once_and_keeps_its_place() -> None:
    """What is due by now may be quick: a training is cancelled whose status hangs."""
    queue = full_line()
    queue.add("late")
    queue.add("first")
    assert queue.get() == "first"
    assert not queue.may_ask("first", "hangs")
    queue.done("first")
    queue.done("asks-1")
    assert queue.get() == "first"
    assert queue.may_ask("first", "hangs")


def test_a_name_that_changes_while_it_is_put_in_a_line_is_looked_at_again() -> None:
    queue = full_line()
    for change_comes_first in (True, False):
        queue.add("a")
        assert queue.get() == "a"
        if change_comes_first:
            queue.add("a")
        assert not queue.may_ask("a", "hangs")
        if not change_comes_first:
            queue.add("a", delay=3600)
        queue.done("a")
        assert queue.get() == "a"
        queue.done("a")


def test_an_end_wakes_a_worker_for_the_line_though_who_ended_has_other_work() -> None:
    queue = full_line()
    got: list[str | None] = []
    worker = threading.Thread(target=lambda: got.append(queue.get()))
    worker.start()
    queue.done("asks-1")
    worker.join(5)
    assert got == ["first"]
    queue.close()


def test_a_name_that_fails_comes_later_each_time_until_it_succeeds() -> None:
    queue = WorkQueue(ASKERS, first_retry_seconds=0.02, most_retry_seconds=3600)

    def fails() -> float:
        """Return how long after its failure the name comes again."""
        began = time.monotonic()
        queue.add_failed("a")
        queue.done("a")
        assert queue.get() == "a"
        return time.monotonic() - began

    queue.add("a")
    assert queue.get() == "a"
    assert fails() >= 0.02 * 0.8
    assert fails() >= 0.04 * 0.8
    for other in ("asks-1", "asks-2"):
        queue.add(other)
        asking(queue, "hangs")
    assert not queue.may_ask("a", "hangs")  # who only came to a line has not done it
    queue.succeeded("a")
    queue.done("a")
    queue.done("asks-1")
    assert queue.get() == "a"
    assert fails() >= 0.08 * 0.8
    for _ in range(30):
        queue.add_failed("a")  # the next would come after an hour
    queue.succeeded("a")
    queue.done("a")
    assert queue.get() == "a"
    queue.add_failed("a")
    queue.add_failed("b", at_least=3600)
    queue.done("a")
    got: list[str | None] = []
    worker = threading.Thread(target=lambda: got.append(queue.get()))
    worker.start()
    worker.join(5)
    assert got == ["a"]
    queue.close()


def test_closing_wakes_every_worker() -> None:
    queue = WorkQueue(ASKERS)
    got: list[str | None] = []
    workers = [threading.Thread(target=lambda: got.append(queue.get())) for _ in range(4)]
    for worker in workers:
        worker.start()
    queue.close()
    for worker in workers:
        worker.join(5)
    assert got == [None] * 4


def test_many_workers_never_meet_on_a_name_and_miss_no_change() -> None:
    """Each change bumps a version; after the last one every name's newest version must have been seen."""
    queue, guard = WorkQueue(ASKERS), threading.Lock()
    versions: Counter[str] = Counter()
    seen: dict[str, int] = {}
    busy: set[str] = set()
    met: list[str] = []

    def work() -> None:
        while (name := queue.get()) is not None:
            with guard:
                met.extend([name] if name in busy else [])
                busy.add(name)
            version = versions[name]
            time.sleep(random.random() / 5000)  # work, during which more changes come
            with guard:
                seen[name] = version
                busy.discard(name)
            queue.done(name)

    def change(names: list[str]) -> None:
        for name in names:
            with guard:
                versions[name] += 1
            queue.add(name, random.choice([0, 0, 0.002]))

    names = [f"job-{n}" for n in range(7)]
    workers = [threading.Thread(target=work) for _ in range(6)]
    changers = [threading.Thread(target=change, args=(random.choices(names, k=300),)) for _ in range(3)]
    for thread in workers + changers:
        thread.start()
    for changer in changers:
        changer.join(20)
    deadline = time.monotonic() + 10
    while len(queue) and time.monotonic() < deadline:
        time.sleep(0.005)
    queue.close()
    for worker in workers:
        worker.join(5)
    assert met == []
    assert seen == dict(versions)


class QueueModel(RuleBasedStateMachine):
    """Against a model: the names that any worker may have, those in a line, those at work, those that ask."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WorkQueue(ASKERS)
        self.due: set[str] = set()
        self.in_line: dict[str, str] = {}
        self.active: set[str] = set()
        self.asking: dict[str, str] = {}

    def has_room(self, host: str) -> bool:
        return Counter(self.asking.values())[host] < ASKERS - len(self.asking)

    def handed_out_now(self) -> set[str]:
        """The names that the queue may hand out; none of those in a line without room."""
        of_lines = {name for name, host in self.in_line.items() if self.has_room(host)}
        return (self.due | of_lines) - self.active

    @rule(name=st.sampled_from("abcdefg"))
    def add(self, name: str) -> None:
        self.queue.add(name)
        self.due.add(name)
        self.in_line.pop(name, None)

    @precondition(lambda self: self.handed_out_now())
    @rule()
    def get(self) -> None:
        name = self.queue.get()
        assert name is not None
        assert name in self.handed_out_now()
        self.due.discard(name)
        if name in self.in_line:
            self.asking[name] = self.in_line.pop(name)
        self.active.add(name)

    @precondition(lambda self: self.active - self.asking.keys())
    @rule(data=st.data(), host=st.sampled_from(["x", "y", "z"]))
    def ask(self, data: st.DataObject, host: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.active - self.asking.keys())))
        may = self.has_room(host) and host not in self.in_line.values()
        assert self.queue.may_ask(name, host) == may
        if may:
            self.asking[name] = host
        elif name not in self.due:
            self.in_line[name] = host

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.active)))
        self.queue.done(name)
        self.active.remove(name)
        self.asking.pop(name, None)

    @rule()
    def count(self) -> None:
        assert len(self.queue) == len(self.due) + len(self.in_line) + len(self.active)


QueueModel.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestQueueModel = QueueModel.TestCase


def test_a_name_that_goes_back_to_a_line_is_with_one_worker_at_a_time() -> None:
    """Two had one Job in hand, and the thread of the second died when it put it down."""
    queue = WorkQueue(askers=2)
    queue.add("first")
    assert queue.get() == "first"
    assert queue.may_ask("first", "host")
    queue.add("second")
    assert queue.get() == "second"
    assert not queue.may_ask("second", "host")
    queue.done("second")
    queue.add("second")  # it changed while it stood in the line
    assert queue.get() == "second"
    assert not queue.may_ask("second", "host")
    queue.done("first")  # the host has room before the worker has said that it is done
    queue.add("third")
    assert queue.get() == "third", "the second one is still being worked on"
    queue.done("second")
    assert queue.get() == "second"


@pytest.mark.parametrize(
    "url", ["http://Host:80", "http://host:80/a", "http://host:80?job=1", "https://host:80#b"]
)
def test_urls_of_one_host_are_of_one_host(url: str) -> None:
    """With a query for each Job, one host that hung held every worker."""
    assert host_of(url) == "host:80"
