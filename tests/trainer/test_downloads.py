"""Pictures over real HTTP from a host that does all that hosts do."""

import gc
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.trainer.scripted_host import Answer, ScriptedHost, body, endless, hang_up, scripted_host, status
from trainer.downloads import DownloadPolicy, fetch_images
from trainer.errors import DownloadError, InterruptedTrainingError, InvalidImageError, StorageError
from trainer.images import PictureLimits, all_refusals
from trainer.storage import ObjectStorage

QUICK = DownloadPolicy(attempts=3, first_delay_seconds=0.01, max_delay_seconds=0.2, max_seconds=20)


@pytest.fixture
def host() -> Iterator[ScriptedHost]:
    with scripted_host() as running:
        yield running


def fetch(
    folder: Path,
    *paths: str,
    limits: PictureLimits | None = None,
    policy: DownloadPolicy = QUICK,
    stop: threading.Event | None = None,
) -> list[Path]:
    """Fetch as a training does, for which a picture without a file is an error."""
    files = fetch_images(paths, folder / "images", ObjectStorage(), stop or threading.Event(), limits, policy)
    refusals = [file for file in files if isinstance(file, InvalidImageError)]
    if refusals:
        raise all_refusals(refusals)
    return [file for file in files if isinstance(file, Path)]


def test_files_come_in_the_order_of_the_request_whoever_answers_first(
    host: ScriptedHost, tmp_path: Path
) -> None:
    """Captions go by order; a mix-up would caption every picture wrongly."""
    local = tmp_path / "local.jpg"
    local.write_bytes(b"local")
    urls = [host.on(f"/{number}", body(b"picture %d" % number)) for number in range(20)]
    five_answered = threading.Event()

    def after_five(handler: BaseHTTPRequestHandler) -> None:
        five_answered.wait(5)
        body(b"picture 0")(handler)

    def five(handler: BaseHTTPRequestHandler) -> None:
        body(b"picture 5")(handler)
        five_answered.set()

    host.on("/0", after_five)
    host.on("/5", five)
    files = fetch(tmp_path, *urls[:10], str(local), *urls[10:])
    expected = [b"picture %d" % number for number in range(20)]
    assert [file.read_bytes() for file in files] == [*expected[:10], b"local", *expected[10:]]


def test_the_same_picture_twice_gives_two_files(host: ScriptedHost, tmp_path: Path) -> None:
    url = host.on("/a.jpg", body(b"picture"))
    assert [file.read_bytes() for file in fetch(tmp_path, url, url)] == [b"picture", b"picture"]


@pytest.mark.parametrize("first", [status(500), status(503), status(429), status(408), hang_up])
def test_a_passing_failure_is_tried_again(host: ScriptedHost, tmp_path: Path, first: Answer) -> None:
    url = host.on("/a.jpg", first, body(b"picture"))
    assert fetch(tmp_path, url)[0].read_bytes() == b"picture"
    assert len(host.requests) == 2


def test_a_body_that_breaks_off_is_fetched_again_from_its_start(host: ScriptedHost, tmp_path: Path) -> None:
    """Older requests took a body that is shorter than its Content-Length for complete."""
    url = host.on("/a.jpg", body(b"pic", length=7), body(b"picture"))
    assert fetch(tmp_path, url)[0].read_bytes() == b"picture"


def test_a_body_that_breaks_off_every_time_is_said_so_and_its_host_not_called_down(
    host: ScriptedHost, tmp_path: Path
) -> None:
    """The host is up, and "ProtocolError" is no word for people."""
    with pytest.raises(
        DownloadError, match=r"/a\.jpg .*\(the connection broke off .*\); check that its link"
    ):
        fetch(tmp_path, host.on("/a.jpg", body(b"pic", length=7)))


def test_a_body_whose_compression_is_damaged_is_said_so(host: ScriptedHost, tmp_path: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", "7")
        handler.end_headers()
        handler.wfile.write(b"no gzip")

    with pytest.raises(DownloadError, match=r"/a\.jpg .*\(its compression is damaged\); check that its link"):
        fetch(tmp_path, host.on("/a.jpg", answer))


def test_a_failing_host_is_given_up_after_the_attempts(host: ScriptedHost, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"/a\.jpg answers 500"):
        fetch(tmp_path, host.on("/a.jpg", status(500)))
    assert len(host.requests) == QUICK.attempts


def test_retry_after_is_waited_for(host: ScriptedHost, tmp_path: Path) -> None:
    url = host.on("/a.jpg", status(503, Retry_After="1"), body(b"picture"))
    patient = DownloadPolicy(attempts=2, first_delay_seconds=0.0, max_delay_seconds=0.3)
    started = time.monotonic()
    fetch(tmp_path, url, policy=patient)
    # The host asks for one second; the policy grants 0.3.
    assert time.monotonic() - started >= 0.3


@pytest.mark.parametrize("value", ["²", "-1", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "9" * 400])
def test_an_odd_retry_after_does_no_harm(host: ScriptedHost, tmp_path: Path, value: str) -> None:
    url = host.on("/a.jpg", status(503, Retry_After=value), body(b"picture"))
    assert fetch(tmp_path, url)[0].read_bytes() == b"picture"


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_a_picture_that_is_gone_is_not_tried_again(host: ScriptedHost, tmp_path: Path, code: int) -> None:
    url = host.on("/a.jpg", status(code)) + "?X-Amz-Signature=secret"
    with pytest.raises(InvalidImageError, match=rf"/a\.jpg answers {code}") as raised:
        fetch(tmp_path, url)
    assert "secret" not in str(raised.value)
    assert len(host.requests) == 1


def test_all_pictures_that_are_gone_are_named_at_once(host: ScriptedHost, tmp_path: Path) -> None:
    gone = [host.on(f"/gone{number}.jpg", status(404)) for number in range(7)]
    with pytest.raises(InvalidImageError) as raised:
        fetch(tmp_path, host.on("/there.jpg", body(b"picture")), *gone, str(tmp_path / "missing.jpg"))
    assert str(raised.value).count("answers 404") == 5
    assert "3 more" in str(raised.value)
    assert "there.jpg" not in str(raised.value)


def test_a_picture_without_a_file_leaves_the_others_to_be_looked_at(
    host: ScriptedHost, tmp_path: Path
) -> None:
    (tmp_path / "c.jpg").touch()
    urls = [host.on("/a.jpg", status(404)), host.on("/b.jpg", body(b"picture"))]
    refusal, fetched, local = fetch_images(
        [*urls, str(tmp_path / "c.jpg")], tmp_path / "images", ObjectStorage(), threading.Event()
    )
    assert isinstance(refusal, InvalidImageError)
    assert isinstance(fetched, Path)
    assert fetched.read_bytes() == b"picture"
    assert local == tmp_path / "c.jpg"


def test_a_body_without_end_is_cut_at_the_limit(host: ScriptedHost, tmp_path: Path) -> None:
    """Without counting it would fill the volume; there is no Content-Length to refuse."""
    url = host.on("/a.jpg", endless(host, b"x" * 65536))
    with pytest.raises(InvalidImageError, match=r"/a\.jpg is larger than 1 MB"):
        fetch(tmp_path, url, limits=PictureLimits(max_bytes=1_000_000))


def test_a_slow_drip_ends_at_the_deadline(host: ScriptedHost, tmp_path: Path) -> None:
    """A byte now and then resets the read timeout, and the GPU waits meanwhile."""
    url = host.on("/a.jpg", endless(host, b"x", 0.02))
    with pytest.raises(DownloadError, match=r"/a\.jpg took longer than"):
        fetch(tmp_path, url, policy=DownloadPolicy(attempts=1, max_seconds=0.2))


def test_a_slow_drip_of_the_header_ends_at_the_deadline(host: ScriptedHost, tmp_path: Path) -> None:
    """It is read in one piece, so nothing inside the download gets to look at the clock."""

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not host.closing.wait(0.02):
            handler.wfile.write(b"x")

    with pytest.raises(DownloadError, match=r"/a\.jpg took longer than"):
        fetch(tmp_path, host.on("/a.jpg", drip), policy=DownloadPolicy(attempts=1, max_seconds=0.2))


def test_stop_ends_a_slow_drip(host: ScriptedHost, tmp_path: Path) -> None:
    url = host.on("/a.jpg", endless(host, b"x", 0.02))
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(InterruptedTrainingError):
        fetch(tmp_path, url, stop=stop)


def test_stop_ends_the_wait_before_a_retry(host: ScriptedHost, tmp_path: Path) -> None:
    """A long Retry-After must not outlast the grace period."""
    stop = threading.Event()

    def fail_and_stop(handler: BaseHTTPRequestHandler) -> None:
        status(503)(handler)
        stop.set()

    url = host.on("/a.jpg", fail_and_stop)
    with pytest.raises(InterruptedTrainingError):
        fetch(tmp_path, url, stop=stop, policy=DownloadPolicy(first_delay_seconds=250, max_delay_seconds=250))
    assert len(host.requests) == 1


def test_an_error_ends_the_other_downloads_too(host: ScriptedHost, tmp_path: Path) -> None:
    """Python joins their threads at exit: the process would hold its GPU for minutes more."""
    slow = [host.on(f"/slow{number}.jpg", endless(host, b"x", 0.02)) for number in range(3)]
    with pytest.raises(DownloadError, match=r"/a\.jpg"):
        fetch(tmp_path, *slow, host.on("/a.jpg", status(500)))
    for thread in threading.enumerate():
        if thread.name.startswith("download"):
            thread.join(5)
            assert not thread.is_alive()


def test_a_redirect_is_followed(host: ScriptedHost, tmp_path: Path) -> None:
    url = host.on("/old.jpg", status(302, Location="/new.jpg"))
    host.on("/new.jpg", body(b"picture"))
    assert fetch(tmp_path, url)[0].read_bytes() == b"picture"


def test_a_redirects_body_without_end_is_left_unread(host: ScriptedHost, tmp_path: Path) -> None:
    """requests reads it whole into memory before it goes on: gigabytes in seconds."""
    sent = []

    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", "/new.jpg")
        handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b"x" * 1_000_000)
            sent.append(1_000_000)

    url = host.on("/old.jpg", redirect)
    host.on("/new.jpg", body(b"picture"))
    assert fetch(tmp_path, url)[0].read_bytes() == b"picture"
    assert sum(sent) < 100_000_000


@pytest.mark.parametrize(
    "location", ["/a.jpg", "file:///etc/passwd", "ftp://127.0.0.1/a.jpg", "http://[", "//"]
)
def test_a_redirect_that_leads_nowhere_is_refused(host: ScriptedHost, tmp_path: Path, location: str) -> None:
    url = host.on("/a.jpg", status(302, Location=location))
    with pytest.raises(InvalidImageError, match=r"/a\.jpg"):
        fetch(tmp_path, url)
    assert len(host.requests) <= 6


@pytest.mark.parametrize(
    "url", ["http://", "http://[", "https://.a/b.jpg", "http://a" + "b" * 70, "http://a:99999/"]
)
def test_an_impossible_url_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidImageError):
        fetch(tmp_path, url)


def test_a_host_that_is_down_is_a_download_error_without_the_query(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: nobody else can take the port
        url = f"http://user:password@127.0.0.1:{closed.getsockname()[1]}/a.jpg?token=secret"
        with pytest.raises(DownloadError, match=r"/a\.jpg could not be downloaded") as raised:
            fetch(tmp_path, url)
    assert "secret" not in str(raised.value)
    assert "password" not in str(raised.value)


def test_a_host_that_speaks_no_http_is_a_download_error(host: ScriptedHost, tmp_path: Path) -> None:
    def greet(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"SSH-2.0-OpenSSH\r\n")
        handler.close_connection = True

    with pytest.raises(DownloadError, match=r"\(it hung up, or answered no HTTP\); check that its host"):
        fetch(tmp_path, host.on("/a.jpg", greet))


def test_what_a_host_says_beside_its_status_is_cut_and_made_one_line(
    host: ScriptedHost, tmp_path: Path
) -> None:
    """It went whole into the log, escape sequences and all, and the advice out of the termination message."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 404 Gone\x1b[31m \x9b\x00for ever" + b"x" * 60_000 + b"\r\n\r\n")
        handler.close_connection = True

    with pytest.raises(InvalidImageError, match=r"a\.jpg answers 404 Gone") as raised:
        fetch(tmp_path, host.on("/a.jpg", answer))
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 250


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # urllib3 leaves the socket to the collector then
def test_a_header_that_contradicts_itself_is_not_called_a_fault_of_the_url(
    host: ScriptedHost, tmp_path: Path
) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "10, 20")
        handler.end_headers()

    url = host.on("/a.jpg", answer, body(b"picture"))
    with pytest.raises(DownloadError, match=r"a\.jpg is answered with an HTTP header that contradicts"):
        fetch(tmp_path, url, policy=DownloadPolicy(attempts=1))
    gc.collect()
    assert fetch(tmp_path, url)[0].read_bytes() == b"picture"


@pytest.mark.parametrize("path", ["missing.jpg", "", "a\0b", "x" * 5000])
def test_a_local_path_that_is_no_file_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidImageError):
        fetch(tmp_path, path)


def test_a_folder_that_cannot_be_written_is_a_storage_error(host: ScriptedHost, tmp_path: Path) -> None:
    url = host.on("/a.jpg", body(b"picture"))
    (tmp_path / "images" / "0000").mkdir(parents=True)
    with pytest.raises(StorageError):
        fetch(tmp_path, url)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        fetch(tmp_path / "file", url)
