"""The finished files' copy in S3, by a real S3 API over HTTP."""

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from job_contract.outcome import FailureCode
from tests.trainer.conftest import Train, Workshop


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    yield boto3.client("s3")
    server.stop()


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
