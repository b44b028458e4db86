"""A backend that takes a PATCH and says nothing holds up what it is told, and nothing else."""

import json
from collections.abc import Iterator

import pytest

from dispatcher.allowed_hosts import AllowedHosts
from dispatcher.diagnosis import VERDICT_ANNOTATION
from dispatcher.notices import Notices
from dispatcher.style_lanes import hold
from dispatcher.verdict import Refuse
from dispatcher.webhook import Webhook
from tests.dispatcher.cluster import (
    RESULT,
    TELLERS,
    Watching,
    annotations,
    batch_api,
    name_of,
    new_job,
    told,
    wait_told,
    watching,
)
from tests.dispatcher.support import Amqp, consuming, wait_until
from tests.parts.api_server import ApiServer
from tests.parts.job_controller import JobController
from tests.parts.receiver import Answer, Receiver

TRAININGS = range(1, TELLERS + 3)
FOR_ONE_HOST = TELLERS // 2


@pytest.fixture
def hanging(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> Iterator[tuple[Watching, list[str]]]:
    """More trainings than workers that may wait for one host, which hangs; the names of their Jobs."""
    receiver.answer = lambda _patch: Answer(hang=True)
    with watching(api_server.client(), api_server.namespace, webhook_timeout=60) as watch:
        try:
            jobs = [new_job(receiver, f"task-{style}", style) for style in TRAININGS]
            for job in jobs:
                watch.backend.create(job)
                controller.start_pod(name_of(job))
            wait_until(lambda: len(receiver.patches) == FOR_ONE_HOST, what="all that tell this host wait")
            yield watch, [name_of(job) for job in jobs]
        finally:
            receiver.answer = None
            receiver.release()


def test_a_training_starts_while_every_status_hangs(
    hanging: tuple[Watching, list[str]], api_server: ApiServer, receiver: Receiver
) -> None:
    """All workers were waiting for the backend: with two dispatchers each Job waits to be released."""
    watch, _ = hanging
    job = new_job(receiver, "new", 99)
    hold(job, 1)
    watch.backend.create(job)
    api_server.wait_for(lambda: not (api_server.get("jobs", name_of(job)) or {})["spec"]["suspend"])
    assert len(receiver.patches) == FOR_ONE_HOST


def test_a_training_is_cancelled_while_every_status_hangs(
    hanging: tuple[Watching, list[str]], api_server: ApiServer, receiver: Receiver
) -> None:
    """One whose own status was due for long too: its pod would keep its GPU."""
    _, names = hanging
    waiting = {patch.json["style_id"] for patch in receiver.patches}
    name = next(name for style, name in zip(TRAININGS, names, strict=True) if style not in waiting)
    batch_api(api_server).delete_namespaced_job(name, api_server.namespace, propagation_policy="Background")
    wait_until(lambda: VERDICT_ANNOTATION in annotations(api_server, name), what="it is given up")
    [pod] = [pod for pod in api_server.all("pods") if pod["metadata"]["labels"]["job-name"] == name]
    assert "deletionTimestamp" in pod["metadata"]
    assert len(receiver.patches) == FOR_ONE_HOST


def test_other_hosts_are_told_while_one_hangs(
    api_server: ApiServer, controller: JobController, hanging: tuple[Watching, list[str]]
) -> None:
    """With 200 trainings whose host hung, the `processing` of another host's came after four minutes."""
    watch, _ = hanging
    with Receiver("backend-token") as other, Receiver("backend-token") as another:
        for receiver in (other, another):
            job = new_job(receiver, receiver.url, 42)
            watch.backend.create(job)
            controller.start_pod(name_of(job))
            wait_told(receiver, "processing")
            controller.finish(name_of(job), 0, RESULT)
            wait_told(receiver, "processing", "completed")


def test_all_that_hung_is_told_once_the_backend_answers(
    hanging: tuple[Watching, list[str]], receiver: Receiver
) -> None:
    receiver.answer = None
    receiver.release()
    wait_until(lambda: all(told(receiver, style) == ["processing"] for style in TRAININGS))


# Notices of refused messages


@pytest.fixture
def notices() -> Notices:
    return Notices(Webhook(AllowedHosts(["127.0.0.1"]), "backend-token", timeout_seconds=3))


def notice(receiver: Receiver, number: int) -> bytes:
    return json.dumps({"url": receiver.url, "payload": {"style_id": number}, "id": f"msg_{number}"}).encode()


@pytest.mark.usefixtures("soon")
def test_other_hosts_hear_of_refused_messages_while_one_hangs(
    amqp: Amqp, receiver: Receiver, notices: Notices
) -> None:
    """Those of the one that hung took all that was prefetched, and all threads."""
    receiver.answer = lambda _patch: Answer(hang=True)
    with Receiver("backend-token") as other:

        def refuse(body: bytes, _message_id: str | None) -> Refuse:
            return Refuse("no", notice=body)

        for number in range(80):
            amqp.publish(notice(receiver, number))
        amqp.publish(notice(other, 80))
        with consuming(amqp.url, amqp.queues, refuse, notices.send):
            other.wait_for(lambda patches: len(patches) == 1, timeout=30)
            assert len(receiver.patches) < 12, "hardly more than there are threads"
            receiver.answer = None
            receiver.release()
            receiver.wait_for(lambda patches: len({patch.json["style_id"] for patch in patches}) == 80, 60)


def test_a_notice_that_comes_back_before_it_is_due_is_not_sent(receiver: Receiver, notices: Notices) -> None:
    receiver.script.append(Answer(503, {"Retry-After": "60"}))
    body = notice(receiver, 1)
    first = notices.send(body) or 0
    again = notices.send(body) or 0
    assert 60 >= first >= again > 50
    assert len(receiver.patches) == 1
