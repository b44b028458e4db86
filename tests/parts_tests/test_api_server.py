"""The fake API server answers the real client as Kubernetes does."""

from typing import Any

import pytest
from kubernetes import client

from tests.parts.api_server import ApiServer
from tests.parts_tests.asking import raw, refused
from tests.parts_tests.jobs import job

MERGE = "application/merge-patch+json"
RELAY = "lora-trainer.io/status-relay"


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
        (("metadata", "finalizers"), ["unqualified"], "metadata.finalizers[0]"),
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


def test_finalizer_holds_a_deleted_job_until_it_is_removed(jobs: Any, api_server: ApiServer) -> None:
    jobs.create_namespaced_job("default", job("a"))
    jobs.delete_namespaced_job("a", "default", propagation_policy="Background")
    held = api_server.get("jobs", "a")
    assert held is not None
    assert "deletionTimestamp" in held["metadata"]
    code, reason, message = refused(jobs.create_namespaced_job, "default", job("a"))
    assert (code, reason, message.startswith("object is being deleted")) == (409, "AlreadyExists", True)
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
    assert merged.metadata.finalizers == ["example.com/b", RELAY]
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
