"""The credentials for the API server: read again when they change, and never in a log."""

import io
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import config

from dispatcher.backends.kubernetes import KubernetesBackend
from dispatcher.backends.kubernetes_client import load_client
from dispatcher.errors import (
    BackendUnavailableError,
    DispatcherError,
)
from dispatcher.logs import configure_logs
from tests.dispatcher.cluster import (
    RESULT,
    complete_new_job,
    name_of,
    new_job,
    wait_told,
    watching,
)
from tests.dispatcher.support import wait_until
from tests.parts.api_server import ApiServer, Fault
from tests.parts.job_controller import JobController
from tests.parts.receiver import Receiver


def test_20_a_token_rotated_on_disk_is_read_again(
    api_server: ApiServer, controller: JobController, receiver: Receiver, tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(api_server.token)
    api = api_server.client()
    configuration = api.configuration

    def refresh(configuration: Any) -> None:  # what load_incluster_config installs
        configuration.api_key["authorization"] = "Bearer " + token_file.read_text()

    configuration.refresh_api_key_hook = refresh
    with watching(api, api_server.namespace) as watch:
        wait_until(lambda: api_server.open_watches == 2)
        api_server.tokens = {"new-token": next(iter(api_server.tokens.values()))}
        api_server.end_watches("close")
        wait_until(lambda: any(request.status == 401 for request in api_server.requests))
        token_file.write_text("new-token")
        complete_new_job(controller, receiver, watch.backend, "after")
        wait_told(receiver, "processing", "completed", style="after")


def test_20_the_kubeconfig_is_used_and_a_missing_one_is_said(
    api_server: ApiServer, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION",
        str(api_server.kubeconfig(tmp_path / "kubeconfig")),
    )
    api = load_client(connections=4)
    assert KubernetesBackend(api, api_server.namespace, "lora-trainer").create(new_job(receiver))
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "nowhere")
    )
    with pytest.raises(DispatcherError, match="KUBECONFIG"):
        load_client(connections=4)


@pytest.fixture
def captured() -> Iterator[io.StringIO]:
    """All log lines, as the program writes them."""
    text, root = io.StringIO(), logging.getLogger()
    handlers, level = root.handlers, root.level
    configure_logs("json", ["planted-secret"], logging.DEBUG)
    logging.StreamHandler.setStream(root.handlers[0], text)  # type: ignore[arg-type]
    yield text
    root.handlers, root.level = handlers, level


def test_20_no_log_line_has_a_secret_that_an_api_error_prints(
    api_server: ApiServer, controller: JobController, receiver: Receiver, captured: io.StringIO
) -> None:
    """ApiException prints headers and body: both hold what must not be in a log."""
    secret = "planted-secret"
    body = json.dumps({"message": f"denied: https://host/x?sig={secret} Bearer {secret}"}).encode()
    leak = {"Set-Cookie": secret, "X-Token": secret}
    with watching(api_server.client(), api_server.namespace) as watch:
        wait_until(lambda: api_server.open_watches == 2)
        for verb, resource in (("patch", "jobs"), ("watch", "jobs"), ("list", "pods"), ("create", "events")):
            api_server.inject(Fault(500, verb=verb, resource=resource, body=body, headers=leak))
        api_server.end_watches("reset")
        complete_new_job(controller, receiver, watch.backend, "leak")
        wait_told(receiver, "processing", "completed", style="leak")
        api_server.inject(Fault(500, verb="create", resource="jobs", body=body, headers=leak))
        with pytest.raises(BackendUnavailableError) as caught:
            watch.backend.create(new_job(receiver, "x"))
        assert secret not in str(caught.value)
    assert "500" in captured.getvalue()
    assert secret not in captured.getvalue()


def test_events_are_written_again_after_a_token_file_was_empty_for_a_moment(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    """While the kubelet replaces it; the client's error for it once ended the thread that writes them."""
    api, empty = api_server.client(), threading.Event()

    def refresh(_configuration: object) -> None:
        if empty.is_set() and threading.current_thread().name == "events":
            empty.clear()
            raise config.ConfigException("Token file exists but empty.")

    api.configuration.refresh_api_key_hook = refresh
    job = new_job(receiver)
    with watching(api, api_server.namespace) as watch:
        empty.set()
        watch.backend.create(job)
        controller.finish(name_of(job), 0, RESULT)
        api_server.wait_for(
            lambda: [event for event in api_server.all("events") if event["reason"] == "StatusRelayed"]
        )
        assert not empty.is_set()
