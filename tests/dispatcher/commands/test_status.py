"""`status`: a line for each training, and what the backend was really told."""

import threading
from pathlib import Path

import pytest

from dispatcher.__main__ import main
from dispatcher.backends.kubernetes import KubernetesBackend
from dispatcher.backends.local import LocalBackend
from dispatcher.job import trainer_container
from dispatcher.relay_step import PROCESSING_ANNOTATION
from dispatcher.style_lanes import hold
from tests.dispatcher.cluster import new_job
from tests.dispatcher.commands.printed import Printed
from tests.dispatcher.support import wait_until
from tests.parts.api_server import ApiServer
from tests.parts.job_controller import JobController
from tests.parts.receiver import Receiver


def test_status_shows_each_training_of_a_cluster(
    cluster: ApiServer, controller: JobController, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status"]) == 0
    assert "no trainings" in capsys.readouterr().out
    backend = KubernetesBackend(cluster.client(), cluster.namespace, "lora-trainer")
    for task, style in (("a", 1), ("b", 2)):
        backend.create(new_job(receiver, task, style))
    running, failing = (
        new_job(receiver, task, style)["metadata"]["name"] for task, style in (("a", 1), ("b", 2))
    )
    controller.start_pod(running)
    controller.finish(failing, 65, '{"failure_code":"INVALID_IMAGES","failure_reason":"b.png is bad."}')
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["STYLE", "JOB", "PHASE"]
    [first] = [line for line in lines if running in line]
    [second] = [line for line in lines if failing in line]
    assert first.split()[:4] == ["1", running, "running", "1"]
    assert second.split()[:3] == ["2", failing, "failed"]
    assert "INVALID_IMAGES: b.png is bad." in second


def test_status_says_what_only_events_say_of_a_training_that_does_not_start(
    cluster: ApiServer, controller: JobController, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    job = new_job(receiver)
    KubernetesBackend(cluster.client(), cluster.namespace, "lora-trainer").create(job)
    controller.sync(job["metadata"]["name"])
    forbidden = 'Error creating: pods "x" is forbidden: exceeded quota: gpus'
    controller.record(controller.job(job["metadata"]["name"]), "FailedCreate", forbidden)
    assert main(["status"]) == 0
    assert "exceeded quota: gpus" in capsys.readouterr().out


def test_status_looks_on_beside_a_local_dispatcher(
    tmp_path: Path, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    job = new_job(receiver)
    trainer_container(job)["command"] = ["python", "-c", "raise SystemExit(65)"]
    backend = LocalBackend(tmp_path / "state", tmp_path / "models", ["cpu"])
    backend.create(job)
    stop = threading.Event()
    thread = threading.Thread(target=backend.run, args=(lambda _name: None, stop))
    thread.start()
    try:
        printed = Printed(capsys)
        wait_until(lambda: main(["status"]) == 0 and " failed " in printed.text())
        assert job["metadata"]["name"] in printed.text()
        assert main(["release"]) == 0
        said = capsys.readouterr().out
        assert "Nothing to release" in said
        assert str(tmp_path / "state") in said
    finally:
        stop.set()
        thread.join(20)


def test_status_names_a_state_folder_that_cannot_be_used(
    tmp_path: Path, settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    settings.setenv("LOCAL_STATE_DIR", str(tmp_path / "file" / "folder"))
    assert main(["status"]) == 69
    assert "LOCAL_STATE_DIR" in capsys.readouterr().err


def test_status_calls_told_only_what_the_backend_took(
    cluster: ApiServer, controller: JobController, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training that runs was shown as told while the backend was down."""
    job = new_job(receiver)
    backend = KubernetesBackend(cluster.client(), cluster.namespace, "lora-trainer")
    backend.create(job)
    controller.start_pod(job["metadata"]["name"])
    assert main(["status"]) == 0
    told = {"metadata": {"annotations": {PROCESSING_ANNOTATION: "processing 2026-11-24T08:00:00+00:00"}}}
    backend.patch(job["metadata"]["name"], told)
    assert main(["status"]) == 0
    before, after = [line.split() for line in capsys.readouterr().out.splitlines() if "running" in line]
    assert (before[5], after[5]) == ("-", "processing")


def test_status_says_that_a_training_waits_for_its_style(
    cluster: ApiServer, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    job = new_job(receiver)
    hold(job, 1)
    KubernetesBackend(cluster.client(), cluster.namespace, "lora-trainer").create(job)
    assert main(["status"]) == 0
    assert "its turn comes when no other training of its style" in capsys.readouterr().out
