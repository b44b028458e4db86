"""The Roles: each verb in them is used, and every verb that is used is in them."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from kubernetes import client

from dispatcher.backends import Snapshot
from dispatcher.backends.kubernetes import KubernetesBackend
from dispatcher.backends.kubernetes_access import LEASE, NEEDED, missing_permissions
from dispatcher.backends.lease import Lease
from dispatcher.job import JobOptions, build_job
from job_contract import names
from job_contract.request import TrainingRequest
from tests.packaging.chart import LEAST, ROOT, find, job_template, render
from tests.parts.api_server import ApiServer
from tests.parts.job_controller import JobController

Permission = tuple[str, str]
MANIFESTS = render(LEAST)
JOB = build_job(
    TrainingRequest(style_id=1, image_paths=["/a.jpg"], task_id="t"), job_template(MANIFESTS), JobOptions()
)
NAME: str = JOB["metadata"]["name"]


def _rules(role: str) -> list[dict[str, Any]]:
    return list(find(MANIFESTS, "Role", role)["rules"])


def _granted(rules: list[dict[str, Any]]) -> set[Permission]:
    return {(verb, resource) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


def _used(server: ApiServer) -> set[Permission]:
    """What the dispatcher asked for; the administrator's own requests do not count."""
    return {(request.verb, request.target) for request in server.requests if "dispatcher" in request.user}


def _with_pods(backend: KubernetesBackend) -> Snapshot | None:
    snapshot = backend.snapshot(NAME)
    return snapshot if snapshot and snapshot.pods else None


def test_the_role_is_what_the_dispatcher_uses_and_no_more(
    api_server: ApiServer, controller: JobController
) -> None:
    api_server.rules = _rules("lora-trainer")
    backend = KubernetesBackend(api_server.client(), api_server.namespace, "lora-trainer")
    lease = Lease(api_server.client(), api_server.namespace, "lora-trainer", "me", lambda: None, lambda: None)
    stop = threading.Event()
    threads = [
        threading.Thread(target=backend.run, args=(lambda _name: None, stop)),
        threading.Thread(target=lease.run, args=(stop,)),
    ]
    for thread in threads:
        thread.start()
    try:
        assert backend.create(JOB) is True
        assert backend.create(JOB) is False
        pod = controller.start_pod(NAME)
        api_server.write_log(pod, "epoch 1/2\n")
        snapshot = api_server.wait_for(lambda: _with_pods(backend), timeout=20)
        assert snapshot is not None
        assert snapshot.pods[0]["metadata"]["name"] == pod
        assert "epoch 1/2" in backend.log_tail(pod, 10)
        backend.patch(NAME, {"metadata": {"annotations": {"relayed": "yes"}}})
        backend.record_event(JOB | {"metadata": snapshot.job["metadata"]}, "Relayed", "it was told")
        assert backend.events(snapshot.job["metadata"]["uid"])
        backend.stop_pods(NAME)
        api_server.wait_for(lambda: api_server.all("events") and lease.is_held(), timeout=20)
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    refused = [(item.verb, item.target) for item in api_server.requests if item.status == 403]
    assert refused == []
    assert _used(api_server) == _granted(api_server.rules)


def test_the_role_is_what_the_check_command_asks_for() -> None:
    needed = {(verb, resource) for _group, resource, verbs in (*NEEDED, LEASE) for verb in verbs}
    assert _granted(_rules("lora-trainer")) == needed
    groups = {resource: group for group, resource, _verbs in (*NEEDED, LEASE)}
    for rule in _rules("lora-trainer"):
        assert {groups[resource] for resource in rule["resources"]} == set(rule["apiGroups"])


def test_the_role_is_for_our_own_lease_and_no_other(api_server: ApiServer) -> None:
    """Leases are also what other controllers of the namespace elect their leaders by."""
    api_server.rules = _rules("lora-trainer")
    variables = find(MANIFESTS, "Deployment", "lora-trainer")["spec"]["template"]["spec"]["containers"][0][
        "env"
    ]
    name = next(entry["value"] for entry in variables if entry["name"] == "LEASE_NAME")
    api, namespace = api_server.client(), api_server.namespace
    assert missing_permissions(api, namespace, lease=name) == []
    assert missing_permissions(api, namespace, lease="another") == ["get leases", "update leases"]


def test_an_uninstall_can_take_the_finalizer_off_and_delete_the_lease(
    api_server: ApiServer, tmp_path: Path
) -> None:
    """Without it, Jobs that are left cannot be deleted, nor their namespace; and the next install waits."""
    leases = client.CoordinationV1Api(api_server.client(admin=True))
    for name in ("lora-trainer", "another"):
        leases.create_namespaced_lease(api_server.namespace, {"metadata": {"name": name}})
    client.BatchV1Api(api_server.client(admin=True)).create_namespaced_job(api_server.namespace, JOB)
    api_server.rules = _rules("lora-trainer-release-jobs")
    hook = find(MANIFESTS, "Job", "lora-trainer-release-jobs")["spec"]["template"]["spec"]["containers"][0]
    variables = {entry["name"]: entry.get("value", api_server.namespace) for entry in hook["env"]}
    result = subprocess.run(
        [sys.executable, "-m", "dispatcher", *hook["args"]],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(api_server.kubeconfig(tmp_path / "kubeconfig")),
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    job = api_server.get("jobs", NAME)
    assert job is not None
    assert names.FINALIZER not in job["metadata"].get("finalizers", [])
    assert "deletionTimestamp" not in job["metadata"]  # a training that runs goes on
    assert [lease["metadata"]["name"] for lease in api_server.all("leases")] == ["another"]
    assert _used(api_server) == _granted(api_server.rules)


def test_the_role_is_bound_to_the_account_of_the_pods() -> None:
    for name, workload in (
        ("lora-trainer", find(MANIFESTS, "Deployment", "lora-trainer")),
        ("lora-trainer-release-jobs", find(MANIFESTS, "Job", "lora-trainer-release-jobs")),
    ):
        account = workload["spec"]["template"]["spec"]["serviceAccountName"]
        binding = find(MANIFESTS, "RoleBinding", name)
        assert binding["roleRef"]["name"] == name
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "ml"}]
        assert find(MANIFESTS, "ServiceAccount", account)["metadata"]["name"] == account
