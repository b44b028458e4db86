"""A real RabbitMQ: no message is acked before its Job exists, and none is lost, whatever is cut when."""

import threading
from collections import Counter

import pika
import pytest

from dispatcher.broker import Broker, Work
from dispatcher.queues import REASON_HEADER, REFUSED_AT_HEADER
from dispatcher.verdict import Ack, Postpone, Refuse, Verdict
from tests.dispatcher.support import Amqp, consuming, is_empty, message, resumed, through, wait_until
from tests.parts.proxy import TcpProxy


def test_a_message_is_acked_only_after_its_handler_said_so(amqp: Amqp) -> None:
    entered, may_go = threading.Event(), threading.Event()

    def handle(_body: bytes, _message_id: str | None) -> Verdict:
        entered.set()
        may_go.wait(10)
        return Ack()

    amqp.publish(message())
    with consuming(amqp.url, amqp.queues, handle):
        assert entered.wait(10)
        # Whoever deletes the consumer now must find the message again: it is unacked.
        assert amqp.state(amqp.queues.work) == (0, 1)
        may_go.set()
        wait_until(lambda: is_empty(amqp))
    assert amqp.depth(amqp.queues.work) == 0


def test_handlers_get_body_and_message_id_as_they_were_published(amqp: Amqp) -> None:
    got: list[tuple[bytes, str | None]] = []

    def handle(body: bytes, message_id: str | None) -> Verdict:
        got.append((body, message_id))
        return Ack()

    body = amqp.publish(b"\x00\xff {", message_id="amqp-7")
    amqp.publish(b"plain")
    with consuming(amqp.url, amqp.queues, handle):
        wait_until(lambda: len(got) == 2)
    assert sorted(got, key=str) == sorted([(body, "amqp-7"), (b"plain", None)], key=str)


def test_a_refused_message_lies_in_the_dead_letters_unchanged_with_its_reason(amqp: Amqp) -> None:
    body = b'{"style_id": "../x",  "odd": "\xc3\xbc"}\n\xff'
    amqp.publish(
        body,
        message_id="m-1",
        correlation_id="c-1",
        content_type="text/plain",
        app_id="backend",
        type="training",
        priority=3,
        timestamp=1_700_000_000,
        expiration="60000",
        headers={"tenant": "art", "nested": {"list": [1, "two", None]}},
    )
    with consuming(amqp.url, amqp.queues, lambda _body, _id: Refuse("style_id may not hold ../")):
        wait_until(lambda: amqp.depth(amqp.queues.dead) == 1)
    taken = amqp.take(amqp.queues.dead)
    assert taken
    properties, dead = taken
    assert dead == body
    headers = dict(properties.headers)
    assert headers.pop(REASON_HEADER) == "style_id may not hold ../"
    assert headers.pop(REFUSED_AT_HEADER).startswith("20")
    assert headers == {"tenant": "art", "nested": {"list": [1, "two", None]}}
    assert (properties.message_id, properties.correlation_id) == ("m-1", "c-1")
    assert (properties.content_type, properties.app_id, properties.type) == (
        "text/plain",
        "backend",
        "training",
    )
    assert (properties.priority, properties.timestamp) == (3, 1_700_000_000)
    assert properties.expiration is None
    assert properties.delivery_mode == 2


def test_a_very_long_reason_does_not_break_the_channel(amqp: Amqp) -> None:
    amqp.publish(b"x")
    with consuming(amqp.url, amqp.queues, lambda _body, _id: Refuse("ü" * 200_000)):
        wait_until(lambda: amqp.depth(amqp.queues.dead) == 1)
    assert amqp.depth(amqp.queues.work) == 0


def test_a_notice_is_tried_again_until_it_is_delivered(amqp: Amqp) -> None:
    attempts: Counter[bytes] = Counter()

    def send(body: bytes) -> float | None:
        attempts[body] += 1
        return None if attempts[body] == 3 else 0.05

    amqp.publish(b"x")
    with consuming(amqp.url, amqp.queues, lambda _b, _i: Refuse("no", notice=b"tell"), send):
        wait_until(lambda: attempts[b"tell"] == 3)
        wait_until(lambda: is_empty(amqp, amqp.queues.notices))
    assert amqp.depth(amqp.queues.notices) == 0
    assert attempts[b"tell"] == 3


def test_notices_that_cannot_be_delivered_do_not_hold_up_the_others(amqp: Amqp) -> None:
    """More of them than are prefetched, given back to the head of the queue, once starved the rest."""
    delivered = threading.Event()

    def send(body: bytes) -> float | None:
        if body == b"good":
            delivered.set()
            return None
        return 0.1

    bodies = [b"bad-%d" % n for n in range(80)] + [b"good"]
    for body in bodies:
        amqp.publish(body)
    with consuming(amqp.url, amqp.queues, lambda body, _i: Refuse("no", notice=body), send):
        assert delivered.wait(15)


def test_a_backend_that_never_answers_holds_up_no_message(amqp: Amqp) -> None:
    """More notices than there are threads, each held for a PATCH's time, once held up every Job."""
    answers, told = threading.Event(), set[bytes]()
    handled: list[bytes] = []

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        if body.startswith(b"bad"):
            return Refuse("no", notice=body)
        handled.append(body)
        return Ack()

    def send(body: bytes) -> None:
        answers.wait(60)
        told.add(body)

    bad = {amqp.publish(b"bad-%d" % number) for number in range(20)}
    with consuming(amqp.url, amqp.queues, handle, send):
        wait_until(lambda: amqp.depth(amqp.queues.dead) == 20)
        amqp.publish(b"good")
        wait_until(lambda: handled == [b"good"] and is_empty(amqp))
        assert told == set()
        answers.set()
        wait_until(lambda: told == bad)


def test_notices_do_not_pile_up_while_connections_break_and_a_backend_never_answers(
    amqp: Amqp, proxy: TcpProxy
) -> None:
    """What waited for a thread was left to wait, and came again on each connection."""
    answers, sends = threading.Event(), Counter[bytes]()

    def send(body: bytes) -> None:
        sends[body] += 1
        answers.wait(60)

    with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
        channel = connection.channel()
        channel.queue_declare(amqp.queues.notices, durable=True)
        for number in range(70):
            channel.basic_publish("", amqp.queues.notices, b"notice %d" % number)
    with consuming(through(amqp.url, proxy.port), amqp.queues, lambda _b, _i: Ack(), send):
        for _ in range(3):
            wait_until(lambda: amqp.depth(amqp.queues.notices) == 6 and len(sends) == 4, what="64 are here")
            proxy.refuse()
            wait_until(lambda: amqp.depth(amqp.queues.notices) == 70, what="all are back")
            proxy.resume()
        wait_until(lambda: amqp.depth(amqp.queues.notices) == 6, what="64 are here again")
        answers.set()
        wait_until(lambda: len(sends) == 70 and is_empty(amqp, amqp.queues.notices), what="all are sent")
    assert sends.total() <= 74


def test_messages_whose_handler_raises_for_ever_do_not_hold_up_the_others(
    amqp: Amqp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than are prefetched, given back to the head of the queue, once starved the rest."""
    monkeypatch.setattr("dispatcher.broker._UNFORESEEN_SECONDS", 0.2)
    good = threading.Event()

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        if body == b"good":
            good.set()
            return Ack()
        raise RuntimeError("a bug")

    bodies = [amqp.publish(b"bad %d" % number) for number in range(40)]
    amqp.publish(b"good")
    with consuming(amqp.url, amqp.queues, handle, handlers=1):
        assert good.wait(15)
    wait_until(lambda: amqp.depth(amqp.queues.work) == 40)
    kept = amqp.take_all(amqp.queues.work)
    assert sorted(body for _, body in kept) == sorted(bodies)


def test_a_handler_that_raises_loses_nothing_and_stops_nothing(amqp: Amqp) -> None:
    seen: Counter[bytes] = Counter()

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        seen[body] += 1
        if body == b"bad" and seen[body] == 1:
            raise RuntimeError("a bug")
        return Ack()

    amqp.publish(b"bad")
    amqp.publish(b"good")
    with consuming(amqp.url, amqp.queues, handle) as broker:
        wait_until(lambda: seen[b"bad"] == 1)
        wait_until(lambda: resumed(broker) and seen[b"bad"] > 1 and seen[b"good"] > 0)
        wait_until(lambda: is_empty(amqp))


def test_18_postponing_cancels_the_consumer_and_holds_nothing(amqp: Amqp) -> None:
    """Held messages run into consumer_timeout while a cluster is full, which closes the channel."""
    full = threading.Event()
    full.set()
    postponed, seen = threading.Event(), list[bytes]()

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        if full.is_set():
            postponed.set()
            return Postpone(3600, "the cluster is full")
        seen.append(body)
        return Ack()

    bodies = [amqp.publish(message()) for _ in range(50)]
    with consuming(amqp.url, amqp.queues, handle) as broker:
        assert postponed.wait(15)
        wait_until(lambda: amqp.state(amqp.queues.work) == (50, 0), what="all ready, no consumer")
        full.clear()
        broker.resume()
        wait_until(lambda: len(seen) == 50)
        wait_until(lambda: amqp.state(amqp.queues.work) == (0, 1))
    assert sorted(seen) == sorted(bodies)


def test_consumption_starts_again_by_itself_after_the_wait(amqp: Amqp) -> None:
    verdicts = iter([Postpone(0.2, "full")])
    amqp.publish(message())
    with consuming(amqp.url, amqp.queues, lambda _b, _i: next(verdicts, Ack())):
        wait_until(lambda: amqp.state(amqp.queues.work) == (0, 1))


def test_17_a_connection_cut_between_handling_and_ack_brings_the_message_again(
    amqp: Amqp, proxy: TcpProxy
) -> None:
    seen: list[bytes] = []

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        seen.append(body)
        if len(seen) == 1:
            proxy.cut()  # its Job is created; the ack will not get through
        return Ack()

    body = amqp.publish(message())
    with consuming(through(amqp.url, proxy.port), amqp.queues, handle):
        wait_until(lambda: len(seen) == 2)
        wait_until(lambda: amqp.state(amqp.queues.work) == (0, 1))
    assert seen == [body, body]


def test_a_connection_cut_while_dead_lettering_loses_no_message(amqp: Amqp, proxy: TcpProxy) -> None:
    cuts = iter(range(3))

    def handle(_body: bytes, _message_id: str | None) -> Verdict:
        if next(cuts, None) is not None:
            proxy.cut()
        return Refuse("no")

    bodies = {amqp.publish(message()) for _ in range(5)}
    with consuming(through(amqp.url, proxy.port), amqp.queues, handle):
        wait_until(lambda: is_empty(amqp) and amqp.depth(amqp.queues.dead) >= 5, timeout=30)
    assert {body for _, body in amqp.take_all(amqp.queues.dead)} == bodies


def test_a_broker_that_is_away_is_come_back_to(amqp: Amqp, proxy: TcpProxy) -> None:
    seen: list[bytes] = []

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        seen.append(body)
        return Ack()

    with consuming(through(amqp.url, proxy.port), amqp.queues, handle) as broker:
        wait_until(lambda: broker.connected)
        proxy.refuse()
        wait_until(lambda: not broker.connected)
        amqp.publish(message())
        proxy.resume()
        wait_until(lambda: len(seen) == 1)


def test_19_a_queue_deleted_mid_run_is_declared_anew(amqp: Amqp) -> None:
    seen: list[bytes] = []

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        seen.append(body)
        return Ack()

    with consuming(amqp.url, amqp.queues, handle):
        wait_until(lambda: amqp.state(amqp.queues.work) == (0, 1))
        amqp.delete(amqp.queues.work)
        wait_until(lambda: amqp.state(amqp.queues.work) == (0, 1))
        body = amqp.publish(message())
        wait_until(lambda: seen == [body])


def test_notices_are_sent_again_after_their_queue_was_deleted(amqp: Amqp) -> None:
    """RabbitMQ had ended their consumption, and nobody noticed."""
    told: list[bytes] = []
    with consuming(amqp.url, amqp.queues, lambda body, _i: Refuse("no", notice=body), told.append):
        wait_until(lambda: amqp.state(amqp.queues.notices) == (0, 1))
        amqp.delete(amqp.queues.notices)
        wait_until(lambda: amqp.state(amqp.queues.notices) == (0, 1))
        amqp.publish(b"tell")
        wait_until(lambda: told == [b"tell"])


def test_deleting_the_dead_letter_queue_loses_no_refused_message(amqp: Amqp) -> None:
    with consuming(amqp.url, amqp.queues, lambda _b, _i: Refuse("no")):
        wait_until(lambda: amqp.state(amqp.queues.work) == (0, 1))
        amqp.delete(amqp.queues.dead)
        body = amqp.publish(message())
        taken = wait_until(lambda: amqp.depth(amqp.queues.dead) == 1 and amqp.take(amqp.queues.dead))
    assert taken
    assert taken[1] == body


def test_19_the_declaration_is_the_publishers_own(amqp: Amqp) -> None:
    """Any other argument is a 406 to whoever declares second."""
    with consuming(amqp.url, amqp.queues, lambda _b, _i: Ack()) as broker:
        wait_until(lambda: broker.connected)
        with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
            channel = connection.channel()
            for queue in (amqp.queues.work, amqp.queues.dead, amqp.queues.notices):
                channel.queue_declare(queue, durable=True)


def test_17_a_slow_handler_does_not_stall_the_heartbeats(amqp: Amqp) -> None:
    may_go = threading.Event()

    def handle(_body: bytes, _message_id: str | None) -> Verdict:
        may_go.wait(20)
        return Ack()

    amqp.publish(message())
    with consuming(amqp.url + "?heartbeat=1", amqp.queues, handle) as broker:
        wait_until(lambda: amqp.state(amqp.queues.work) == (0, 1))
        connection = broker._consuming
        assert not may_go.wait(3)  # three heartbeats long
        may_go.set()
        wait_until(lambda: is_empty(amqp))
        assert broker._consuming is connection


def test_what_is_under_way_when_it_stops_is_acked_and_the_rest_stays(amqp: Amqp) -> None:
    entered, stop, done = threading.Event(), threading.Event(), []

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        entered.set()
        stop.wait(10)
        done.append(body)
        return Ack()

    broker = Broker(amqp.url, amqp.queues, Work(handle, lambda _body: None))
    for _ in range(100):
        amqp.publish(message())
    thread = threading.Thread(target=broker.run, args=(stop,))
    thread.start()
    assert entered.wait(10)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    wait_until(lambda: amqp.depth(amqp.queues.work) == 100 - len(done))
