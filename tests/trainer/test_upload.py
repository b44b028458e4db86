"""The finished files' copy in S3, by a real S3 API over HTTP."""

import signal
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from job_contract.outcome import FailureCode
from tests.parts.proxy import TcpProxy
from tests.trainer.conftest import Train, Workshop, wait_for_line
from tests.trainer.scripted_host import Answer, ScriptedHost, scripted_host, status
from trainer.errors import StorageError
from trainer.style_folder import MADE_BY, StyleFolder
from trainer.upload import upload_results


@pytest.fixture
def server() -> Iterator[tuple[str, int]]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def s3(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Any:
    host, port = server
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return boto3.client("s3")


def keys(s3: Any, bucket: str) -> set[str]:
    return {item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])}


def test_weights_and_small_files_are_copied_and_the_weights_uri_reported(
    workshop: Workshop, train: Train, s3: Any
) -> None:
    s3.create_bucket(Bucket="weights")
    outcome = train(workshop.request(), S3_BUCKET="weights", S3_PREFIX="styles/")
    assert outcome.code == 0, outcome.log
    assert outcome.result is not None
    assert outcome.result.s3_uri == "s3://weights/styles/1/lora_weights.safetensors"
    names = {"lora_weights.safetensors", "metrics.jsonl", "loss.png", "README.md"}
    assert keys(s3, "weights") == {f"styles/1/{name}" for name in names}
    stored = s3.get_object(Bucket="weights", Key="styles/1/lora_weights.safetensors")["Body"].read()
    assert stored == workshop.folder().weights.read_bytes()


def test_failed_upload_ends_with_69_and_the_retry_only_uploads(
    workshop: Workshop, train: Train, s3: Any
) -> None:
    """A bucket that is missing for an hour must not cost a second training."""
    failed = train(workshop.request(), S3_BUCKET="later")
    assert failed.code == 69
    assert failed.failure is not None
    assert failed.failure.failure_code is FailureCode.STORAGE_ERROR
    trained = workshop.folder().weights.stat().st_mtime_ns
    s3.create_bucket(Bucket="later")
    again = train(workshop.request(), S3_BUCKET="later")
    assert again.code == 0
    assert "trained already" in again.log
    assert workshop.folder().weights.stat().st_mtime_ns == trained
    assert "models/1/lora_weights.safetensors" in keys(s3, "later")


def test_sigterm_while_an_upload_stalls_ends_with_75_and_the_next_start_only_uploads(
    workshop: Workshop, train: Train, s3: Any, server: tuple[str, int]
) -> None:
    """The last minute of a training is in nobody's loop (failure 14); a stalled socket raises nothing."""
    s3.create_bucket(Bucket="stalled")
    request = workshop.request()
    with TcpProxy(*server) as proxy:
        proxy.stall()
        process = workshop.start(
            request, S3_BUCKET="stalled", AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}"
        )
        wait_for_line(process, "Saved ")
        wait_until_connected(proxy)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 75, log
    assert keys(s3, "stalled") == set()
    again = train(request, S3_BUCKET="stalled")
    assert again.code == 0
    assert "trained already" in again.log
    assert "models/1/lora_weights.safetensors" in keys(s3, "stalled")


def test_sigterm_while_downloads_stall_ends_with_75_within_the_grace_period(
    workshop: Workshop, s3: Any, server: tuple[str, int]
) -> None:
    """Their threads wait for three read timeouts in a row, and Python waits for its threads at its end."""
    s3.create_bucket(Bucket="stalled-pictures")
    with TcpProxy(*server) as proxy:
        proxy.stall()
        process = workshop.start(
            workshop.request(image_paths=["s3://stalled-pictures/a.jpg"]),
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}",
        )
        wait_until_connected(proxy)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 75, log


def test_storage_that_hangs_is_waited_for_once_for_the_small_files_and_once_for_the_weights(
    tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file waits for half a minute, and a GPU with it."""
    monkeypatch.setattr("trainer.storage._READ_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr("trainer.storage._ATTEMPTS", 1)
    folder, notes = folder_with_files(tmp_path), list[str]()
    with scripted_host() as host:
        monkeypatch.setenv("AWS_ENDPOINT_URL", host.url)
        for name in ("metrics.jsonl", "loss.png", "README.md", "lora_weights.safetensors"):
            host.on(f"/bucket/{name}", silence(host))
        with pytest.raises(StorageError, match=r"lora_weights\.safetensors"):
            upload_results(folder, "bucket", "", notes)
        assert host.requests == ["/bucket/metrics.jsonl", "/bucket/lora_weights.safetensors"]
    assert notes[0].startswith("metrics.jsonl is not in S3")
    assert notes[1:] == ["The small files after it were left out."]


def test_small_file_that_is_refused_keeps_no_other_one_back(
    tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, notes = folder_with_files(tmp_path), list[str]()
    with scripted_host() as host:
        monkeypatch.setenv("AWS_ENDPOINT_URL", host.url)
        host.on("/bucket/metrics.jsonl", status(403))
        for name in ("loss.png", "README.md", "lora_weights.safetensors"):
            host.on(f"/bucket/{name}", status(200, ETag='"0"'))
        assert upload_results(folder, "bucket", "", notes) == "s3://bucket/lora_weights.safetensors"
        assert len(host.requests) == 4
    assert len(notes) == 1


def test_somebody_elses_files_are_not_copied_as_the_trainings(tmp_path: Path, s3: Any) -> None:
    s3.create_bucket(Bucket="own")
    folder, notes = folder_with_files(tmp_path), list[str]()
    folder.model_card.write_text("mine")
    folder.samples.write_text("mine")
    upload_results(folder, "own", "", notes)
    assert keys(s3, "own") == {"lora_weights.safetensors", "metrics.jsonl", "loss.png"}
    assert notes == []


def silence(host: ScriptedHost) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        host.closing.wait()
        handler.close_connection = True

    return answer


def folder_with_files(models: Path) -> StyleFolder:
    folder = StyleFolder(models, 1)
    folder.prepare()
    for path in (folder.metrics, folder.loss_plot, folder.model_card, folder.weights):
        path.write_text(MADE_BY)
    return folder


def wait_until_connected(proxy: TcpProxy) -> None:
    deadline = time.monotonic() + 60
    while not proxy.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert proxy.connections
