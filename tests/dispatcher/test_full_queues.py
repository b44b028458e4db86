"""What a queue does not take, since its limit is reached, is kept: it holds up no good message."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from structlog.testing import capture_logs

from dispatcher.metrics import Metrics
from dispatcher.queues import Queues, redrive, refusal_key
from dispatcher.verdict import Ack, Postpone, Refuse, Verdict
from tests.dispatcher.support import Amqp, consuming, wait_until
from tests.parts.broker import RabbitNode


@pytest.fixture(scope="module")
def limited_rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    """A broker with a policy that lets few messages into some queues."""
    limits = {r"^full.*\.dead$": 1, r"^mute.*\.notices$": 0, r"^brim": 1, r"^(full|mute)-jam$": 4}
    definitions = {
        "users": [{"name": "guest", "password": "guest", "tags": "administrator"}],
        "vhosts": [{"name": "/"}],
        "permissions": [{"user": "guest", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}],
        "policies": [
            {
                "vhost": "/",
                "name": pattern,
                "pattern": pattern,
                "apply-to": "queues",
                "definition": {"max-length": length, "overflow": "reject-publish"},
            }
            for pattern, length in limits.items()
        ],
    }
    folder = tmp_path_factory.mktemp("limited-rabbit")
    (folder / "definitions.json").write_text(json.dumps(definitions))
    with RabbitNode(folder / "node", {"load_definitions": str(folder / "definitions.json")}) as node:
        yield node


def overfill(amqp: Amqp, bodies: list[bytes], **properties: Any) -> None:
    """Bring more into a queue than its limit lets in: what somebody holds unacked does not count."""
    with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
        holder = connection.channel()
        for body in bodies:
            amqp.publish(body, **properties)
            holder.basic_get(amqp.queues.work)


@pytest.mark.usefixtures("soon")
def test_full_dead_letters_hold_up_no_good_message_and_lose_no_bad_one(limited_rabbit: RabbitNode) -> None:
    """The connection broke at each of them, and with it the acks of the good ones."""
    amqp = Amqp(limited_rabbit.url, Queues("full"))
    seen: Counter[bytes] = Counter()

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        seen[body] += 1
        return Refuse("no", notice=body) if body.startswith(b"bad") else Ack()

    # More than are held at a time, and than are prefetched.
    bad = [amqp.publish(b"bad %d" % number, message_id="m", expiration="600000") for number in range(24)]
    good = [amqp.publish(b"good %d" % number) for number in range(20)]
    told: list[bytes] = []
    with capture_logs() as logs, consuming(amqp.url, amqp.queues, handle, told.append) as broker:
        connection = wait_until(lambda: broker._consuming)
        wait_until(lambda: set(good) <= seen.keys())
        letters: list[tuple[Any, bytes]] = []
        while len(letters) < len(bad):  # each that is taken out makes room for one
            letters += wait_until(lambda: amqp.take_all(amqp.queues.dead), timeout=30)
        wait_until(lambda: amqp.state(amqp.queues.work) == (0, 1) and len(told) == len(bad))
        assert broker._consuming is connection
    assert sorted(body for _, body in letters) == sorted(bad) == sorted(told)
    assert all(seen[body] == 1 for body in good)
    assert {(letter.message_id, letter.expiration) for letter, _ in letters} == {("m", None)}
    assert [line["event"] for line in logs if line["log_level"] == "error"] == [
        "the dead letters take no more: empty or enlarge full.dead. What was to go there is kept and tried "
        "again."
    ]


def test_full_dead_letters_are_not_tried_again_and_again_without_a_pause(limited_rabbit: RabbitNode) -> None:
    amqp = Amqp(limited_rabbit.url, Queues("full-calm"))
    tries: Counter[bytes] = Counter()
    few = threading.Event()

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        tries[body] += 1
        return Refuse("no")

    for number in range(8):
        amqp.publish(b"bad %d" % number)
    with consuming(amqp.url, amqp.queues, handle):
        wait_until(lambda: len(tries) == 8)
        assert not few.wait(2)
    # Of those that are held, each is tried once in ten seconds.
    assert sum(tries.values()) == 8
    assert amqp.depth(amqp.queues.work) + amqp.depth(amqp.queues.dead) == 8


@pytest.mark.usefixtures("soon")
def test_a_message_that_the_dead_letters_do_not_take_goes_back_as_it_came(limited_rabbit: RabbitNode) -> None:
    amqp = Amqp(limited_rabbit.url, Queues("full-cycle"))
    tries: Counter[bytes] = Counter()

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        tries[body] += 1
        return Refuse("no")

    bodies = [amqp.publish(b"%d" % number, expiration="600000", headers={"a": "b"}) for number in range(3)]
    metrics = Metrics()
    with consuming(amqp.url, amqp.queues, handle, buried=metrics.dead_letters.inc):
        wait_until(lambda: max(tries.values(), default=0) >= 4)
    assert b"lora_trainer_dead_letters_total 1.0\n" in metrics.expose(), "what went back is no dead letter"
    [dead], waiting = amqp.take_all(amqp.queues.dead), amqp.take_all(amqp.queues.work)
    assert sorted([dead[1], *(body for _, body in waiting)]) == bodies
    assert {(kept.expiration, tuple(kept.headers.items())) for kept, _ in waiting} == {
        ("600000", (("a", "b"),))
    }


@pytest.mark.usefixtures("soon")
def test_a_notice_that_its_queue_does_not_take_makes_one_dead_letter_only(
    limited_rabbit: RabbitNode,
) -> None:
    amqp = Amqp(limited_rabbit.url, Queues("mute"))
    seen: list[bytes] = []

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        seen.append(body)
        return Refuse("no", notice=b"tell") if body == b"bad" else Ack()

    amqp.publish(b"bad")
    metrics = Metrics()
    with consuming(amqp.url, amqp.queues, handle, buried=metrics.dead_letters.inc):
        wait_until(lambda: amqp.depth(amqp.queues.dead) == 1)
        for number in range(10):
            amqp.publish(b"good %d" % number)
        wait_until(lambda: len(set(seen)) == 11 and seen.count(b"bad") >= 3)
    assert amqp.depth(amqp.queues.dead) == 1
    assert b"lora_trainer_dead_letters_total 1.0\n" in metrics.expose()
    assert amqp.take_all(amqp.queues.work)[0][1] == b"bad"


@pytest.mark.usefixtures("soon")
def test_notices_that_their_queue_does_not_take_make_way_for_good_messages(
    limited_rabbit: RabbitNode,
) -> None:
    """They took up all that is prefetched."""
    amqp = Amqp(limited_rabbit.url, Queues("mute-many"))
    seen: Counter[bytes] = Counter()

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        seen[body] += 1
        return Refuse("no", notice=body) if body.startswith(b"bad") else Ack()

    bad = [amqp.publish(b"bad %d" % number, headers={"tenant": "art"}) for number in range(24)]
    good = [amqp.publish(b"good %d" % number) for number in range(4)]
    with consuming(amqp.url, amqp.queues, handle):
        wait_until(lambda: set(good) <= seen.keys() and all(seen[body] >= 3 for body in bad), timeout=40)
    assert amqp.depth(amqp.queues.work) == len(bad)
    amqp.take_all(amqp.queues.work)
    assert redrive(amqp.url, amqp.queues) == len(bad)
    again = amqp.take_all(amqp.queues.work)
    assert sorted(body for _, body in again) == sorted(bad)
    assert all(properties.headers == {"tenant": "art"} for properties, _ in again)


@pytest.mark.usefixtures("soon")
def test_refused_messages_go_to_the_dead_letters_once_those_are_emptied_though_the_work_queue_is_full(
    limited_rabbit: RabbitNode,
) -> None:
    """They only tried to go back to the work queue, which took none while they were held."""
    amqp = Amqp(limited_rabbit.url, Queues("brim-refused"))
    Amqp(amqp.url, Queues(amqp.queues.dead)).publish(b"older")
    bad = [b"bad %d" % number for number in range(20)]
    overfill(amqp, bad)
    with consuming(amqp.url, amqp.queues, lambda _b, _i: Refuse("no")):
        wait_until(lambda: amqp.depth(amqp.queues.work) == 4)
        letters = amqp.take_all(amqp.queues.dead)
        while len(letters) < 1 + len(bad):  # each that is taken out makes room for one
            letters += wait_until(lambda: amqp.take_all(amqp.queues.dead))
    assert sorted(body for _, body in letters) == sorted([b"older", *bad])


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("name", ["full-jam", "mute-jam"])
def test_good_messages_are_handled_though_no_queue_takes_the_bad_ones_before_them(
    limited_rabbit: RabbitNode, name: str
) -> None:
    """What was held took up all that is prefetched, for as long as the backend was down."""
    amqp = Amqp(limited_rabbit.url, Queues(name))
    Amqp(amqp.url, Queues(amqp.queues.dead)).publish(b"older")
    bad, good = [b"bad %d" % number for number in range(30)], [b"good 1", b"good 2"]
    overfill(amqp, bad + good)
    seen = set[bytes]()

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        seen.add(body)
        return Refuse("no", notice=body) if body in bad else Ack()

    def send(_notice: bytes) -> float:
        return 60.0

    with consuming(amqp.url, amqp.queues, handle, send):
        wait_until(lambda: seen == {*bad, *good}, timeout=30)
    waiting = [body for _, body in amqp.take_all(amqp.queues.work)]
    dead = [body for _, body in amqp.take_all(amqp.queues.dead)]
    assert sorted(dead + (waiting if name == "full-jam" else [])) == sorted([b"older", *bad])


def test_messages_that_came_back_often_are_handled_though_the_work_queue_is_full(
    limited_rabbit: RabbitNode,
) -> None:
    """None could be put behind the others, and so all were held until RabbitMQ's own limit."""
    amqp = Amqp(limited_rabbit.url, Queues("brim-worn"))
    bodies = [b"%d" % number for number in range(40)]
    overfill(amqp, bodies, headers={"x-delivery-count": 10})
    seen: list[bytes] = []

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        seen.append(body)
        return Ack()

    with consuming(amqp.url, amqp.queues, handle):
        wait_until(lambda: set(seen) == set(bodies))
        wait_until(lambda: amqp.state(amqp.queues.work) == (0, 1))


@pytest.mark.usefixtures("soon")
def test_messages_that_came_back_often_are_handled_once_there_is_room_for_jobs_though_the_queue_is_full(
    limited_rabbit: RabbitNode,
) -> None:
    """Given back to the head of a quorum queue once more, they are dropped in the end."""
    amqp = Amqp(limited_rabbit.url, Queues("brim-worn-and-full"))
    bodies = [b"%d" % number for number in range(40)]
    overfill(amqp, bodies, headers={"x-delivery-count": 10})
    seen, postponed, room = set[bytes](), threading.Event(), threading.Event()

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        if not room.is_set():
            postponed.set()
            return Postpone(0.5, "the cluster is full")
        seen.add(body)
        return Ack()

    with consuming(amqp.url, amqp.queues, handle):
        assert postponed.wait(10)
        wait_until(lambda: amqp.state(amqp.queues.work) == (24, 0), what="16 are held, none is given back")
        room.set()
        wait_until(lambda: seen == set(bodies))
        wait_until(lambda: amqp.state(amqp.queues.work) == (0, 1))


def test_notices_are_sent_once_the_backend_is_back_though_their_queue_is_full(
    limited_rabbit: RabbitNode,
) -> None:
    """Those that were held only tried to go back to the queue, which took none while they were held."""
    amqp = Amqp(limited_rabbit.url, Queues("brim-told"))
    bodies = [b"%d" % number for number in range(70)]
    overfill(Amqp(amqp.url, Queues(amqp.queues.notices)), bodies)
    tries: Counter[bytes] = Counter()
    up, told = threading.Event(), set[bytes]()

    def send(body: bytes) -> float | None:
        tries[body] += 1
        if not up.is_set():
            return 0.1
        told.add(body)
        return None

    with consuming(amqp.url, amqp.queues, lambda _b, _i: Ack(), send):
        wait_until(lambda: len(tries) == 64)
        up.set()
        wait_until(lambda: told == set(bodies) and amqp.depth(amqp.queues.notices) == 0)


def test_who_waits_for_a_refusal_with_a_full_queue_breaks_no_connection(amqp: Amqp) -> None:
    """The dead letter was written already, and was written again."""
    with pika.BlockingConnection(pika.URLParameters(amqp.url)) as listener:
        channel = listener.channel()
        amqp.queues.declare_refusals(channel)
        arguments = {"x-max-length": 0, "x-overflow": "reject-publish"}
        full = channel.queue_declare("", exclusive=True, arguments=arguments).method.queue
        channel.queue_bind(full, amqp.queues.refusals, refusal_key(b"bad"))
        amqp.publish(b"bad")
        with consuming(amqp.url, amqp.queues, lambda _b, _i: Refuse("no")) as broker:
            connection = wait_until(lambda: broker._consuming)
            wait_until(lambda: amqp.depth(amqp.queues.dead) >= 1 and amqp.state(amqp.queues.work) == (0, 1))
            assert broker._consuming is connection
    assert amqp.depth(amqp.queues.dead) == 1
