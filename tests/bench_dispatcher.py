"""`make bench-dispatcher`: how fast and how small the dispatcher is, against bare create calls beside it.

Against KUBECONFIG and AMQP_URL where they are set, else against the tests' own API server and RabbitMQ.
Ratios to the ceiling of the same server in the same run are what can be compared between machines.
"""

import argparse
import contextlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pika
import psutil
import urllib3
from kubernetes import client, config, watch

from dispatcher.job import SELECTOR, JobOptions, Manifest, build_job, job_name, load_template
from dispatcher.message import parse_message
from job_contract.names import FINALIZER
from tests.parts.broker import RabbitNode
from tests.parts.receiver import Receiver

STYLE = "bench"


class Cluster:
    """The API server under test, and when each Job of this run was added and completed."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.batch = client.BatchV1Api()
        self.added: dict[str, float] = {}
        self.completed: dict[str, float] = {}
        self._changed = threading.Condition()
        threading.Thread(target=self._watch, daemon=True).start()

    def wait(self, done: Callable[[], bool], timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(done, timeout):
                raise TimeoutError(f"not reached within {timeout:.0f} s")

    def _watch(self) -> None:
        stream = watch.Watch().stream(
            self.batch.list_namespaced_job, self.namespace, label_selector=SELECTOR, _preload_content=False
        )
        with contextlib.suppress(urllib3.exceptions.ProtocolError):  # the API server has gone: the end
            for event in stream:
                self._note(event["raw_object"])

    def _note(self, job: Manifest) -> None:
        name, now = job["metadata"]["name"], time.monotonic()
        conditions = job.get("status", {}).get("conditions") or ()
        with self._changed:
            self.added.setdefault(name, now)
            if any(condition["type"] == "Complete" for condition in conditions):
                self.completed.setdefault(name, now)
            self._changed.notify_all()


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-dispatcher", description=__doc__)
    parser.add_argument("--messages", type=int, default=1000, help="sent at once")
    parser.add_argument(
        "--live", type=int, default=10_000, help="Jobs that are there when memory is measured"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        figures = _measure(folder, stack, options.messages, options.live)
    for name, value in figures.items():
        print(f"{name:<44} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def _measure(folder: Path, stack: ExitStack, messages: int, live: int) -> dict[str, Any]:
    kubeconfig = os.environ.get("KUBECONFIG") or _own_cluster(folder, stack)
    config.load_kube_config(kubeconfig)
    amqp_url = os.environ.get("AMQP_URL") or stack.enter_context(RabbitNode(folder / "rabbitmq")).url
    receiver = stack.enter_context(Receiver(token="bench"))
    cluster = Cluster(os.environ.get("NAMESPACE", "default"))
    settings = {
        "AMQP_URL": amqp_url,
        "QUEUE": f"bench_{secrets.token_hex(4)}",
        "BACKEND_URL": receiver.url,
        "BACKEND_TOKEN": "bench",
        "JOB_BACKEND": "kubernetes",
        "KUBECONFIG": kubeconfig,
        "NAMESPACE": cluster.namespace,
        "INSTANCE": f"bench-{secrets.token_hex(4)}",
    }
    figures: dict[str, Any] = {"cpus": os.cpu_count(), "messages": messages}
    figures["bare creates/s, 1 thread"] = round(_bare_creates(cluster, 1, messages // 4, settings), 1)
    ceiling = _bare_creates(cluster, 8, messages // 2, settings)
    figures["bare creates/s, 8 threads (the ceiling)"] = round(ceiling, 1)
    with _dispatcher(settings, folder) as process:
        figures |= _latency(cluster, receiver, settings)
        figures |= _throughput(cluster, settings, messages, ceiling)
        figures["memory with these Jobs, MB"] = _megabytes(process)
    _fill(cluster, settings, live)
    with _dispatcher(settings, folder) as process:
        _wait_for_calm(process)
        figures[f"memory with {live} more live Jobs, MB"] = _megabytes(process)
    return figures


def _own_cluster(folder: Path, stack: ExitStack) -> str:
    """Run the tests' API server and Job controller in a process of their own."""
    path = folder / "kubeconfig"
    command = [
        sys.executable,
        "-m",
        "tests.parts.job_controller",
        "--kubeconfig",
        str(path),
        "--seconds",
        "5",
    ]
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
    stack.callback(process.terminate)
    if process.stdout is None or not process.stdout.readline():
        raise RuntimeError("the tests' API server did not start")
    return str(path)


@contextmanager
def _dispatcher(settings: dict[str, str], folder: Path) -> Iterator["psutil.Process"]:
    with (folder / "dispatcher.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dispatcher", "run"], env={**os.environ, **settings}, stderr=log
        )
    try:
        _publish(settings, [_message("warm-up-" + secrets.token_hex(4))])
        time.sleep(3)  # until it has listed and consumes
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def _bare_creates(cluster: Cluster, threads: int, count: int, settings: dict[str, str]) -> float:
    """Return the Jobs per second that the official client creates with nothing around it."""
    jobs = [_job(secrets.token_hex(8), settings) for _ in range(count)]

    def create(job: Manifest) -> None:
        cluster.batch.create_namespaced_job(cluster.namespace, job, _preload_content=False).read()

    with ThreadPoolExecutor(threads) as pool:
        began = time.monotonic()
        list(pool.map(create, jobs))
        return count / (time.monotonic() - began)


def _latency(cluster: Cluster, receiver: Receiver, settings: dict[str, str]) -> dict[str, Any]:
    """Publish ten messages a second for ten seconds: from publish to ADDED, from Complete to the PATCH."""
    published: dict[str, float] = {}
    with _channel(settings) as channel:
        for _ in range(100):
            identity = secrets.token_hex(8)
            sent = published[job_name(_style(identity), identity)] = time.monotonic()
            channel.basic_publish("", settings["QUEUE"], _message(identity))
            channel.connection.process_data_events(0)
            time.sleep(max(0.0, sent + 0.1 - time.monotonic()))
    cluster.wait(lambda: published.keys() <= cluster.added.keys(), 60)
    delays = [(cluster.added[name] - sent) * 1000 for name, sent in published.items()]
    return {
        "publish to Job at 10/s, p50 ms": round(statistics.median(delays), 1),
        "publish to Job at 10/s, p99 ms": round(_percentile(delays, 0.99), 1),
        **_relay_latency(cluster, receiver, published.keys()),
    }


def _throughput(cluster: Cluster, settings: dict[str, str], count: int, ceiling: float) -> dict[str, Any]:
    identities = [secrets.token_hex(8) for _ in range(count)]
    names = {job_name(_style(identity), identity) for identity in identities}
    bodies = [_message(identity) for identity in identities]
    began = time.monotonic()
    _publish(settings, bodies)
    cluster.wait(lambda: names <= cluster.added.keys(), 300)
    rate = count / (max(cluster.added[name] for name in names) - began)
    return {
        "Jobs/s for all messages at once": round(rate, 1),
        "ratio to the ceiling": round(rate / ceiling, 2),
    }


def _relay_latency(cluster: Cluster, receiver: Receiver, jobs: Set[str]) -> dict[str, Any]:
    _wait_until(lambda: jobs <= _told(receiver).keys() and jobs <= cluster.completed.keys(), 180)
    told = _told(receiver)
    delays = [(told[name] - cluster.completed[name]) * 1000 for name in jobs]
    return {
        "Complete to PATCH at 10/s, p50 ms": round(statistics.median(delays), 1),
        "Complete to PATCH at 10/s, p99 ms": round(_percentile(delays, 0.99), 1),
    }


def _told(receiver: Receiver) -> dict[str, float]:
    """Return when the backend was told of each completed Job, by the Job's name."""
    done = [patch for patch in receiver.patches if patch.status == "completed"]
    return {job_name(patch.json["style_id"], patch.json["task_id"]): patch.monotonic for patch in done}


def _fill(cluster: Cluster, settings: dict[str, str], count: int) -> None:
    """Make Jobs that stay: suspended ones have no pods and never end."""

    def create(_number: int) -> None:
        job = _job(secrets.token_hex(8), settings)
        job["spec"]["suspend"] = True
        cluster.batch.create_namespaced_job(cluster.namespace, job, _preload_content=False).read()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(create, range(count)))


def _wait_for_calm(process: "psutil.Process") -> None:
    _wait_until(lambda: process.cpu_percent(1.0) < 5.0, 120)


def _wait_until(done: Callable[[], bool], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not reached within {timeout:.0f} s")
        time.sleep(0.2)


def _job(identity: str, settings: dict[str, str]) -> Manifest:
    request = parse_message(_message(identity))
    job = build_job(request, load_template(None), JobOptions(instance=settings["INSTANCE"]))
    job["metadata"]["finalizers"] = [FINALIZER]
    return job


def _style(identity: str) -> str:
    return f"{STYLE}-{identity}"


def _message(identity: str) -> bytes:
    return json.dumps(
        {"style_id": _style(identity), "task_id": identity, "image_paths": ["s3://bucket/a.jpg"] * 10}
    ).encode()


@contextmanager
def _channel(settings: dict[str, str]) -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(settings["AMQP_URL"]))
    try:
        channel = connection.channel()
        channel.queue_declare(settings["QUEUE"], durable=True)
        yield channel
    finally:
        connection.close()


def _publish(settings: dict[str, str], bodies: Sequence[bytes]) -> None:
    with _channel(settings) as channel:
        for body in bodies:
            channel.basic_publish("", settings["QUEUE"], body)


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _megabytes(process: "psutil.Process") -> int:
    return int(process.memory_info().rss / 1e6)


if __name__ == "__main__":
    main()
