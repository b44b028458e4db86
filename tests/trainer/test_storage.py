"""S3 over HTTP: moto's server where it can be had, a scripted host for what a good S3 never does."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.trainer.scripted_host import ScriptedHost, body, endless, hang_up, scripted_host, status
from trainer.downloads import DownloadPolicy, fetch_images
from trainer.errors import ConfigurationError, DownloadError, InvalidImageError, StorageError, TrainerError
from trainer.images import PictureLimits
from trainer.storage import ObjectStorage

SECRET = "secret-access-key-of-the-test"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-id-of-the-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))


@pytest.fixture
def bucket(server: str, credentials: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    bucket = boto3.resource("s3").Bucket("pictures")
    bucket.create(CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    yield bucket
    bucket.objects.delete()
    bucket.delete()


@pytest.fixture
def host(credentials: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedHost]:
    with scripted_host() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


def read(uri: str) -> bytes:
    return b"".join(ObjectStorage().read(uri))


def s3_error(code: int, name: str, **headers: str) -> Any:
    """Answer with an error of S3's; header names are written with _ for -."""

    def answer(handler: Any) -> None:
        content = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>no</Message></Error>".encode()
        handler.send_response(code)
        for header, value in headers.items():
            handler.send_header(header.replace("_", "-"), value)
        handler.send_header("Content-Type", "application/xml")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


@pytest.mark.parametrize("key", ["a.jpg", "deep/er/a b.jpg", "ümläut/猫.png", "what?#%41+.jpg", "/slash.jpg"])
def test_an_object_is_read_whatever_its_key(bucket: Any, key: str) -> None:
    """A key is no URL path: parsed as one, it loses what follows ? and #."""
    content = bytes(range(256)) * 1000
    bucket.put_object(Key=key, Body=content)
    assert read(f"s3://pictures/{key}") == content


def test_pictures_are_fetched_in_parallel_with_one_client(bucket: Any, tmp_path: Path) -> None:
    for number in range(20):
        bucket.put_object(Key=f"{number}.jpg", Body=b"picture %d" % number)
    paths = [f"s3://pictures/{number}.jpg" for number in range(20)]
    files = fetch_images(paths, tmp_path / "images", ObjectStorage(), threading.Event())
    contents = [file.read_bytes() for file in files if isinstance(file, Path)]
    assert contents == [b"picture %d" % number for number in range(20)]


def test_an_object_that_is_too_large_is_refused(bucket: Any, tmp_path: Path) -> None:
    bucket.put_object(Key="a.jpg", Body=b"x" * 300_000)
    limits = PictureLimits(max_bytes=100_000)
    (refusal,) = fetch_images(["s3://pictures/a.jpg"], tmp_path, ObjectStorage(), threading.Event(), limits)
    assert isinstance(refusal, InvalidImageError)
    assert str(refusal).startswith("s3://pictures/a.jpg is larger than 0.1 MB")


@pytest.mark.parametrize(
    ("uri", "code"), [("s3://pictures/missing.jpg", "NoSuchKey"), ("s3://nowhere/a.jpg", "NoSuchBucket")]
)
def test_a_missing_object_or_bucket_is_the_picture_s_fault(bucket: Any, uri: str, code: str) -> None:
    with pytest.raises(InvalidImageError, match=rf"{code}.*{uri}"):
        read(uri)


@pytest.mark.parametrize("uri", ["s3://", "s3://bucket", "s3://bucket/", "s3:///key", "s3://no spaces/a.jpg"])
def test_a_uri_that_names_no_object_is_refused(bucket: Any, uri: str) -> None:
    with pytest.raises(InvalidImageError):
        read(uri)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AccessDenied", InvalidImageError),
        (403, "InvalidObjectState", InvalidImageError),
        (403, "InvalidAccessKeyId", ConfigurationError),
        (403, "SignatureDoesNotMatch", ConfigurationError),
        (400, "ExpiredToken", ConfigurationError),
        (403, "RequestTimeTooSkewed", DownloadError),
        (500, "InternalError", DownloadError),
        (503, "SlowDown", DownloadError),
        (429, "TooManyRequests", DownloadError),
    ],
)
def test_an_error_answer_says_whether_a_retry_may_help(
    host: ScriptedHost, status: int, code: str, expected: type[TrainerError], no_waiting: None
) -> None:
    host.on("/pictures/a.jpg", s3_error(status, code))
    with pytest.raises(expected, match=code) as raised:
        read("s3://pictures/a.jpg")
    assert raised.value.__cause__ is not None
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "code"), [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed")]
)
def test_a_bucket_of_another_region_names_the_region_and_the_setting(
    host: ScriptedHost, tmp_path: Path, status: int, code: str
) -> None:
    """As a storage that is down it would be tried again and again, on a GPU."""
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    for path in ("/pictures", "/pictures/a"):
        host.on(path, s3_error(status, code, x_amz_bucket_region="eu-west-1"))
    with pytest.raises(ConfigurationError, match=r"in eu-west-1 .*AWS_REGION"):
        ObjectStorage().upload(file, "pictures", "a")
    with pytest.raises(ConfigurationError, match=r"in eu-west-1 .*AWS_REGION"):
        read("s3://pictures/a")


def test_redirects_in_a_circle_end_with_a_sentence(host: ScriptedHost, tmp_path: Path) -> None:
    """botocore follows them until Python's stack is full."""
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    for path in ("/pictures", "/pictures/a"):
        host.on(path, s3_error(307, "TemporaryRedirect", Location=host.url + path))
    with pytest.raises(StorageError, match=r"in a circle.*AWS_ENDPOINT_URL"):
        ObjectStorage().upload(file, "pictures", "a")


def test_an_object_that_breaks_off_is_read_again(host: ScriptedHost, tmp_path: Path) -> None:
    host.on("/pictures/a.jpg", body(b"pic", length=7), body(b"picture"))
    policy = DownloadPolicy(first_delay_seconds=0.01)
    (file,) = fetch_images(
        ["s3://pictures/a.jpg"], tmp_path, ObjectStorage(), threading.Event(), policy=policy
    )
    assert isinstance(file, Path)
    assert file.read_bytes() == b"picture"


def test_a_slow_drip_from_s3_ends_at_the_deadline(host: ScriptedHost, tmp_path: Path) -> None:
    """botocore reads on until it has a whole chunk, at a byte now and then for hours."""
    host.on("/pictures/a.jpg", endless(host, b"x", 0.02))
    policy = DownloadPolicy(attempts=1, max_seconds=0.5)
    with pytest.raises(DownloadError, match=r"s3://pictures/a\.jpg took longer than"):
        fetch_images(["s3://pictures/a.jpg"], tmp_path, ObjectStorage(), threading.Event(), policy=policy)


def test_a_storage_that_hangs_up_is_a_download_error(host: ScriptedHost, no_waiting: None) -> None:
    host.on("/pictures/a.jpg", hang_up)
    with pytest.raises(DownloadError, match="AWS_ENDPOINT_URL"):
        read("s3://pictures/a.jpg")


def test_a_storage_that_is_down_fails_downloads_and_uploads_for_now(
    credentials: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_waiting: None
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: nobody else can take the port
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(DownloadError):
            read("s3://pictures/a.jpg")
        with pytest.raises(StorageError):
            ObjectStorage().upload(file, "pictures", "weights")


def test_no_credentials_is_a_configuration_error(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigurationError, match="AWS_ACCESS_KEY_ID"):
        read("s3://pictures/a.jpg")


@pytest.mark.parametrize(
    ("name", "value"),
    [("AWS_ENDPOINT_URL", "no-url"), ("AWS_ENDPOINT_URL", "http://"), ("AWS_PROFILE", "missing")],
)
def test_a_malformed_variable_is_a_configuration_error(
    credentials: None, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError):
        read("s3://pictures/a.jpg")


def test_an_upload_replaces_what_was_there_and_returns_its_uri(bucket: Any, tmp_path: Path) -> None:
    file = tmp_path / "lora_weights.safetensors"
    for content in (b"old", b"new" * 4_000_000):
        file.write_bytes(content)
        uri = ObjectStorage().upload(file, "pictures", "models/42/lora_weights.safetensors")
    assert uri == "s3://pictures/models/42/lora_weights.safetensors"
    assert read(uri) == b"new" * 4_000_000


def test_an_upload_is_one_request_whatever_its_size(host: ScriptedHost, tmp_path: Path) -> None:
    """Parts are taken back when SIGTERM breaks in, and a dead storage holds that past the grace period."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(20_000_000))
    host.on("/pictures/weights", status(200, ETag='"0"'))
    ObjectStorage().upload(file, "pictures", "weights")
    assert host.requests == ["/pictures/weights"]


def test_an_upload_that_any_web_server_answers_with_a_page_is_no_success(
    host: ScriptedHost, tmp_path: Path
) -> None:
    """The backend would be told of weights in S3 that are nowhere."""
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    host.on("/pictures/weights", body(b"<html>Welcome</html>"))
    with pytest.raises(StorageError, match=r"AWS_ENDPOINT_URL names is no S3.*s3://pictures/weights"):
        ObjectStorage().upload(file, "pictures", "weights")


def test_an_upload_into_a_missing_bucket_is_a_storage_error(bucket: Any, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    with pytest.raises(StorageError, match="NoSuchBucket") as raised:
        ObjectStorage().upload(file, "nowhere", "weights")
    assert SECRET not in str(raised.value)


def test_an_upload_that_is_refused_names_the_code(host: ScriptedHost, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    host.on("/pictures/weights", s3_error(403, "AccessDenied"))
    with pytest.raises(StorageError, match=r"AccessDenied.*s3://pictures/weights"):
        ObjectStorage().upload(file, "pictures", "weights")


def test_boto3_is_not_imported_without_s3() -> None:
    """It takes a third of a second that a run without S3 does not have to wait."""
    code = "import sys, trainer.storage; trainer.storage.ObjectStorage(); print('boto3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore waits seconds between its attempts; how long is its business and not under test."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
