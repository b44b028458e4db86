"""The metrics: every series is there from the start, and each counts what really happened."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import get_args

from dispatcher.metrics import Metrics
from dispatcher.relay_step import Status
from dispatcher.verdict import Verdict
from dispatcher.webhook import Delivered, Refused, TryAgain
from tests.dispatcher.process import Dispatcher, ends
from tests.dispatcher.support import Amqp, get, message, wait_until
from tests.parts.job_controller import JobController
from tests.parts.ports import free_port
from tests.parts.receiver import Receiver


def metric(text: str, name: str) -> float | None:
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return next((float(value) for found, _, value in lines if found == name), None)


def test_every_series_that_may_come_is_there_from_the_start() -> None:
    """An increase is not seen in a series that begins with 1: the first failure raised no alert."""
    text = Metrics().expose().decode()
    for verdict in get_args(Verdict):
        assert metric(text, f'lora_trainer_messages_total{{verdict="{verdict.__name__.lower()}"}}') == 0
    for status, answer in product([*Status, "progress"], (Delivered, Refused, TryAgain)):
        labels = f'result="{answer.__name__.lower()}",status="{status}"'
        assert metric(text, f"lora_trainer_patches_total{{{labels}}}") == 0
    assert metric(text, "lora_trainer_dead_letters_total") == 0


def test_metrics_count_what_really_happened(
    make_dispatcher: Callable[..., Dispatcher], amqp: Amqp, controller: JobController, receiver: Receiver
) -> None:
    controller.run_all()
    port = free_port()
    with make_dispatcher(HEALTH_PORT=str(port)):
        wait_until(lambda: get(port, "/readyz")[0] == 200, what="it is ready")
        for style in range(3):
            amqp.publish(message(style))
        amqp.publish(b"no JSON")
        wait_until(lambda: ends(receiver, range(3)) == ["completed"] * 3)
        scrape = partial(get, port, "/metrics")
        wait_until(lambda: metric(scrape()[1], 'lora_trainer_jobs{phase="completed"}') == 3)
        wait_until(lambda: metric(scrape()[1], "lora_trainer_dead_letters_total") == 1)
        text = scrape()[1]
        assert metric(text, 'lora_trainer_messages_total{verdict="ack"}') == 3
        assert metric(text, 'lora_trainer_patches_total{result="delivered",status="completed"}') == 3
        assert metric(text, "lora_trainer_job_create_seconds_count") == 3
        assert metric(text, "lora_trainer_relay_seconds_count") == 6
        assert metric(text, "lora_trainer_broker_connected") == 1
        assert (metric(text, "lora_trainer_watch_silence_seconds") or 0) < 60
        assert get(port, "/healthz") == (200, "ok\n")
