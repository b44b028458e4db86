"""A real RabbitMQ: no message is acked before its Job exists, and none is lost, whatever is cut when."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from structlog.testing import capture_logs

from dispatcher.broker import Ack, Broker, Postpone, Refuse, Verdict
from dispatcher.errors import BrokerUnavailableError
from dispatcher.queues import REASON_HEADER, REFUSED_AT_HEADER, Queues, connect, publish, redrive
from dispatcher.refusals import Refusals
from tests.dispatcher.support import Amqp, message, through, wait_until
from tests.parts.broker import RabbitNode
from tests.parts.proxy import TcpProxy

Handle = Callable[[bytes, str | None], Verdict]


def resumed(broker: Broker) -> bool:
    broker.resume()
    return True


@contextmanager
def consuming(
    url: str,
    queues: Queues,
    handle: Handle,
    send_notice: Callable[[bytes], float | None] = lambda _body: None,
    handlers: int = 8,
) -> Iterator[Broker]:
    broker, stop = Broker(url, queues, handle, send_notice, handlers=handlers), threading.Event()
    thread = threading.Thread(target=broker.run, args=(stop,))
    thread.start()
    try:
        yield broker
    finally:
        stop.set()
        thread.join(15)
        assert not thread.is_alive()


@pytest.fixture
def proxy(amqp_url: str) -> Iterator[TcpProxy]:
    parts = urlsplit(amqp_url)
    with TcpProxy(parts.hostname or "127.0.0.1", parts.port or 5672) as proxy:
        yield proxy


def is_empty(amqp: Amqp, queue: str | None = None) -> bool:
    return amqp.depth(queue or amqp.queues.work) == 0


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

    bodies = [b"bad-%d" % n for n in range(40)] + [b"good"]
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
        for number in range(20):
            channel.basic_publish("", amqp.queues.notices, b"notice %d" % number)
    with consuming(through(amqp.url, proxy.port), amqp.queues, lambda _b, _i: Ack(), send):
        for _ in range(3):
            wait_until(lambda: amqp.depth(amqp.queues.notices) == 4 and len(sends) == 4, what="16 are here")
            proxy.refuse()
            wait_until(lambda: amqp.depth(amqp.queues.notices) == 20, what="all are back")
            proxy.resume()
        wait_until(lambda: amqp.depth(amqp.queues.notices) == 4, what="16 are here again")
        answers.set()
        wait_until(lambda: len(sends) == 20 and is_empty(amqp, amqp.queues.notices), what="all are sent")
    assert sends.total() <= 24


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

    broker = Broker(amqp.url, amqp.queues, handle, lambda _body: None)
    for _ in range(100):
        amqp.publish(message())
    thread = threading.Thread(target=broker.run, args=(stop,))
    thread.start()
    assert entered.wait(10)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    wait_until(lambda: amqp.depth(amqp.queues.work) == 100 - len(done))


@pytest.fixture(scope="module")
def strict_rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    """A broker with users who may do little, and a virtual host where a durable queue is a quorum queue."""
    queues = r"model_training(\.dead|\.notices)?"
    with_exchange = r"model_training(\.dead|\.notices|\.refusals)?"
    rights = {
        "guest": (".*", ".*", ".*"),
        "backend": (".*", ".*", ".*"),
        "limited": (f"^{queues}$", rf"^(amq\.default|{queues})$", f"^{queues}$"),
        "half-limited": (".*", rf"^(amq\.default|{queues})$", ".*"),
        "documented": (f"^{with_exchange}$", rf"^(amq\.default|{with_exchange})$", f"^{queues}$"),
        "without-notices": (r"^model_training(\.dead)?$", ".*", ".*"),
    }
    definitions = {
        "users": [{"name": user, "password": user, "tags": ""} for user in rights],
        "vhosts": [{"name": "/"}, {"name": "quorum", "metadata": {"default_queue_type": "quorum"}}],
        "permissions": [
            {"user": user, "vhost": vhost, "configure": configure, "write": write, "read": read}
            for user, (configure, write, read) in rights.items()
            for vhost in ("/", "quorum")
        ],
        # What RabbitMQ 4 does by itself.
        "policies": [
            {"vhost": "quorum", "name": "limit", "pattern": ".*", "definition": {"delivery-limit": 20}}
        ],
    }
    folder = tmp_path_factory.mktemp("strict-rabbit")
    (folder / "definitions.json").write_text(json.dumps(definitions))
    with RabbitNode(folder / "node", {"load_definitions": str(folder / "definitions.json")}) as node:
        yield node


def as_user(node: RabbitNode, name: str) -> str:
    return node.url.replace("guest:guest", f"{name}:{name}")


def test_another_publishers_user_id_does_not_make_a_message_poison(
    strict_rabbit: RabbitNode, queues: Queues
) -> None:
    """RabbitMQ closes the channel of whoever publishes with a user_id that is not its own."""
    theirs = Amqp(as_user(strict_rabbit, "backend"), queues)
    theirs.publish(b"no JSON", user_id="backend")
    theirs.publish(b"came back", user_id="backend", headers={"x-delivery-count": 12})
    with consuming(strict_rabbit.url, queues, lambda _b, _i: Refuse("no")):
        wait_until(lambda: theirs.depth(queues.dead) == 2)


# Quorum queues drop what came back too often


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
    with Refusals(quorum.url, quorum.queues, b"x") as refusals:
        quorum.publish(b"x")
        with consuming(quorum.url, quorum.queues, lambda _b, _i: Refuse("it is bad")):
            wait_until(lambda: refusals.wait(0.1) == "it is bad")


# What the broker's user may not do


@pytest.mark.parametrize(("user", "warnings"), [("limited", 1), ("half-limited", 1), ("documented", 0)])
def test_a_user_who_may_use_the_queues_alone_consumes_and_refuses_as_ever(
    strict_rabbit: RabbitNode, user: str, warnings: int
) -> None:
    """RabbitMQ closes the channel of whoever does what is forbidden."""
    queues, seen = Queues("model_training"), []
    admin = Amqp(strict_rabbit.url, queues)

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        seen.append(body)
        return Refuse("no", notice=body) if body.startswith(b"bad") else Ack()

    told: list[bytes] = []
    with capture_logs() as logs, consuming(as_user(strict_rabbit, user), queues, handle, told.append):
        for body in (b"bad 1", b"good", b"bad 2"):
            admin.publish(body)
        wait_until(lambda: admin.depth(queues.dead) == 2 and is_empty(admin) and len(told) == 2)
    assert sorted(seen) == [b"bad 1", b"bad 2", b"good"]
    assert [line["event"] for line in logs if line["log_level"] != "info"] == [
        "`submit --wait` will not hear of refusals: let the user in AMQP_URL configure and write "
        "model_training.refusals"
    ] * warnings
    admin.delete(queues.work, queues.dead, queues.notices)


def test_a_user_who_may_not_listen_is_told_before_anything_is_published(strict_rabbit: RabbitNode) -> None:
    queues = Queues("model_training")
    with pytest.raises(BrokerUnavailableError, match=r"model_training\.refusals and .*leave out --wait"):
        Refusals(as_user(strict_rabbit, "limited"), queues, b"x")


def test_a_queue_that_the_user_may_not_declare_is_named(strict_rabbit: RabbitNode) -> None:
    queues, seen = Queues("model_training"), []
    admin = Amqp(strict_rabbit.url, queues)
    admin.publish(b"x")

    def handle(body: bytes, _message_id: str | None) -> Verdict:
        seen.append(body)
        return Ack()

    with (
        capture_logs() as logs,
        consuming(as_user(strict_rabbit, "without-notices"), queues, handle) as broker,
    ):
        wait_until(lambda: len(logs) == 2)
        assert not broker.connected
    assert {line["log_level"] for line in logs} == {"warning"}
    for line in logs:
        assert "may not configure the queue model_training.notices" in line["error"]
    assert seen == []
    admin.delete(queues.work, queues.dead)


def test_redrive_puts_every_dead_letter_back_without_the_reason(amqp: Amqp) -> None:
    bodies = [amqp.publish(message(), message_id=str(n), headers={"tenant": "art"}) for n in range(3)]
    with consuming(amqp.url, amqp.queues, lambda _b, _i: Refuse("no")):
        wait_until(lambda: amqp.depth(amqp.queues.dead) == 3)
    assert redrive(amqp.url, amqp.queues) == 3
    assert amqp.depth(amqp.queues.dead) == 0
    taken = amqp.take_all(amqp.queues.work)
    assert [body for _, body in taken] == bodies
    for properties, _ in taken:
        assert properties.headers == {"tenant": "art"}
        assert properties.message_id in ("0", "1", "2")
    assert redrive(amqp.url, amqp.queues) == 0


def test_publishing_is_confirmed_and_persistent(amqp: Amqp) -> None:
    publish(amqp.url, amqp.queues.work, b"body", message_id="m")
    taken = amqp.take(amqp.queues.work)
    assert taken
    properties, body = taken
    assert (body, properties.delivery_mode, properties.message_id) == (b"body", 2, "m")


@pytest.mark.parametrize("url", ["amqp://guest:hidden@127.0.0.1:1/", "no url", "http://x/"])
def test_a_broker_that_cannot_be_reached_is_said_without_its_password(url: str) -> None:
    with pytest.raises(BrokerUnavailableError, match="AMQP_URL") as caught:
        connect(url)
    assert "hidden" not in str(caught.value)


def test_no_pika_error_leaves_the_module(amqp: Amqp) -> None:
    wrong: Any = amqp.url.replace("guest:guest", "guest:wrong-password")
    for action in (
        lambda: publish(wrong, amqp.queues.work, b"x"),
        lambda: redrive(wrong, amqp.queues),
    ):
        with pytest.raises(BrokerUnavailableError) as caught:
            action()
        assert "wrong-password" not in str(caught.value)
