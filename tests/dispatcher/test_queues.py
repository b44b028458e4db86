"""What people do with the queues by hand, and what a user with few rights may do."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from dispatcher.errors import BrokerUnavailableError
from dispatcher.queues import Queues, connect, counts, publish, redrive
from dispatcher.refusal_listener import RefusalListener
from dispatcher.verdict import Ack, Refuse, Verdict
from tests.dispatcher.support import Amqp, consuming, is_empty, message, wait_until
from tests.parts.broker import RabbitNode


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
        RefusalListener(as_user(strict_rabbit, "limited"), queues, b"x")


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
        lambda: counts(wrong, amqp.queues),
    ):
        with pytest.raises(BrokerUnavailableError) as caught:
            action()
        assert "wrong-password" not in str(caught.value)
