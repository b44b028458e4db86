"""A presigned URL is a password: whatever stands in a request's URLs, their queries stay out of every log."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.parts.http_server import DropConnectionError, HttpRequest, HttpResponse, HttpServer
from tests.trainer.conftest import Train, Workshop
from trainer.errors import TrainerError
from trainer.images import picture_name
from trainer.logs import log_to_file, start_logging, stop_logging
from trainer.termination import report
from trainer.web import read_url

SECRET = "topsecret"


REDIRECT = f"http://h:99999/it's my cat.jpg?n=my cat&X-Amz-Signature={SECRET}"


class Host(HttpServer):
    """Answers every picture in the same of several ways."""

    way = "gone"

    def __init__(self) -> None:
        super().__init__(self._answer)

    def _answer(self, _request: HttpRequest) -> HttpResponse:
        if self.way == "broken":
            raise DropConnectionError
        return HttpResponse(302, headers={"Location": REDIRECT}) if self.way == "moved" else HttpResponse(404)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    host = Host()
    host.start()
    yield host
    host.stop()


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    start_logging()  # in the test itself, whose standard error is another one than the fixtures'
    log_to_file(path)
    try:
        yield
    finally:
        stop_logging()


# What ends a URL for somebody who looks for its end: quotes, spaces, brackets, separators; and other scripts.
ODD = st.text(
    st.sampled_from("a1/?#&=%'\"<>[](){}|\\^`~:;,.!@$*+- \u00e9\u3000\u2028\x85\U0001f600"), max_size=12
)


@given(name=ODD, before=ODD, after=ODD, way=st.sampled_from(["gone", "moved", "broken", "down", "invalid"]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_query_of_a_pictures_url_is_in_no_log_whatever_it_holds(
    host: Host,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
    before: str,
    after: str,
    way: str,
) -> None:
    """A space or a quote seems to end the URL: what follows, signature and all, was logged."""
    host.way = way
    place = {"down": "127.0.0.1:1", "invalid": "h:99999"}.get(way, f"127.0.0.1:{host.port}")
    url = f"http://{place}/{name}?{before}{SECRET}{after}"
    log, message = tmp_path / "training.log", tmp_path / "message"
    log.unlink(missing_ok=True)
    monkeypatch.setenv("TERMINATION_MESSAGE_PATH", str(message))
    with logging_to(log):
        with pytest.raises(TrainerError) as raised:
            next(read_url(url), None)
        report(raised.value)
    console, written = capfd.readouterr().err, log.read_text()
    assert "ERROR" in console
    assert "Traceback" in written
    for text in (console, written, message.read_text()):
        assert SECRET not in text


@pytest.mark.parametrize(
    "url",
    [
        "https://h/my cat.jpg?X-Amz-Signature=topsecret",
        "https://h/it's.jpg?X-Amz-Signature=topsecret",
        "https://h/a.jpg?n=my cat&X-Amz-Signature=topsecret",
        "https://h/a.jpg?x='&X-Amz-Signature=topsecret",
        "https://h/a#b?X-Amz-Signature=topsecret",
        "s3://bucket/my cat.jpg?X-Amz-Signature=topsecret",
        "HTTP://user:topsecret@h/my cat.jpg?topsecret ? topsecret",
    ],
)
def test_name_of_a_picture_is_its_url_up_to_the_query(url: str) -> None:
    name = picture_name(url)
    assert SECRET not in name
    assert name.endswith(url.partition("?")[0].rpartition("/")[2])


def test_whole_training_keeps_a_presigned_url_to_itself(workshop: Workshop, train: Train) -> None:
    url = "http://h:99999/my cat's.jpg?n=my cat&x='\"&X-Amz-Signature=topsecret"
    outcome = train(workshop.request(image_paths=[url]))
    assert outcome.code == 65
    assert outcome.failure is not None
    assert "my cat's.jpg" in outcome.failure.failure_reason
    for text in (outcome.log, workshop.folder().log.read_text(), workshop.message.read_text()):
        assert SECRET not in text


def test_other_libraries_lines_are_cut_at_a_query(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """urllib3 warns of odd headers with the whole URL, and a quote in it is not quoted."""
    with logging_to(tmp_path / "training.log"):
        logging.getLogger("urllib3.connectionpool").warning(
            "Failed to parse headers (url=%s): %s", "http://h:80/it's a.jpg?x='}&sig=topsecret", "why"
        )
    for text in (capfd.readouterr().err, (tmp_path / "training.log").read_text()):
        assert "Failed to parse headers (url=http://h:80/it's a.jpg?***" in text
        assert SECRET not in text


def test_argument_that_is_not_understood_is_not_repeated_with_its_query(train: Train) -> None:
    outcome = train(["--style-id", "1", "--image-list", "https://h/my cat.jpg?X-Amz-Signature=topsecret"])
    assert outcome.code == 64
    assert SECRET not in outcome.log
