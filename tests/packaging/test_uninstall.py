"""The order of an uninstall, as Helm reads it from the hooks, and what is left behind.

Helm deletes the release's objects (the RoleBinding among them), then creates the hooks by weight and waits
for each; when one fails it reports that and forgets the release all the same.
"""

from typing import Any

import pytest

from tests.packaging.chart import LEAST, MATRIX, Manifest, find, render

HELM_WAITS_SECONDS = 300
"""Unless it is told otherwise by --timeout."""


def _hooks(values: dict[str, Any], event: str) -> list[Manifest]:
    """The hooks of an event in the order of their weights."""
    hooks = [item for item in render(values) if _annotation(item, "helm.sh/hook") == event]
    return sorted(hooks, key=lambda item: int(_annotation(item, "helm.sh/hook-weight") or "0"))


def _annotation(manifest: Manifest, name: str) -> str | None:
    value = (manifest["metadata"].get("annotations") or {}).get(name)
    return None if value is None else str(value)


def test_the_last_job_finds_its_account_and_its_role() -> None:
    """A binding to a Role that is not there yet is refused to whoever is no cluster administrator."""
    hooks = _hooks(LEAST, "post-delete")
    assert [hook["kind"] for hook in hooks] == ["ServiceAccount", "Role", "RoleBinding", "Job"]
    weights = [_annotation(hook, "helm.sh/hook-weight") for hook in hooks]
    assert len(set(weights)) == len(weights)


def test_nothing_of_the_last_step_is_in_the_way_of_the_next_install_or_uninstall() -> None:
    for hook in _hooks(LEAST, "post-delete"):
        policies = (_annotation(hook, "helm.sh/hook-delete-policy") or "").split(",")
        assert {"before-hook-creation", "hook-succeeded"} <= set(policies), hook["kind"]


def test_a_last_job_that_cannot_run_ends_before_helm_stops_waiting() -> None:
    """An image that cannot be pulled would hold up the uninstall, and the Job would stay for ever."""
    job = find(render(LEAST), "Job", "lora-trainer-release-jobs")["spec"]
    assert job["activeDeadlineSeconds"] < HELM_WAITS_SECONDS
    assert job["backoffLimit"] <= 3
    assert job["ttlSecondsAfterFinished"] > 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_the_last_job_comes_when_the_dispatcher_can_no_longer_take_jobs_back() -> None:
    """Before the RoleBinding is deleted, a dispatcher that still runs might put the finalizer on again."""
    assert _hooks(LEAST, "pre-delete") == []
    binding = find(render(LEAST), "RoleBinding", "lora-trainer")
    assert _annotation(binding, "helm.sh/hook") is None
    assert _annotation(binding, "helm.sh/resource-policy") is None


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_only_the_claim_of_the_models_outlives_an_uninstall(values: dict[str, Any]) -> None:
    kept = [
        (item["kind"], item["metadata"]["name"])
        for item in render(values)
        if _annotation(item, "helm.sh/resource-policy") == "keep"
    ]
    models = values.get("models", {})
    expected = models.get("keep", True) and not models.get("existingClaim")
    assert kept == ([("PersistentVolumeClaim", "lora-trainer-models")] if expected else [])


def test_the_next_install_does_not_wait_for_the_lease_of_the_last_one() -> None:
    """The dispatcher's Role is deleted before it can hand the Lease back, and it runs for 45 seconds."""
    manifests = render(LEAST, "other")
    names = []
    for kind, name in (("Deployment", "other-lora-trainer"), ("Job", "other-lora-trainer-release-jobs")):
        [container] = find(manifests, kind, name)["spec"]["template"]["spec"]["containers"]
        names += [entry["value"] for entry in container["env"] if entry["name"] == "LEASE_NAME"]
    assert container["args"] == ["release", "--lease"]
    assert names == ["other-lora-trainer"] * 2
    [rule] = [
        rule
        for rule in find(manifests, "Role", "other-lora-trainer-release-jobs")["rules"]
        if rule["resources"] == ["leases"]
    ]
    assert (rule["verbs"], rule["resourceNames"]) == (["delete"], names[:1])
