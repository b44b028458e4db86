"""Quorum queues drop what came back too often: nothing that waits here comes back that often."""

import threading
from collections import Counter

import pika
import pytest

from dispatcher.queues import Queues
from dispatcher.refusal_listener import RefusalListener
from dispatcher.verdict import Ack, Postpone, Refuse, Verdict
from tests.dispatcher.support import Amqp, consuming, is_empty, message, resumed, through, wait_until
from tests.parts.broker import RabbitNode
from tests.parts.proxy import TcpProxy


@pytest.fixture
def quorum(strict_rabbit: RabbitNode, queues: Queues) -> Amqp:
    return Amqp(strict_rabbit.url.replace("%2F", "quorum"), queues)


def test_a_quorum_queue_drops_what_came_back_20_times(quorum: Amqp) -> None:
    """What the next test would be worth nothing without."""
    quorum.publish(b"x")
    returns = 0
    with pika.BlockingConnection(pika.URLParameters(quorum.url)) as connection:
        channel = connection.channel()
        for method, _, _ in channel.consume(quorum.queues.work, inactivity_timeout=2):
            if method is None:
                break
            channel.basic_nack(method.delivery_tag, requeue=True)
            returns += 1
    assert returns == 21


def test_messages_that_wait_for_room_outlive_the_limit_of_a_quorum_queue(quorum: Amqp) -> None:
    """After an hour of a full cluster they were gone."""
    seen: Counter[bytes] = Counter()
    full = threading.Event()
    full.set()
    done: list[tuple[bytes, str | None]] = []

    def handle(body: bytes, message_id: str | None) -> Verdict:
        seen[body] += 1
        if full.is_set():
            return Postpone(0, "the cluster is full")
        done.append((body, message_id))
        return Ack()

    bodies = [quorum.publish(message(), message_id=f"id-{n}") for n in range(40)]
    with consuming(quorum.url, quorum.queues, handle) as broker:
        wait_until(lambda: min(seen[body] for body in bodies) > 25, timeout=60)
        full.clear()
        wait_until(lambda: resumed(broker) and len(done) >= 40)
        wait_until(lambda: is_empty(quorum))
    assert sorted(done) == sorted((body, f"id-{n}") for n, body in enumerate(bodies))
    assert quorum.depth(quorum.queues.dead) == 0


def test_a_message_that_came_back_often_goes_behind_the_others_as_it_was(amqp: Amqp) -> None:
    fields = {
        "message_id": "m-1",
        "correlation_id": "c-1",
        "content_type": "application/json",
        "app_id": "backend",
        "type": "training",
        "priority": 3,
        "timestamp": 1_700_000_000,
        "expiration": "600000",
    }
    counts = {"x-delivery-count": 10, "x-acquired-count": 31}
    body = amqp.publish(message(1), headers={"tenant": "art", **counts}, **fields)
    other = amqp.publish(message(2), headers={"x-delivery-count": 9})
    handled: list[bytes] = []

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        handled.append(body)
        return Postpone(3600, "the cluster is full")

    with consuming(amqp.url, amqp.queues, handle):
        wait_until(lambda: handled and amqp.state(amqp.queues.work) == (2, 0))
    assert handled[0] == other
    (_, first), (properties, second) = amqp.take_all(amqp.queues.work)
    assert (first, second) == (other, body)
    assert {name: getattr(properties, name) for name in fields} == fields
    assert properties.headers == {"tenant": "art"}
    assert properties.delivery_mode == 2


def test_a_copy_that_is_put_back_goes_to_no_queue_of_the_first_publishers_cc(amqp: Amqp) -> None:
    """A refused message that names our own queue there would come again for ever."""
    copies = amqp.queues.notices
    with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
        connection.channel().queue_declare(copies, durable=True)
    amqp.publish(b"worn", headers={"CC": [copies], "x-delivery-count": 10})
    amqp.publish(b"bad", headers={"CC": [copies]})
    copied: list[bytes] = []
    with consuming(amqp.url, amqp.queues, lambda _b, _i: Refuse("no"), copied.append):
        wait_until(lambda: amqp.depth(amqp.queues.dead) == 2)
        wait_until(lambda: is_empty(amqp, copies))
    assert sorted(copied) == [b"bad", b"worn"]


def test_a_connection_cut_after_a_message_was_put_back_brings_it_twice_and_does_not_lose_it(
    amqp: Amqp, proxy: TcpProxy
) -> None:
    seen: list[tuple[bytes, str | None]] = []

    def handle(body: bytes, message_id: str | None) -> Verdict:
        seen.append((body, message_id))
        return Ack()

    body = amqp.publish(b"x", message_id="m", headers={"x-delivery-count": 15})
    basic_ack = (60).to_bytes(2) + (80).to_bytes(2)
    proxy.hold_at(basic_ack)
    with consuming(through(amqp.url, proxy.port), amqp.queues, handle):
        assert proxy.held.wait(10)
        proxy.cut()
        proxy.resume()
        wait_until(lambda: len(seen) >= 2)
        wait_until(lambda: amqp.state(amqp.queues.work) == (0, 1))
    assert set(seen) == {(body, "m")}


def test_a_notice_that_came_back_often_goes_behind_the_others(amqp: Amqp) -> None:
    sent: list[bytes] = []
    with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
        channel = connection.channel()
        channel.queue_declare(amqp.queues.notices, durable=True)
        worn = pika.BasicProperties(headers={"x-delivery-count": 10})
        channel.basic_publish("", amqp.queues.notices, b"worn", worn)
        channel.basic_publish("", amqp.queues.notices, b"fresh")
    with consuming(amqp.url, amqp.queues, lambda _b, _i: Ack(), sent.append, handlers=1):
        wait_until(lambda: len(sent) == 2)
        wait_until(lambda: is_empty(amqp, amqp.queues.notices))
    assert sent == [b"fresh", b"worn"]


def test_submit_wait_hears_of_a_refusal_where_queues_are_quorum_queues(quorum: Amqp) -> None:
    """A quorum queue cannot be exclusive, as the one that listens is."""
    with RefusalListener(quorum.url, quorum.queues, b"x") as refusals:
        quorum.publish(b"x")
        with consuming(quorum.url, quorum.queues, lambda _b, _i: Refuse("it is bad")):
            wait_until(lambda: refusals.wait(0.1) == "it is bad")
