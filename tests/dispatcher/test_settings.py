"""A misspelt or malformed setting stops the program with its name; the defaults are as documented."""

import subprocess
import sys
from pathlib import Path

import pytest
import standardwebhooks

from dispatcher.service import make_allowed_hosts, make_webhook
from dispatcher.settings import DispatcherSettings
from dispatcher.webhook import Delivered
from job_contract.outcome import ExitCode
from job_contract.settings import InvalidSettingsError
from tests.parts.receiver import Receiver

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DispatcherSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("BACKEND_URL", "https://backend")


def test_the_defaults_are_those_that_are_documented() -> None:
    settings = DispatcherSettings.from_environment()
    assert settings.amqp_url.get_secret_value() == "amqp://guest:guest@localhost:5672/%2F"
    assert (settings.queue, settings.job_backend, settings.namespace) == (
        "model_training",
        "local",
        "default",
    )
    assert (settings.max_active_jobs, settings.workers, settings.instance) == (0, 32, "lora-trainer")
    assert (settings.progress_seconds, settings.start_grace_seconds) == (30, 600)
    assert (settings.webhook_timeout_seconds, settings.webhook_give_up_hours) == (20, 168)
    assert (settings.webhook_first_retry_seconds, settings.webhook_most_retry_seconds) == (1, 300)
    assert settings.webhook_allowed_hosts == ()
    assert settings.trainer_env == {}
    for absent in (
        "gpus_per_job",
        "job_deadline_seconds",
        "job_ttl_seconds",
        "trainer_image",
        "job_template",
    ):
        assert getattr(settings, absent) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_ACTIVE_JOBS", "many"),
        ("MAX_ACTIVE_JOBS", "-1"),
        ("WORKERS", "0"),
        ("JOB_BACKEND", "docker"),
        ("NAMESPACE", "Not_A_Name"),
        ("INSTANCE", "-x"),
        ("PROGRESS_SECONDS", "0"),
        ("WEBHOOK_SECRET", "not base64!"),
        ("WEBHOOK_ALLOWED_HOSTS", "https://backend/x"),
        ("WEBHOOK_ALLOWED_HOSTS", "10.0.0.0/99"),
        ("BACKEND_URL", "backend:8080"),
        ("BACKEND_URL", "http://"),
        ("BACKEND_URL", "http://user:pw@backend"),
        ("BACKEND_URL", "http://backend:99999"),
        ("BACKEND_URL", "http://a b/"),
        ("BACKEND_URL", "http://*.example.com"),
        ("BACKEND_URL", "https://[::1"),
        ("BACKEND_URL", "http://backend/?x=1"),
        ("BACKEND_URL", "http://backend#f"),
        ("BACKEND_TOKEN", "t\u00f6ken"),
        ("BACKEND_TOKEN", "\u201ctoken\u201d"),
        ("BACKEND_TOKEN", "to\nken"),
        ("TRAINER_ENV", "BASE_MODEL=/base"),
        ("TRAINER_ENV", "[1]"),
        ("GPUS_PER_JOB", "-1"),
        ("LOG_FORMAT", "xml"),
        ("QUEUE", "q" * 201),
    ],
)
def test_a_malformed_setting_stops_the_program_with_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettingsError, match=f"(?i){name}"):
        DispatcherSettings.from_environment()


@pytest.mark.parametrize(
    ("misspelt", "right"),
    [
        ("MAX_ACTIVE_JOB", "MAX_ACTIVE_JOBS"),
        ("BACKEND_TOKENS", "BACKEND_TOKEN"),
        ("WEBHOOK_ALLOWED_HOST", "WEBHOOK_ALLOWED_HOSTS"),
        ("TRAINER_IMAGES", "TRAINER_IMAGE"),
        ("START_GRACE_SECOND", "START_GRACE_SECONDS"),
    ],
)
def test_a_misspelt_setting_stops_the_program_with_the_right_name(
    monkeypatch: pytest.MonkeyPatch, misspelt: str, right: str
) -> None:
    monkeypatch.setenv(misspelt, "1")
    with pytest.raises(InvalidSettingsError, match=rf"{misspelt}.*{right}\?"):
        DispatcherSettings.from_environment()


@pytest.mark.parametrize(
    "name", ["BACKEND_SERVICE_HOST", "BACKEND_PORT", "BACKEND_PORT_8080_TCP", "HOME", "QUEUE_X", "CUDA_HOME"]
)
def test_other_programs_variables_are_let_be(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.1:8080")
    DispatcherSettings.from_environment()


@pytest.mark.parametrize(
    "url",
    ["http://back_end:80", "https://[fd00::1]:8443/base", "http://b\u00fccher.example.com", "http://b./"],
)
def test_a_backend_may_be_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("BACKEND_URL", url)
    assert DispatcherSettings.from_environment().backend_url == url


def test_a_secret_that_was_made_from_a_file_is_sent_without_the_end_of_its_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No header may hold it: not one status was delivered, for as long as it is tried."""
    monkeypatch.setenv("WEBHOOK_SECRET", f"{SECRET}\n")
    with Receiver("t0ken") as receiver:
        monkeypatch.setenv("BACKEND_TOKEN", " t0ken\r\n")
        monkeypatch.setenv("BACKEND_URL", f"{receiver.url}\n")
        settings = DispatcherSettings.from_environment()
        assert settings.backend_url == receiver.url
        webhook = make_webhook(settings, make_allowed_hosts(settings))
        assert webhook.patch(receiver.status_url(42), {"style_id": 42}, "msg_1") == Delivered()
        (patch,) = receiver.patches
    standardwebhooks.Webhook(SECRET).verify(patch.body.decode(), patch.headers)


def test_an_empty_variable_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKEND_TOKEN", "\n")
    monkeypatch.setenv("MAX_ACTIVE_JOBS", "")
    monkeypatch.setenv("TRAINER_ENV", "")
    settings = DispatcherSettings.from_environment()
    assert (settings.max_active_jobs, settings.backend_token) == (0, None)


def test_lists_have_commas_and_the_trainers_environment_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_ALLOWED_HOSTS", "backend, *.example.com ,10.0.0.0/8,")
    monkeypatch.setenv("LOCAL_GPUS", "0,1")
    monkeypatch.setenv("TRAINER_ENV", '{"BASE_MODEL": "/base"}')
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    settings = DispatcherSettings.from_environment()
    assert settings.webhook_allowed_hosts == ("backend", "*.example.com", "10.0.0.0/8")
    assert settings.local_gpus == ("0", "1")
    assert settings.trainer_env == {"BASE_MODEL": "/base"}


def test_no_secret_is_in_the_text_of_an_error_or_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQP_URL", "amqp://user:hidden@host/")
    monkeypatch.setenv("BACKEND_TOKEN", "hidden")
    assert "hidden" not in repr(DispatcherSettings.from_environment())
    monkeypatch.setenv("WEBHOOK_SECRET", "whsec_hidden!")
    with pytest.raises(InvalidSettingsError) as caught:
        DispatcherSettings.from_environment()
    assert "hidden" not in str(caught.value)
    monkeypatch.delenv("WEBHOOK_SECRET")
    monkeypatch.setenv("BACKEND_TOKEN", "hidden\u2026")
    monkeypatch.setenv("BACKEND_URL", "http://user:hidden@backend")
    with pytest.raises(InvalidSettingsError) as caught:
        DispatcherSettings.from_environment()
    assert "BACKEND_TOKEN" in str(caught.value)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"MAX_ACTIVE_JOBS": "many"}, "MAX_ACTIVE_JOBS"),
        ({"JOB_TEMPLATE": "/nowhere/job.yaml"}, "JOB_TEMPLATE"),
        ({"BACKEND_URL": ""}, "BACKEND_URL"),
        ({"BACKEND_URL": "\n"}, "BACKEND_URL"),
        ({"REQUESTS_CA_BUNDLE": "/nowhere/ca.crt"}, "REQUESTS_CA_BUNDLE /nowhere/ca.crt"),
    ],
)
def test_the_program_says_in_one_line_why_it_does_not_start(
    tmp_path: Path, environment: dict[str, str], words: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "dispatcher", "run"],
        env={
            "PATH": "/usr/bin:/bin",
            "BACKEND_URL": "http://127.0.0.1:1",
            "LOCAL_STATE_DIR": str(tmp_path),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == ExitCode.BAD_CONFIG
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
