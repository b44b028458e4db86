"""What the API server answers when a Job is created, listed or patched, and what that means."""

import dataclasses
import threading

import pytest

from dispatcher.backends.kubernetes import KubernetesBackend
from dispatcher.errors import (
    BackendBusyError,
    BackendUnavailableError,
    DispatcherError,
    JobConflictError,
    JobRefusedError,
    StaleJobError,
)
from job_contract import names
from tests.dispatcher.cluster import (
    finalizers,
    name_of,
    new_job,
)
from tests.parts.api_server import ApiServer, Fault
from tests.parts.receiver import Receiver


@pytest.fixture
def backend(api_server: ApiServer) -> KubernetesBackend:
    return KubernetesBackend(api_server.client(), api_server.namespace, "lora-trainer")


# Creating


def test_creating_twice_makes_one_job(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver
) -> None:
    assert backend.create(new_job(receiver)) is True
    assert backend.create(new_job(receiver)) is False
    assert len(api_server.all("jobs")) == 1


def test_16_a_create_that_timed_out_but_committed_is_found_by_its_retry(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver
) -> None:
    api_server.inject(Fault(reset=True, after=True, verb="create", resource="jobs"))
    with pytest.raises(BackendUnavailableError):
        backend.create(new_job(receiver))
    assert backend.create(new_job(receiver)) is False
    assert len(api_server.all("jobs")) == 1


def test_16_a_taken_name_with_another_request_is_no_success(
    backend: KubernetesBackend, receiver: Receiver
) -> None:
    first, second = new_job(receiver), new_job(receiver)
    text = second["spec"]["template"]["metadata"]["annotations"]
    text[names.REQUEST_ANNOTATION] = text[names.REQUEST_ANNOTATION].replace("a.jpg", "b.jpg")
    backend.create(first)
    with pytest.raises(JobConflictError, match="task_id"):
        backend.create(second)


def test_14_a_409_that_is_not_already_exists_loses_no_message(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver
) -> None:
    """A quota that changes meanwhile answers a create with 409 "the object has been modified"."""
    api_server.inject(Fault(409, verb="create", resource="jobs"))
    with pytest.raises(BackendUnavailableError):
        backend.create(new_job(receiver))
    assert backend.create(new_job(receiver)) is True


def test_14_a_full_quota_is_busy_and_not_refused(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver
) -> None:
    api_server.job_quota = 1
    backend.create(new_job(receiver))
    with pytest.raises(BackendBusyError, match="exceeded quota"):
        backend.create(new_job(receiver, "task-2"))


def test_14_a_403_that_is_no_quota_is_not_busy(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver
) -> None:
    api_server.rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]
    with pytest.raises(BackendUnavailableError, match="403") as caught:
        backend.create(new_job(receiver))
    assert not isinstance(caught.value, BackendBusyError)


@pytest.mark.parametrize(("header", "seconds"), [({"Retry-After": "7"}, 7.0), ({}, None)])
def test_15_a_429_is_busy_for_as_long_as_it_says(
    backend: KubernetesBackend,
    api_server: ApiServer,
    receiver: Receiver,
    header: dict[str, str],
    seconds: float | None,
) -> None:
    api_server.inject(Fault(429, headers=header, verb="create", resource="jobs"))
    with pytest.raises(BackendBusyError) as caught:
        backend.create(new_job(receiver))
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize("status", [400, 403, 409, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("body", [b"<html>no JSON</html>", b"", b"[]", b'"x"', b"\xff"], ids=repr)
def test_15_a_body_that_is_not_json_breaks_nothing(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver, status: int, body: bytes
) -> None:
    api_server.inject(Fault(status, body=body, verb="create", resource="jobs"))
    with pytest.raises(DispatcherError):
        backend.create(new_job(receiver))


def test_a_manifest_that_the_cluster_never_takes_is_refused(
    backend: KubernetesBackend, receiver: Receiver
) -> None:
    job = new_job(receiver)
    job["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    with pytest.raises(JobRefusedError, match="restartPolicy"):
        backend.create(job)


def test_a_hanging_api_server_is_unavailable(
    api_server: ApiServer, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.backends.kubernetes._CREATE_TIMEOUT", (0.3, 0.3))
    backend = KubernetesBackend(api_server.client(), api_server.namespace, "lora-trainer")
    api_server.inject(Fault(hang=True, verb="create", times=9))
    with pytest.raises(BackendUnavailableError):
        backend.create(new_job(receiver))
    api_server.release_hangs()


def test_an_api_server_that_is_down_is_unavailable(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver
) -> None:
    api_server.stop()
    with pytest.raises(BackendUnavailableError):
        backend.create(new_job(receiver))
    api_server.start()
    assert backend.create(new_job(receiver))


@pytest.mark.parametrize(
    "fault",
    [Fault(500), Fault(200, body=b"<html>"), Fault(200, body=b"[]"), Fault(reset=True)],
    ids=["500", "HTML", "no object", "reset"],
)
def test_whatever_an_api_server_answers_to_a_list_of_jobs_is_jobs_or_an_error_of_ours(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver, fault: Fault
) -> None:
    backend.create(new_job(receiver))
    api_server.inject(dataclasses.replace(fault, verb="list", times=9))
    with pytest.raises(BackendUnavailableError):
        list(backend.jobs_now())
    api_server.clear_faults()
    assert [name_of(job) for job in backend.jobs_now()] == [name_of(new_job(receiver))]


# Patching


def test_a_patch_of_a_version_that_is_past_is_stale(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver
) -> None:
    job = new_job(receiver)
    backend.create(job)
    version = (api_server.get("jobs", name_of(job)) or {})["metadata"]["resourceVersion"]
    backend.patch(name_of(job), {"metadata": {"annotations": {"a": "1"}}}, version)
    with pytest.raises(StaleJobError):
        backend.patch(name_of(job), {"metadata": {"finalizers": []}}, version)
    assert finalizers(api_server, name_of(job)) == [names.FINALIZER]


def test_a_patch_of_a_job_that_is_gone_is_no_error(backend: KubernetesBackend) -> None:
    backend.patch("gone", {"metadata": {"annotations": {"a": "1"}}})


def test_concurrent_creates_of_one_job_make_one(
    backend: KubernetesBackend, api_server: ApiServer, receiver: Receiver
) -> None:
    created: list[bool] = []
    threads = [
        threading.Thread(target=lambda: created.append(backend.create(new_job(receiver)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(created) == [False] * 7 + [True]
    assert len(api_server.all("jobs")) == 1
