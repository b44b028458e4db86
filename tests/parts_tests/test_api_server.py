"""The fake API server answers the real client as Kubernetes does."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import urllib3
from kubernetes import client, watch

from tests.parts.api_server import DISPATCHER, ApiServer, Fault
from tests.parts_tests.jobs import job

MERGE = "application/merge-patch+json"
RELAY = "lora-trainer.io/status-relay"


@pytest.fixture
def jobs(api_server: ApiServer) -> Any:
    return client.BatchV1Api(api_server.client())


def refused(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[int, str, str]:
    """Return status, reason and message of a call that must fail."""
    with pytest.raises(client.ApiException) as caught:
        call(*arguments, **options)
    status = json.loads(caught.value.body)
    assert status["kind"] == "Status"
    assert status["code"] == caught.value.status
    return status["code"], status["reason"], status["message"]


def raw(server: ApiServer, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
    """Ask without the Kubernetes client, for what it does not let through."""
    headers = {"Authorization": f"Bearer {server.token}", "Content-Type": kind}
    data = None if body is None else json.dumps(body).encode()
    return urllib3.PoolManager(retries=False).request(method, server.url + path, body=data, headers=headers)


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


def test_second_create_is_409_already_exists_and_stale_update_409_conflict(jobs: Any) -> None:
    stale = jobs.create_namespaced_job("default", job("a"))
    assert refused(jobs.create_namespaced_job, "default", job("a"))[:2] == (409, "AlreadyExists")
    jobs.patch_namespaced_job("a", "default", {"metadata": {"annotations": {"x": "1"}}})
    code, reason, message = refused(jobs.replace_namespaced_job, "a", "default", stale)
    assert (code, reason) == (409, "Conflict")
    assert "the object has been modified" in message
    stale_patch = {"metadata": {"resourceVersion": stale.metadata.resource_version, "labels": {"x": "1"}}}
    assert refused(jobs.patch_namespaced_job, "a", "default", stale_patch)[:2] == (409, "Conflict")


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("metadata", "name"), "Not_A_Name", "metadata.name"),
        (("metadata", "labels"), {"app": "ends-with-"}, "metadata.labels"),
        (("metadata", "finalizers"), ["unqualified"], "metadata.finalizers"),
        (("spec", "backoffLimit"), -1, "spec.backoffLimit"),
        (("spec", "template", "spec", "restartPolicy"), "Always", "spec.template.spec.restartPolicy"),
        (
            ("spec", "template", "spec", "containers", 0, "volumeMounts"),
            [{"name": "models", "mountPath": "/models"}],
            "spec.template.spec.containers[0].volumeMounts[0].name",
        ),
        (
            ("spec", "podFailurePolicy", "rules", 0, "onExitCodes", "values"),
            [65, 64],
            "spec.podFailurePolicy.rules[0].onExitCodes.values",
        ),
        (
            ("spec", "podFailurePolicy", "rules", 0, "onExitCodes", "containerName"),
            "another",
            "spec.podFailurePolicy.rules[0].onExitCodes.containerName",
        ),
    ],
)
def test_invalid_job_is_422_with_the_field(
    api_server: ApiServer, path: tuple[Any, ...], value: Any, field: str
) -> None:
    manifest = job("a")
    place: Any = manifest
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    answer = raw(api_server, "POST", "/apis/batch/v1/namespaces/default/jobs", manifest)
    status = answer.json()
    assert (answer.status, status["reason"]) == (422, "Invalid")
    assert field in {cause["field"] for cause in status["details"]["causes"]}


def test_wrong_type_is_400_and_unknown_field_is_dropped_with_a_warning(api_server: ApiServer) -> None:
    path = "/apis/batch/v1/namespaces/default/jobs"
    assert raw(api_server, "POST", path, job("a", backoffLimit="three")).status == 400
    answer = raw(api_server, "POST", path, job("a", backofLimit=3))
    assert answer.status == 201
    assert "backofLimit" in answer.headers["Warning"]
    assert "backofLimit" not in answer.json()["spec"]
    assert raw(api_server, "POST", path + "?fieldValidation=Strict", job("b", backofLimit=3)).status == 400


def test_pod_template_is_immutable(jobs: Any) -> None:
    jobs.create_namespaced_job("default", job("a"))
    patch = {"spec": {"template": {"metadata": {"annotations": {"x": "1"}}}}}
    code, _, message = refused(jobs.patch_namespaced_job, "a", "default", patch)
    assert (code, "field is immutable" in message) == (422, True)


def test_list_selects_by_label_and_field_and_pages_are_of_one_version(jobs: Any) -> None:
    for name in ("a", "b", "c"):
        jobs.create_namespaced_job("default", job(name))
    for selector, names in {
        "style=a": "a",
        "style!=a": "bc",
        "style in (a, c),app": "ac",
        "style notin (a),!none": "bc",
    }.items():
        found = jobs.list_namespaced_job("default", label_selector=selector).items
        assert "".join(item.metadata.name for item in found) == names
    found = jobs.list_namespaced_job("default", field_selector="metadata.name=b").items
    assert [item.metadata.name for item in found] == ["b"]
    first = jobs.list_namespaced_job("default", limit=2)
    jobs.create_namespaced_job("default", job("d"))
    rest = jobs.list_namespaced_job("default", limit=2, _continue=first.metadata._continue)
    assert [item.metadata.name for item in rest.items] == ["c"]
    assert rest.metadata.resource_version == first.metadata.resource_version


def test_page_after_compaction_is_410(jobs: Any, api_server: ApiServer) -> None:
    for name in ("a", "b"):
        jobs.create_namespaced_job("default", job(name))
    first = jobs.list_namespaced_job("default", limit=1)
    jobs.create_namespaced_job("default", job("c"))
    api_server.compact()
    more = {"limit": 1, "_continue": first.metadata._continue}
    assert refused(jobs.list_namespaced_job, "default", **more)[:2] == (410, "Expired")


def events(server: ApiServer, query: str, timeout: float = 10) -> Iterator[dict[str, Any]]:
    """Watch Jobs over a plain connection, so that nothing is hidden by the client."""
    response = urllib3.PoolManager(retries=False).request(
        "GET",
        f"{server.url}/apis/batch/v1/namespaces/default/jobs?watch=true&{query}",
        headers={"Authorization": f"Bearer {server.token}"},
        preload_content=False,
        timeout=timeout,
    )
    assert response.status == 200
    buffer = b""
    for chunk in response.stream():
        buffer += chunk
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            yield json.loads(line)


def test_watch_goes_on_from_a_version_without_gap_or_repetition(jobs: Any, api_server: ApiServer) -> None:
    jobs.create_namespaced_job("default", job("before"))
    version = jobs.list_namespaced_job("default").metadata.resource_version
    jobs.create_namespaced_job("default", job("a"))
    jobs.patch_namespaced_job("a", "default", {"metadata": {"finalizers": None}}, _content_type=MERGE)
    jobs.delete_namespaced_job("a", "default", propagation_policy="Background")
    seen = [
        (event["type"], event["object"]["metadata"]["name"])
        for event in events(api_server, f"resourceVersion={version}&timeoutSeconds=1")
    ]
    assert seen == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


def test_watch_shows_an_object_that_leaves_its_selector_as_deleted(jobs: Any, api_server: ApiServer) -> None:
    jobs.create_namespaced_job("default", job("a"))
    version = jobs.list_namespaced_job("default").metadata.resource_version
    jobs.patch_namespaced_job("a", "default", {"metadata": {"labels": {"style": "z"}}})
    jobs.patch_namespaced_job("a", "default", {"metadata": {"labels": {"style": "a"}}})
    query = f"resourceVersion={version}&labelSelector=style%3Da&timeoutSeconds=1"
    assert [event["type"] for event in events(api_server, query)] == ["DELETED", "ADDED"]


def test_bookmarks_come_when_allowed_and_carry_the_version(jobs: Any, api_server: ApiServer) -> None:
    api_server.bookmark_interval = 0.05
    version = jobs.create_namespaced_job("default", job("a")).metadata.resource_version
    client.CoreV1Api(api_server.client()).create_namespaced_config_map("default", {"metadata": {"name": "m"}})
    stream = events(api_server, f"resourceVersion={version}&allowWatchBookmarks=true")
    bookmark = next(stream)
    assert bookmark["type"] == "BOOKMARK"
    assert int(bookmark["object"]["metadata"]["resourceVersion"]) > int(version)
    silent = events(api_server, f"resourceVersion={version}&timeoutSeconds=1")
    assert list(silent) == []


def test_watch_from_a_compacted_version_is_410_in_the_stream_or_as_status(
    jobs: Any, api_server: ApiServer
) -> None:
    version = jobs.create_namespaced_job("default", job("a")).metadata.resource_version
    jobs.create_namespaced_job("default", job("b"))
    api_server.compact()
    [event] = events(api_server, f"resourceVersion={version}")
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")
    api_server.compact(gone_as_status=True)
    path = f"/apis/batch/v1/namespaces/default/jobs?watch=true&resourceVersion={version}"
    assert raw(api_server, "GET", path).status == 410


def test_real_client_watches_and_a_closed_stream_ends_it(jobs: Any, api_server: ApiServer) -> None:
    jobs.create_namespaced_job("default", job("a"))
    names = []
    for event in watch.Watch().stream(jobs.list_namespaced_job, "default", timeout_seconds=5):
        names.append(event["object"].metadata.name)
        if len(names) == 1:
            jobs.create_namespaced_job("default", job("b"))
        else:
            break
    assert names == ["a", "b"]
    api_server.wait_for(lambda: api_server.open_watches == 0)


def test_silenced_watch_sends_nothing_and_then_what_was_missed(jobs: Any, api_server: ApiServer) -> None:
    version = jobs.create_namespaced_job("default", job("a")).metadata.resource_version
    api_server.silence_watches()
    stream = events(api_server, f"resourceVersion={version}", timeout=0.3)
    jobs.create_namespaced_job("default", job("b"))
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        next(stream)
    stream = events(api_server, f"resourceVersion={version}")
    threading.Timer(0.1, api_server.resume_watches).start()
    assert next(stream)["object"]["metadata"]["name"] == "b"


def test_ended_watches_close_reset_or_expire(jobs: Any, api_server: ApiServer) -> None:
    version = jobs.create_namespaced_job("default", job("a")).metadata.resource_version

    def end_soon(how: str) -> Iterator[dict[str, Any]]:
        stream = events(api_server, f"resourceVersion={version}")

        def end_when_open() -> None:
            api_server.wait_for(lambda: api_server.open_watches == 1)
            api_server.end_watches(how)

        end = threading.Thread(target=end_when_open)
        end.start()
        yield from stream
        end.join()

    assert list(end_soon("close")) == []
    [event] = end_soon("expire")
    assert event["object"]["code"] == 410
    with pytest.raises(urllib3.exceptions.ProtocolError):
        list(end_soon("reset"))


def test_finalizer_holds_a_deleted_job_until_it_is_removed(jobs: Any, api_server: ApiServer) -> None:
    jobs.create_namespaced_job("default", job("a"))
    jobs.delete_namespaced_job("a", "default", propagation_policy="Background")
    held = api_server.get("jobs", "a")
    assert held is not None
    assert "deletionTimestamp" in held["metadata"]
    again = {"metadata": {"finalizers": [RELAY, "example.com/another"]}}
    assert refused(jobs.patch_namespaced_job, "a", "default", again)[0] == 422
    without = [{"op": "remove", "path": "/metadata/finalizers/0"}]
    jobs.patch_namespaced_job("a", "default", without)
    assert api_server.get("jobs", "a") is None
    assert refused(jobs.read_namespaced_job, "a", "default")[:2] == (404, "NotFound")


def test_strategic_merge_adds_finalizers_and_merge_patch_replaces_them(jobs: Any) -> None:
    jobs.create_namespaced_job("default", job("a"))
    body = {"metadata": {"finalizers": ["example.com/b"]}}
    merged = jobs.patch_namespaced_job("a", "default", body)
    assert merged.metadata.finalizers == [RELAY, "example.com/b"]
    replaced = jobs.patch_namespaced_job("a", "default", body, _content_type=MERGE)
    assert replaced.metadata.finalizers == ["example.com/b"]


def test_status_is_written_only_through_its_subresource(jobs: Any) -> None:
    jobs.create_namespaced_job("default", job("a"))
    patch = {"status": {"active": 1}}
    assert jobs.patch_namespaced_job("a", "default", patch).status.active is None
    assert jobs.patch_namespaced_job_status("a", "default", patch).status.active == 1


def test_delete_preconditions_guard_the_identity(jobs: Any) -> None:
    jobs.create_namespaced_job("default", job("a"))
    options = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid="another"))
    assert refused(jobs.delete_namespaced_job, "a", "default", body=options)[:2] == (409, "Conflict")


def test_unchanged_patch_makes_no_new_version(jobs: Any) -> None:
    before = jobs.create_namespaced_job("default", job("a"))
    after = jobs.patch_namespaced_job("a", "default", {"metadata": {"labels": {"style": "a"}}})
    assert after.metadata.resource_version == before.metadata.resource_version


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


def test_leases_conflict_and_events_have_two_apis(api_server: ApiServer) -> None:
    leases = client.CoordinationV1Api(api_server.client())
    first = leases.create_namespaced_lease("default", {"metadata": {"name": "l"}, "spec": {}})
    first.spec.holder_identity = "one"
    leases.replace_namespaced_lease("l", "default", first)
    first.spec.holder_identity = "two"
    assert refused(leases.replace_namespaced_lease, "l", "default", first)[:2] == (409, "Conflict")
    core = client.CoreV1Api(api_server.client())
    body = {
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Job", "name": "a", "namespace": "default"},
        "reason": "Parked",
        "message": "why",
    }
    core.create_namespaced_event("default", body)
    selected = core.list_namespaced_event("default", field_selector="involvedObject.name=a").items
    assert [event.message for event in selected] == ["why"]
    path = "/apis/events.k8s.io/v1/namespaces/default/events/e"
    new = raw(api_server, "GET", path).json()
    assert (new["note"], new["regarding"]["name"]) == ("why", "a")


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
