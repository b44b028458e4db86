"""`run` and `redrive`, and settings that no command can use."""

import pika
import pytest

from dispatcher.__main__ import main
from dispatcher.queues import REASON_HEADER
from tests.dispatcher.support import Amqp, message


def test_redrive_puts_dead_letters_back_as_they_were(amqp: Amqp, capsys: pytest.CaptureFixture[str]) -> None:
    body = message(1)
    amqp.publish(body)  # declares the queue
    dead = amqp.queues.dead
    original = amqp.take(amqp.queues.work)
    assert original
    with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
        channel = connection.channel()
        channel.queue_declare(dead, durable=True)
        headers = {REASON_HEADER: "x", "tenant": "art"}
        channel.basic_publish("", dead, original[1], pika.BasicProperties(headers=headers))
    assert main(["redrive"]) == 0
    assert capsys.readouterr().out == f"1 dead letters put back to {amqp.queues.work}\n"
    taken = amqp.take(amqp.queues.work)
    assert taken
    assert taken[1] == original[1]
    assert taken[0].headers == {"tenant": "art"}
    assert amqp.depth(dead) == 0


def test_a_misspelt_setting_is_named_and_nothing_is_done(
    settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.setenv("MAX_ACTIVE_JOB", "3")
    assert main(["status"]) == 78
    assert "MAX_ACTIVE_JOBS" in capsys.readouterr().err


def test_run_without_a_place_for_statuses_says_what_to_set(
    settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.delenv("BACKEND_URL")
    assert main(["run"]) == 78
    assert "BACKEND_URL" in capsys.readouterr().err
