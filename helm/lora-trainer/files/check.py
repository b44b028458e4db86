"""What `helm test` runs in the dispatcher's image: one line for each thing that a training needs."""

import sys
from collections.abc import Callable

import pika
import requests
from kubernetes import client

from dispatcher.backends.kubernetes_client import describe, load_client
from dispatcher.job import load_template
from dispatcher.settings import DispatcherSettings
from job_contract.redaction import redact


def check_broker(settings: DispatcherSettings) -> str:
    """Log in, and find the queue, which the dispatcher has declared."""
    with pika.BlockingConnection(pika.URLParameters(settings.amqp_url.get_secret_value())) as connection:
        answer = connection.channel().queue_declare(settings.queue, passive=True)
    return f"the queue {settings.queue} is there; {answer.method.message_count} requests wait in it"


def check_backend(settings: DispatcherSettings) -> str:
    """Any answer will do: which statuses it takes is seen with the first training."""
    if not settings.backend_url:
        return "BACKEND_URL is not set: every message must bring its webhook_url"
    answer = requests.head(settings.backend_url, timeout=10, allow_redirects=False)
    return f"{settings.backend_url} answers ({answer.status_code})"


def check_job(settings: DispatcherSettings) -> str:
    """Ask the cluster to take a training's Job, without making it: quota, admission and Role are asked too."""
    job = load_template(settings.job_template)
    job.setdefault("metadata", {})["generateName"] = "lora-test-"
    batch = client.BatchV1Api(load_client(connections=1))
    try:
        batch.create_namespaced_job(settings.namespace, job, dry_run="All")
    except client.ApiException as error:
        raise RuntimeError(describe(error)) from error
    return f"a Job would be taken in the namespace {settings.namespace}"


def main() -> int:
    settings = DispatcherSettings.from_environment()
    checks: dict[str, Callable[[DispatcherSettings], str]] = {
        "broker": check_broker,
        "backend": check_backend,
        "job": check_job,
    }
    failed = False
    for name, check in checks.items():
        try:
            print(f"ok      {name}: {check(settings)}")  # noqa: T201
        except Exception as error:  # noqa: BLE001 (each check says its own, and the next one still runs)
            failed = True
            print(f"FAILED  {name}: {type(error).__name__} {redact(str(error))}")  # noqa: T201
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
