"""What is asked of two API servers, one after the other: each yields the answers that are compared."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from tests.parts.plain_api import Answer, Asker
from tests.parts.waiting import wait_for
from tests.parts_tests.manifests import changed, still

Conversation = Callable[[Asker], Iterator[Answer]]


def job_that_is_there(ask: Asker) -> Iterator[Answer]:
    yield ask.create("jobs", still("a"))
    yield ask.create("jobs", still("a"))
    yield ask.delete("jobs", "a")
    yield ask.create("jobs", still("a"))


def job_in_no_namespace(ask: Asker) -> Iterator[Answer]:
    yield ask.ask("POST", "/apis/batch/v1/namespaces/nowhere/jobs", still("a"))
    yield ask.ask("GET", "/apis/batch/v1/namespaces/nowhere/jobs")
    yield ask.ask("GET", "/apis/batch/v1/namespaces/nowhere/jobs/a")


def no_json(ask: Asker) -> Iterator[Answer]:
    yield ask.create("jobs", b"no JSON")
    yield ask.create("jobs", b"")
    yield ask.create("jobs", [])
    yield ask.create("jobs", {})
    yield ask.ask("POST", ask.path("jobs"), b"kind: Job", "text/plain")


def strict_and_dry(ask: Asker) -> Iterator[Answer]:
    yield ask.create("jobs", changed(spec__colour="red", spec__size=5), fieldValidation="Strict")
    yield ask.create("jobs", changed(spec__colour="red"), fieldValidation="Ignore")
    yield ask.create("jobs", still("b"), dryRun="All")
    yield ask.get("jobs", "b")


def names_by_the_server(ask: Asker) -> Iterator[Answer]:
    answer = ask.create("jobs", changed(metadata__name=None, metadata__generateName="lora-"))
    assert len(answer.body["metadata"]["name"]) == len("lora-") + 5
    yield Answer(answer.status, answer.kind, None, answer.body["metadata"]["generateName"])


def nothing_there(ask: Asker) -> Iterator[Answer]:
    yield ask.get("jobs", "a")
    yield ask.patch("jobs", "a", {"metadata": {"labels": {"a": "b"}}})
    yield ask.delete("jobs", "a")
    yield ask.update("jobs", "a", still("a"))
    yield ask.get("pods", "a")
    yield ask.ask("GET", ask.path("pods", "a", "log"))
    yield ask.ask("DELETE", ask.path("pods"), query={"labelSelector": "a=b"})
    yield ask.all("jobs")


def no_such_thing(ask: Asker) -> Iterator[Answer]:
    yield ask.ask("GET", "/apis/batch/v1/namespaces/default/tasks")
    yield ask.ask("POST", ask.path("jobs", "a"), still("a"))
    yield ask.ask("PUT", ask.path("jobs"), still("a"))
    yield ask.ask("GET", ask.path("jobs"), token="wrong")


def merge_patches(ask: Asker) -> Iterator[Answer]:
    ask.create("jobs", still("a"))
    stored = ask.get("jobs", "a").body
    version = stored["metadata"]["resourceVersion"]
    yield ask.patch("jobs", "a", {"metadata": {"annotations": {"a": "1"}, "resourceVersion": version}})
    yield ask.patch("jobs", "a", {"metadata": {"annotations": {"a": "2"}, "resourceVersion": version}})
    yield ask.patch("jobs", "a", {"metadata": {"annotations": {"a": None}}})
    yield ask.patch("jobs", "a", {"metadata": {"name": "another"}})
    yield ask.patch("jobs", "a", {"metadata": {"labels": {"a": "not valid"}}})
    yield ask.patch("jobs", "a", {"metadata": {"labels": {"a": 5}}})
    yield ask.patch("jobs", "a", {"metadata": {"finalizers": ["relay"]}})
    yield ask.patch("jobs", "a", {"spec": {"backoffLimit": 5, "activeDeadlineSeconds": 9}})
    yield ask.patch("jobs", "a", {"spec": {"podFailurePolicy": None}})
    yield ask.patch("jobs", "a", {"spec": {"completions": 2}})
    yield ask.patch("jobs", "a", {"spec": {"template": {"spec": {"restartPolicy": "Always"}}}})
    yield ask.patch("jobs", "a", {"spec": {"template": {"metadata": {"annotations": {"a": "b"}}}}})
    yield ask.patch("jobs", "a", {"spec": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}})
    yield ask.patch("jobs", "a", {"spec": {"colour": "red"}})
    yield ask.patch("jobs", "a", {"status": {"succeeded": 1}})
    yield ask.patch("jobs", "a", {"metadata": {"finalizers": None}})
    yield ask.patch("jobs", "a", {})
    yield ask.patch("jobs", "a", [])
    yield ask.patch("jobs", "a", b"no JSON")
    yield ask.patch("jobs", "a", {}, "application/json")
    yield ask.patch("jobs", "a", {"spec": {"suspend": False}})
    yield ask.patch("jobs", "a", {"spec": {"template": {"spec": {"nodeSelector": {"a": "c"}}}}})


def other_patches(ask: Asker) -> Iterator[Answer]:
    ask.create("jobs", still("a"))
    yield ask.patch("jobs", "a", [{"op": "test", "path": "/metadata/name", "value": "b"}], "json")
    yield ask.patch("jobs", "a", [{"op": "add", "path": "/metadata/labels/b", "value": "c"}], "json")
    yield ask.patch("jobs", "a", [{"op": "remove", "path": "/metadata/labels/z"}], "json")
    yield ask.patch("jobs", "a", {"metadata": {"finalizers": ["x.io/y"]}}, "strategic")
    yield ask.patch(
        "jobs", "a", {"metadata": {"$deleteFromPrimitiveList/finalizers": ["x.io/y"]}}, "strategic"
    )


def updates(ask: Asker) -> Iterator[Answer]:
    ask.create("jobs", still("a"))
    stored = ask.get("jobs", "a").body
    stored["metadata"]["annotations"] = {"a": "1"}
    yield ask.update("jobs", "a", stored)
    yield ask.update("jobs", "a", stored)
    yield ask.update("jobs", "b", stored)
    yield ask.update("jobs", "a", {**stored, "spec": {**stored["spec"], "template": {}}})


def deletion_held_by_a_finalizer(ask: Asker) -> Iterator[Answer]:
    ask.create("jobs", still("a"))
    yield ask.delete("jobs", "a", {"propagationPolicy": "Background"})
    yield ask.get("jobs", "a")
    yield ask.delete("jobs", "a", {"propagationPolicy": "Background"})
    yield ask.create("jobs", still("a"))
    yield ask.patch("jobs", "a", {"metadata": {"annotations": {"a": "1"}}})
    yield ask.patch("jobs", "a", {"metadata": {"finalizers": ["lora-trainer.io/status-relay", "x.io/y"]}})
    yield ask.patch("jobs", "a", {"metadata": {"finalizers": None}})
    yield ask.get("jobs", "a")


def deletion_at_once(ask: Asker) -> Iterator[Answer]:
    ask.create("jobs", {**still("a"), "metadata": {"name": "a"}})
    yield ask.delete("jobs", "a", {"preconditions": {"uid": "another"}})
    yield replace(ask.delete("jobs", "a", {"preconditions": {"resourceVersion": "1"}}), body=None)
    yield ask.delete("jobs", "a", {"propagationPolicy": "Sometimes"})
    yield ask.delete("jobs", "a", propagationPolicy="Background")
    yield ask.get("jobs", "a")


def lists(ask: Asker) -> Iterator[Answer]:
    for name in ("b", "a", "c"):
        ask.create("jobs", still(name))
    yield ask.all("jobs")
    first = ask.all("jobs", limit="2")
    yield first
    yield ask.all("jobs", limit="2", **{"continue": first.body["metadata"]["continue"]})
    yield ask.all("jobs", labelSelector="style=a")
    yield ask.all("jobs", labelSelector="style in (a,b),app!=x", limit="1")
    yield ask.all("jobs", labelSelector="a b")
    yield ask.all("jobs", fieldSelector="metadata.name=c")
    yield ask.all("jobs", fieldSelector="spec.suspend=true")
    yield ask.all("jobs", fieldSelector="nothing")
    yield ask.all("jobs", limit="x")
    yield replace(ask.all("jobs", resourceVersion="99999999"), body=None)
    yield ask.all("jobs", **{"continue": "garbage"})


def watches(ask: Asker) -> Iterator[Answer]:
    ask.create("jobs", still("a"))
    version = ask.all("jobs").body["metadata"]["resourceVersion"]
    ask.create("jobs", still("b"))
    ask.patch("jobs", "b", {"metadata": {"labels": {"style": "x"}}})
    ask.patch("jobs", "b", {"metadata": {"finalizers": None}})
    ask.delete("jobs", "b", propagationPolicy="Background")
    yield from ask.watch("jobs", resourceVersion=version, timeoutSeconds="1")
    yield from ask.watch("jobs", resourceVersion=version, timeoutSeconds="1", labelSelector="style=b")
    yield from ask.watch("jobs", resourceVersion=version, timeoutSeconds="1", labelSelector="style=x")
    yield from ask.watch("jobs", timeoutSeconds="1")
    yield from ask.watch("jobs", resourceVersion="x", timeoutSeconds="1")


def leases(ask: Asker) -> Iterator[Answer]:
    lease = {"metadata": {"name": "a"}, "spec": {"holderIdentity": "x", "leaseDurationSeconds": 45}}
    yield ask.create("leases", lease)
    yield ask.create("leases", lease)
    yield ask.update("leases", "a", lease)
    stored = ask.get("leases", "a").body
    stored["spec"]["holderIdentity"] = "y"
    yield ask.update("leases", "a", stored)
    yield ask.update("leases", "a", stored)
    yield ask.patch("leases", "a", {"metadata": {"uid": "another"}})
    yield ask.create("leases", {"metadata": {"name": "b"}, "spec": {"leaseDurationSeconds": 0}})
    yield ask.create("leases", {"metadata": {"name": "b"}, "spec": {"renewTime": "today"}})


def events(ask: Asker) -> Iterator[Answer]:
    about = {"kind": "Job", "apiVersion": "batch/v1", "name": "a", "namespace": ask.namespace}
    event = {
        "metadata": {"name": "a.1"},
        "involvedObject": about,
        "type": "Normal",
        "reason": "Told",
        "message": "It was told.",
        "source": {"component": "tests"},
        "firstTimestamp": "2026-11-24T08:00:00Z",
        "lastTimestamp": "2026-11-24T08:00:00Z",
        "count": 1,
    }
    yield ask.create("events", event)
    yield ask.create("events", event)
    yield ask.create(
        "events", {**event, "metadata": {"name": "a.2"}, "involvedObject": {**about, "namespace": "x"}}
    )
    yield ask.all("events", fieldSelector="involvedObject.name=a")


def pods(ask: Asker) -> Iterator[Answer]:
    """A pod on a node that nobody answers for, up to what its kubelet does last."""
    spec = {"containers": [{"name": "trainer", "image": "trainer:1"}], "automountServiceAccountToken": False}
    created = ask.create("pods", {"metadata": {"name": "a", "labels": {"a": "b"}}, "spec": spec})
    yield replace(created, body=created.body["status"])
    yield ask.ask("GET", ask.path("pods", "a", "log"))
    yield ask.ask("GET", ask.path("pods", "a", "log"), query={"container": "other"})
    binding = {"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "nowhere"}}
    yield ask.ask("POST", ask.path("pods", "a", "binding"), binding)
    yield ask.ask("POST", ask.path("pods", "a", "binding"), binding)
    bound = ask.get("pods", "a")
    yield replace(bound, body=[bound.body["status"], bound.body["spec"]["nodeName"]])
    running = {"status": {"phase": "Running", "reason": "x"}}
    patched = ask.ask("PATCH", ask.path("pods", "a", "status"), running, "application/merge-patch+json")
    yield replace(patched, body=patched.body["status"])
    deleted = ask.delete("pods", "a", gracePeriodSeconds="5")
    yield replace(deleted, body=deleted.body["metadata"])
    again = ask.delete("pods", "a", gracePeriodSeconds="3")
    yield replace(again, body=again.body["metadata"])
    last = ask.delete("pods", "a", {"gracePeriodSeconds": 0})
    yield replace(last, body=last.body["metadata"])
    yield ask.get("pods", "a")
    ask.create("pods", {"metadata": {"name": "b"}, "spec": spec})
    without_node = ask.delete("pods", "b")
    yield replace(without_node, body=without_node.body["metadata"])
    yield ask.get("pods", "b")


def quotas(ask: Asker) -> Iterator[Answer]:
    ask.create("resourcequotas", {"metadata": {"name": "q"}, "spec": {"hard": {"count/jobs.batch": "0"}}})

    def refused() -> Answer | None:
        """At first the quota's use is unknown."""
        answer = ask.create("jobs", still("a"), dryRun="All")
        return answer if "exceeded quota" in str(answer.body) else None

    yield wait_for(refused, 30, "the quota is in force")


def reviews(ask: Asker) -> Iterator[Answer]:
    attributes = {"namespace": ask.namespace, "group": "batch", "resource": "jobs", "verb": "create"}
    yield ask.ask(
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        },
    )


CONVERSATIONS: Final[list[Conversation]] = [
    job_that_is_there,
    job_in_no_namespace,
    no_json,
    strict_and_dry,
    names_by_the_server,
    nothing_there,
    no_such_thing,
    merge_patches,
    other_patches,
    updates,
    deletion_held_by_a_finalizer,
    deletion_at_once,
    lists,
    watches,
    leases,
    events,
    pods,
    quotas,
    reviews,
]
