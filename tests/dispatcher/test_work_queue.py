"""No name is lost, none is with two workers at once, and none comes before its time."""

import random
import threading
import time
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from dispatcher.work_queue import WorkQueue


def test_a_name_is_handed_out_once_however_often_it_was_added() -> None:
    queue = WorkQueue()
    for _ in range(3):
        queue.add("a")
    queue.add("b")
    first, second = queue.get(), queue.get()
    assert {first, second} == {"a", "b"}
    queue.done("a")
    queue.done("b")
    assert len(queue) == 0


def test_a_name_added_during_its_work_comes_again_and_not_to_another_worker() -> None:
    queue = WorkQueue()
    queue.add("a")
    assert queue.get() == "a"
    queue.add("a")
    queue.add("b")
    assert queue.get() == "b"
    queue.done("a")
    assert queue.get() == "a"


def test_a_change_brings_a_waiting_name_forward_and_a_later_retry_does_not_put_it_off() -> None:
    queue = WorkQueue()
    queue.add("a", delay=3600)
    queue.add("a")
    queue.add("a", delay=7200)
    assert queue.get() == "a"
    queue.done("a")
    assert len(queue) == 0


def test_a_name_does_not_come_before_its_time() -> None:
    queue = WorkQueue()
    began = time.monotonic()
    queue.add("late", delay=0.1)
    queue.add("soon", delay=0.05)
    assert queue.get() == "soon"
    assert queue.get() == "late"
    assert time.monotonic() - began >= 0.1


def test_a_worker_that_waits_for_a_late_name_wakes_for_an_early_one() -> None:
    queue = WorkQueue()
    queue.add("late", delay=3600)
    got: list[str | None] = []
    worker = threading.Thread(target=lambda: got.append(queue.get()))
    worker.start()
    queue.add("early")
    worker.join(5)
    assert got == ["early"]


def test_what_is_slow_comes_to_no_worker_for_quick_work() -> None:
    queue = WorkQueue()
    queue.add("slow", slow=True)
    queue.add("quick")
    assert queue.get(slow=False) == "quick"
    queue.done("quick")
    queue.add("later", delay=0.05)
    assert queue.get(slow=False) == "later"
    assert queue.get() == "slow"


def test_a_change_of_what_waits_as_slow_has_it_looked_at_by_any_worker() -> None:
    """What is due by now may be quick: a training is cancelled whose status hangs."""
    queue = WorkQueue()
    queue.add("a", slow=True)
    queue.add("a")
    assert queue.get(slow=False) == "a"
    queue.add("a", slow=True)
    queue.add("a", delay=3600)
    queue.done("a")
    assert queue.get(slow=False) == "a"
    queue.done("a")
    assert len(queue) == 0


def test_what_is_slow_wakes_a_worker_that_takes_it_though_others_wait_longer() -> None:
    queue = WorkQueue()
    got: list[str | None] = []
    quick = [threading.Thread(target=lambda: queue.get(slow=False)) for _ in range(3)]
    for thread in quick:
        thread.start()
    worker = threading.Thread(target=lambda: got.append(queue.get()))
    worker.start()
    queue.add("a", slow=True)
    worker.join(5)
    assert got == ["a"]
    queue.close()


def test_a_name_that_fails_comes_later_each_time_until_it_succeeds() -> None:
    queue = WorkQueue(first_retry_seconds=0.02, most_retry_seconds=3600)

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
    queue.add("a", slow=True)  # who found it slow has not done it
    queue.succeeded("a")
    queue.done("a")
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
    queue = WorkQueue()
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
    queue, guard = WorkQueue(), threading.Lock()
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
    """Against a model: a set of due names and a set of names at work."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WorkQueue()
        self.due: set[str] = set()
        self.active: set[str] = set()

    @rule(name=st.sampled_from("abcd"))
    def add(self, name: str) -> None:
        self.queue.add(name)
        self.due.add(name)

    @precondition(lambda self: self.due - self.active)
    @rule()
    def get(self) -> None:
        name = self.queue.get()
        assert name is not None
        assert name in self.due - self.active
        self.due.remove(name)
        self.active.add(name)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.active)))
        self.queue.done(name)
        self.active.remove(name)

    @rule()
    def count(self) -> None:
        assert len(self.queue) == len(self.due) + len(self.active)


QueueModel.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestQueueModel = QueueModel.TestCase
