"""`release`: finalizers and the Lease of dispatchers that will not come back."""

import pytest
from kubernetes.client import CoordinationV1Api

from dispatcher.__main__ import main
from dispatcher.backends.kubernetes import KubernetesBackend
from job_contract import names
from tests.dispatcher.cluster import finalizers, new_job
from tests.parts.api_server import ApiServer
from tests.parts.receiver import Receiver


def test_release_clears_the_finalizers_that_no_dispatcher_will_clear(
    cluster: ApiServer, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = KubernetesBackend(cluster.client(), cluster.namespace, "lora-trainer")
    foreign = KubernetesBackend(cluster.client(), cluster.namespace, "another")
    jobs = [new_job(receiver, "a", 1), new_job(receiver, "b", 2)]
    jobs[1]["metadata"]["finalizers"].append("example.org/other")
    for job in jobs:
        backend.create(job)
    stranger = new_job(receiver, "c", 3, instance="another")
    foreign.create(stranger)
    first, second = (job["metadata"]["name"] for job in jobs)
    assert main(["release", first]) == 0
    assert finalizers(cluster, first) == []
    assert names.FINALIZER in finalizers(cluster, second)
    assert main(["release"]) == 0
    assert finalizers(cluster, second) == ["example.org/other"]
    assert finalizers(cluster, stranger["metadata"]["name"]) == [names.FINALIZER]
    assert "1 Jobs released" in capsys.readouterr().out


def test_release_leaves_the_lease_alone_unless_it_is_told_to_delete_it(
    cluster: ApiServer, settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand beside a dispatcher that runs, it would take the hold of that one away."""
    settings.setenv("LEASE_NAME", "relay")
    leases = CoordinationV1Api(cluster.client())
    spec = {"holderIdentity": "a dispatcher that was uninstalled", "leaseDurationSeconds": 45}
    for name in ("relay", "another"):
        leases.create_namespaced_lease(cluster.namespace, {"metadata": {"name": name}, "spec": spec})
    assert main(["release"]) == 0
    assert cluster.get("leases", "relay")
    capsys.readouterr()
    assert main(["release", "--lease"]) == 0
    assert capsys.readouterr().out == "0 Jobs released\nLease relay deleted\n"
    assert [lease["metadata"]["name"] for lease in cluster.all("leases")] == ["another"]
    assert main(["release", "--lease"]) == 0
    assert "There is no Lease relay\n" in capsys.readouterr().out


def test_release_says_why_the_lease_is_still_there(
    cluster: ApiServer, settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.setenv("LEASE_NAME", "relay")
    cluster.rules = [{"apiGroups": ["batch", ""], "resources": ["jobs", "pods"], "verbs": ["list"]}]
    assert main(["release", "--lease"]) == 69
    assert "the Lease relay could not be deleted: 403" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--lease"], ["--lease", "lora-42-0123456789ab"]])
def test_release_of_the_lease_needs_its_name_and_is_for_all_jobs_at_once(
    cluster: ApiServer,
    settings: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    if len(arguments) > 1:
        settings.setenv("LEASE_NAME", "relay")
    assert main(["release", *arguments]) == 78
    assert "LEASE_NAME" in capsys.readouterr().err
    assert cluster.requests == []
