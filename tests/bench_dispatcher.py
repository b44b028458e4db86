"""`make bench-dispatcher`: how fast and how small the dispatcher is, against bare create calls beside it.

In the cluster of KUBECONFIG, else in a real control plane from the programs in KUBEBUILDER_ASSETS, else in
the tests' own; with the RabbitMQ of AMQP_URL, else a private one. What can be compared between machines are
the ratio to the ceiling of the same server in the same minute, and the dispatcher's own CPU seconds: server,
broker, backend and this program share the machine with it.

Jobs are made suspended where only their making is measured, so that no pods run beside it.
"""

import argparse
import json
import math
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pika
import psutil
import yaml

from dispatcher.job import JobOptions, Manifest, build_job, job_name, load_template
from dispatcher.message import parse_message
from tests.bench_cluster import open_cluster
from tests.parts.broker import RabbitNode
from tests.parts.receiver import Receiver

STYLE = "bench"
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-dispatcher", description=__doc__)
    parser.add_argument("--messages", type=int, default=1000, help="sent at once")
    parser.add_argument("--paced", type=int, default=200, help="sent at ten a second")
    parser.add_argument("--trainings", type=int, default=100, help="seen through to their end")
    parser.add_argument(
        "--live", type=int, default=10_000, help="Jobs that are there when memory is measured"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    with ExitStack() as stack:
        figures = Bench(Path(stack.enter_context(tempfile.TemporaryDirectory())), stack).measure(options)
    for name, value in figures.items():
        print(f"{name:<58} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


class Bench:
    """Everything around the dispatcher; `measure` starts one for each part of the measurement."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._cluster = open_cluster(folder, stack)
        self._receiver = stack.enter_context(Receiver(token="bench-token"))
        self._settings = {
            "AMQP_URL": os.environ.get("AMQP_URL")
            or stack.enter_context(RabbitNode(folder / "rabbitmq")).url,
            "QUEUE": f"bench_{secrets.token_hex(4)}",
            "BACKEND_URL": self._receiver.url,
            "BACKEND_TOKEN": self._receiver.token,
            "JOB_BACKEND": "kubernetes",
            "KUBECONFIG": self._cluster.kubeconfig,
            "NAMESPACE": self._cluster.namespace,
            "INSTANCE": f"bench-{secrets.token_hex(4)}",
        }
        self._suspended = load_template(None)
        self._suspended["spec"]["suspend"] = True
        (folder / "suspended.yaml").write_text(yaml.safe_dump(self._suspended))

    def measure(self, options: argparse.Namespace) -> Figures:
        figures: Figures = {"cluster": self._cluster.kind, "cpus": os.cpu_count()}
        if self._cluster.kind != "KUBECONFIG":  # whose nodes would have to train
            with self._dispatcher({}) as process:
                figures |= self._relay(process, options.trainings)
        suspended = {"JOB_TEMPLATE": str(self._folder / "suspended.yaml")}
        with self._dispatcher(suspended) as process:
            figures |= self._create_latency(options.paced)
            figures |= self._throughput(process, options.messages)
            figures[f"memory with {self._count()} Jobs, MB"] = _megabytes(process)
        self._cluster.create([self._job() for _ in range(options.live)], threads=8)
        with self._dispatcher(suspended) as process:
            _wait_for_calm(process)
            figures[f"memory with {self._count()} Jobs at its start, MB"] = _megabytes(process)
        return figures

    def _create_latency(self, count: int) -> Figures:
        published = self._publish_paced(count)
        self._cluster.wait(lambda: published.keys() <= self._cluster.added.keys(), 60)
        delays = [self._cluster.added[name] - sent for name, sent in published.items()]
        return _percentiles("publish to Job at 10/s", delays)

    def _throughput(self, process: psutil.Process, count: int) -> Figures:
        """All messages at once; the ceiling is measured before and after, since other work comes and goes."""
        bare = [self._ceiling(count // 2)]
        identities = [secrets.token_hex(8) for _ in range(count)]
        names = {_name(identity) for identity in identities}
        bodies = [_message(identity) for identity in identities]
        used, began = _cpu_seconds(process), time.monotonic()
        self._publish(bodies)
        self._cluster.wait(lambda: names <= self._cluster.added.keys(), 300)
        rate = count / (max(self._cluster.added[name] for name in names) - began)
        used = _cpu_seconds(process) - used
        bare.append(self._ceiling(count // 2))
        return {
            "bare creates/s by 8 threads (the ceiling), before and after": [round(each) for each in bare],
            f"Jobs/s for {count} messages at once": round(rate),
            "ratio to the mean ceiling": round(rate / statistics.mean(bare), 2),
            "dispatcher CPU seconds per 1,000 messages": round(used / count * 1000, 2),
        }

    def _ceiling(self, count: int) -> float:
        return self._cluster.create([self._job() for _ in range(count)], threads=8)

    def _relay(self, process: psutil.Process, count: int) -> Figures:
        """Trainings from message to release: from the Job's Complete to the PATCH, and the CPU of it all."""
        used = _cpu_seconds(process)
        jobs = self._publish_paced(count).keys()
        self._cluster.complete(jobs)
        _wait_until(lambda: jobs <= self._told().keys() and jobs <= self._cluster.completed.keys(), 180)
        used, told = _cpu_seconds(process) - used, self._told()
        return {
            **_percentiles(
                "Complete to PATCH", [told[name] - self._cluster.completed[name] for name in jobs]
            ),
            "dispatcher CPU seconds per 1,000 trainings, with statuses": round(used / count * 1000, 2),
        }

    def _told(self) -> dict[str, float]:
        """Return when the backend was told of each completed Job, by the Job's name."""
        done = [patch for patch in self._receiver.patches if patch.status == "completed"]
        return {job_name(patch.json["style_id"], patch.json["task_id"]): patch.monotonic for patch in done}

    def _count(self) -> int:
        return len(self._cluster.added)

    def _job(self) -> Manifest:
        """Make what the dispatcher makes of a message."""
        request = parse_message(_message(secrets.token_hex(8)))
        return build_job(request, self._suspended, JobOptions(instance=self._settings["INSTANCE"]))

    @contextmanager
    def _dispatcher(self, settings: dict[str, str]) -> Iterator[psutil.Process]:
        """Run a dispatcher that has made its first Job, and so listed what was there."""
        with (self._folder / "dispatcher.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dispatcher", "run"],
                env={**os.environ, **self._settings, **settings},
                stderr=log,
            )
        try:
            first = secrets.token_hex(8)
            self._publish([_message(first)])
            self._cluster.wait(lambda: _name(first) in self._cluster.added, 120)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)

    def _publish_paced(self, count: int) -> dict[str, float]:
        """Publish ten messages a second; return when each was sent, by its Job's name."""
        sent: dict[str, float] = {}
        with self._channel() as channel:
            for _ in range(count):
                identity = secrets.token_hex(8)
                now = sent[_name(identity)] = time.monotonic()
                channel.basic_publish("", self._settings["QUEUE"], _message(identity))
                channel.connection.process_data_events(0)
                time.sleep(max(0.0, now + 0.1 - time.monotonic()))
        return sent

    def _publish(self, bodies: Sequence[bytes]) -> None:
        with self._channel() as channel:
            for body in bodies:
                channel.basic_publish("", self._settings["QUEUE"], body)

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        connection = pika.BlockingConnection(pika.URLParameters(self._settings["AMQP_URL"]))
        try:
            channel = connection.channel()
            channel.queue_declare(self._settings["QUEUE"], durable=True)
            yield channel
        finally:
            connection.close()


def _name(identity: str) -> str:
    return job_name(f"{STYLE}-{identity}", identity)


def _message(identity: str) -> bytes:
    body = {
        "style_id": f"{STYLE}-{identity}",
        "task_id": identity,
        "image_paths": ["s3://bucket/a.jpg"] * 10,
    }
    return json.dumps(body).encode()


def _percentiles(what: str, seconds: Sequence[float]) -> Figures:
    """By nearest rank."""
    ordered = sorted(seconds)
    return {
        f"{what}, p{share} ms": round(ordered[math.ceil(share / 100 * len(ordered)) - 1] * 1000, 1)
        for share in (50, 99)
    }


def _wait_for_calm(process: psutil.Process) -> None:
    _wait_until(lambda: process.cpu_percent(1.0) < 5.0, 120)


def _wait_until(done: Callable[[], bool], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not reached within {timeout:.0f} s")
        time.sleep(0.2)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _megabytes(process: psutil.Process) -> int:
    return int(process.memory_info().rss / 1e6)


if __name__ == "__main__":
    main()
