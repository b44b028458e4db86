"""The API server refuses and fails on demand, and counts what it is asked."""

import time
from typing import Any

import pytest
import urllib3
from kubernetes import client

from tests.parts.api_server import DISPATCHER, ApiServer, Fault
from tests.parts_tests.asking import refused
from tests.parts_tests.jobs import job


def test_create_gives_identity_defaults_and_labels(jobs: Any, api_server: ApiServer) -> None:
    created = jobs.create_namespaced_job("default", job("a"))
    stored = api_server.get("jobs", "a")
    assert stored is not None
    labels = stored["spec"]["template"]["metadata"]["labels"]
    assert labels["batch.kubernetes.io/controller-uid"] == created.metadata.uid
    assert labels["job-name"] == "a"
    assert created.spec.completions == 1
    assert created.spec.suspend is False
    assert created.metadata.generation == 1


def test_page_after_compaction_is_410(jobs: Any, api_server: ApiServer) -> None:
    for name in ("a", "b"):
        jobs.create_namespaced_job("default", job(name))
    first = jobs.list_namespaced_job("default", limit=1)
    jobs.create_namespaced_job("default", job("c"))
    api_server.compact()
    more = {"limit": 1, "_continue": first.metadata._continue}
    assert refused(jobs.list_namespaced_job, "default", **more)[:2] == (410, "Expired")


def test_rotated_token_is_401_until_the_client_has_the_new_one(jobs: Any, api_server: ApiServer) -> None:
    api_server.tokens = {"new-token": DISPATCHER}
    assert refused(jobs.list_namespaced_job, "default")[:2] == (401, "Unauthorized")
    jobs.api_client.configuration.api_key["authorization"] = "Bearer new-token"
    assert jobs.list_namespaced_job("default").items == []


def test_rules_refuse_what_they_do_not_name(jobs: Any, api_server: ApiServer) -> None:
    api_server.rules = [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "get"]}]
    assert jobs.list_namespaced_job("default").items == []
    code, reason, message = refused(jobs.create_namespaced_job, "default", job("a"))
    assert (code, reason) == (403, "Forbidden")
    assert 'cannot create resource "jobs" in API group "batch" in the namespace "default"' in message
    spec = {"resourceAttributes": {"verb": "create", "group": "batch", "resource": "jobs"}}
    review = client.AuthorizationV1Api(api_server.client())
    assert review.create_self_subject_access_review({"spec": spec}).status.allowed is False


def test_full_quota_is_403_even_for_a_name_that_is_taken(jobs: Any, api_server: ApiServer) -> None:
    api_server.job_quota = 1
    jobs.create_namespaced_job("default", job("a"))
    for name in ("a", "b"):
        code, _, message = refused(jobs.create_namespaced_job, "default", job(name))
        assert (code, "exceeded quota" in message) == (403, True)


def test_faults_strike_before_or_after_the_commit(jobs: Any, api_server: ApiServer) -> None:
    api_server.inject(Fault(429, verb="create", resource="jobs", headers={"Retry-After": "7"}))
    with pytest.raises(client.ApiException) as caught:
        jobs.create_namespaced_job("default", job("a"))
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "7")
    assert api_server.get("jobs", "a") is None
    api_server.inject(Fault(reset=True, after=True, verb="create"))
    with pytest.raises(urllib3.exceptions.HTTPError):
        jobs.create_namespaced_job("default", job("b"))
    assert api_server.get("jobs", "b") is not None
    api_server.inject(Fault(hang=True, verb="get", times=10))  # the client itself tries a GET again
    with pytest.raises(urllib3.exceptions.HTTPError):
        jobs.read_namespaced_job("b", "default", _request_timeout=0.2)
    api_server.clear_faults()
    api_server.release_hangs()
    assert jobs.read_namespaced_job("b", "default").metadata.name == "b"


def test_stopped_server_refuses_and_comes_back_with_its_objects(jobs: Any, api_server: ApiServer) -> None:
    jobs.create_namespaced_job("default", job("a"))
    api_server.stop()
    with pytest.raises(urllib3.exceptions.HTTPError):
        jobs.list_namespaced_job("default", _request_timeout=2)
    api_server.start()
    assert [item.metadata.name for item in jobs.list_namespaced_job("default").items] == ["a"]


def test_requests_are_counted_by_verb_and_target(jobs: Any, api_server: ApiServer) -> None:
    started = time.monotonic()
    jobs.create_namespaced_job("default", job("a"))
    jobs.patch_namespaced_job_status("a", "default", {"status": {"active": 1}})
    assert (api_server.count("create", "jobs"), api_server.count("patch", "jobs/status")) == (1, 1)
    assert api_server.count() == 2
    assert started < api_server.requests[0].monotonic < time.monotonic()
