"""What the chart renders, as a cluster sees it: schemas, Pod Security, names, the Job contract."""

import copy
import re
from typing import Any

import kubernetes_validate
import pytest

from dispatcher.job import SELECTOR, JobOptions, build_job, load_template, request_of, style_of
from job_contract import names
from job_contract.outcome import NO_RETRY
from job_contract.request import TrainingRequest
from tests.packaging.chart import (
    EVERYTHING,
    LEAST,
    MATRIX,
    Manifest,
    find,
    job_template,
    pods,
    render,
)

OLDEST, NEWEST = "1.31", "1.37"
REQUEST = TrainingRequest(style_id=42, image_paths=["s3://bucket/a.jpg"], task_id="t")
RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}

every_set_of_values = pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())


@every_set_of_values
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_meets_the_schema_of_kubernetes(values: dict[str, Any], version: str) -> None:
    manifests = render(values)
    for manifest in [*manifests, job_template(manifests)]:
        if not manifest["apiVersion"].startswith("monitoring.coreos.com/"):  # not Kubernetes' own
            kubernetes_validate.validate(manifest, version, strict=True)


def test_an_image_volume_meets_the_schema_of_1_33() -> None:
    manifests = render({**LEAST, "baseModel": {"image": "registry/sd15:1", "imagePath": "sd15"}})
    job = job_template(manifests)
    kubernetes_validate.validate(job, "1.33", strict=True)
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "BASE_MODEL", "value": "/base-model/sd15"} in container["env"]
    assert "base-model" not in str([item["metadata"]["name"] for item in manifests])


@every_set_of_values
def test_every_pod_is_admitted_by_pod_security_restricted(values: dict[str, Any]) -> None:
    """The rules of https://kubernetes.io/docs/concepts/security/pod-security-standards, version latest."""
    seen = 0
    for name, pod in pods(render(values)):
        seen += 1
        context = pod["securityContext"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), name
        assert context["runAsNonRoot"] is True, name
        assert context.get("runAsUser") != 0, name
        assert context["seccompProfile"]["type"] in ("RuntimeDefault", "Localhost"), name
        for volume in pod.get("volumes", []):
            assert set(volume) - {"name"} <= RESTRICTED_VOLUMES, (name, volume)
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert not own.get("privileged"), name
            assert own.get("runAsNonRoot", True) is True, name
            assert not any(port.get("hostPort") for port in container.get("ports", [])), name
    assert seen >= 3


@every_set_of_values
def test_our_own_pods_have_a_read_only_root_and_can_write_to_tmp(values: dict[str, Any]) -> None:
    for name, pod in pods(render(values)):
        for container in pod["containers"]:
            if container["name"] == "rabbitmq":
                continue
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]], name


@every_set_of_values
def test_only_the_dispatchers_pods_get_a_token(values: dict[str, Any]) -> None:
    for name, pod in pods(render(values)):
        ours = pod["containers"][0]["name"] in ("dispatcher", "check", "release")
        assert pod["automountServiceAccountToken"] is ours, name


@every_set_of_values
def test_a_rerun_is_the_job_of_a_message_but_for_the_request(values: dict[str, Any]) -> None:
    if not values.get("rerun", {}).get("enabled", True):
        pytest.skip("these values have no CronJob")
    manifests = render(values)
    rerun = find(manifests, "CronJob", "lora-trainer-rerun")["spec"]["jobTemplate"]
    made = build_job(REQUEST, job_template(manifests), JobOptions(instance="lora-trainer"))
    expected = copy.deepcopy(made)
    del expected["apiVersion"], expected["kind"]
    del expected["metadata"]["name"], expected["metadata"]["finalizers"]
    for metadata in (expected["metadata"], expected["spec"]["template"]["metadata"]):
        del metadata["labels"][names.LABEL_STYLE_ID], metadata["labels"][names.LABEL_MANAGED_BY]
    del expected["spec"]["template"]["metadata"]["annotations"][names.REQUEST_ANNOTATION]
    if not expected["spec"]["template"]["metadata"]["annotations"]:
        del expected["spec"]["template"]["metadata"]["annotations"]
    assert rerun == expected


@every_set_of_values
def test_the_dispatchers_selector_finds_reruns(values: dict[str, Any]) -> None:
    """A rerun that it does not see would never be reported."""
    job = job_template(render(values))
    wanted = dict(part.split("=") for part in f"{SELECTOR},{names.LABEL_INSTANCE}=lora-trainer".split(","))
    assert wanted.items() <= job["metadata"]["labels"].items()
    assert wanted.items() <= job["spec"]["template"]["metadata"]["labels"].items()


def test_the_charts_job_keeps_the_contract_of_the_dispatchers_own_template() -> None:
    ours, theirs = job_template(render(LEAST)), load_template(None)
    assert _contract(ours) == _contract(theirs)
    rule = ours["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert rule["values"] == sorted(NO_RETRY)
    assert request_of(build_job(REQUEST, ours, JobOptions())) == REQUEST


def _contract(job: Manifest) -> dict[str, Any]:
    """All of a Job that is not image, resources, environment or the base model's cache."""
    spec = copy.deepcopy(job["spec"])
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    for field in ("image", "env", "envFrom", "resources"):
        container.pop(field, None)
    container["volumeMounts"] = [item for item in container["volumeMounts"] if item["name"] != "base-model"]
    pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] != "base-model"]
    spec["template"]["metadata"] = {}
    return dict(spec)


def test_a_rerun_trains_the_style_of_its_variable() -> None:
    rerun = find(render(LEAST), "CronJob", "lora-trainer-rerun")["spec"]
    assert rerun["suspend"] is True
    job = rerun["jobTemplate"]
    job["spec"]["template"]["spec"]["containers"][0]["env"].append({"name": "STYLE_ID", "value": "42"})
    assert style_of(job) == 42


@pytest.mark.parametrize(
    ("change", "rolls"),
    [
        ({"trainer": {"gpus": 2}}, True),
        ({"amqp": {"existingSecret": "other"}}, True),
        ({"metrics": {"dashboard": {"enabled": True}}}, False),
        ({"models": {"size": "60Gi"}}, False),
    ],
)
def test_the_dispatcher_starts_again_when_what_it_reads_changes(change: dict[str, Any], rolls: bool) -> None:
    """A ConfigMap that changed under a running dispatcher would be read at some later start only."""

    def template(values: dict[str, Any]) -> Any:
        return find(render(values), "Deployment", "lora-trainer")["spec"]["template"]

    assert (template(LEAST) != template({**LEAST, **change})) is rolls


def test_a_changed_token_starts_the_dispatcher_again() -> None:
    def checksums(token: str) -> Any:
        values = {**LEAST, "backend": {"url": "http://b", "token": token}}
        deployment = find(render(values), "Deployment", "lora-trainer")
        return deployment["spec"]["template"]["metadata"]["annotations"]

    assert checksums("one") != checksums("two")


def test_the_models_outlive_an_uninstall_unless_told_otherwise() -> None:
    claim = find(render(LEAST), "PersistentVolumeClaim", "lora-trainer-models")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    claim = find(render(EVERYTHING), "PersistentVolumeClaim", "lora-trainer-models")
    assert "annotations" not in claim["metadata"]


def test_selectors_survive_an_upgrade_of_the_chart() -> None:
    """A Deployment's selector can never change: no version may be in it."""
    selector = find(render(LEAST), "Deployment", "lora-trainer")["spec"]["selector"]["matchLabels"]
    assert selector == {
        "app.kubernetes.io/name": "lora-trainer",
        "app.kubernetes.io/instance": "lora-trainer",
        "app.kubernetes.io/component": "dispatcher",
    }


def test_no_secret_value_stands_outside_of_a_secret() -> None:
    manifests = render({**EVERYTHING, "s3": {**EVERYTHING["s3"], "secretAccessKey": "s3cr3t-key"}})
    others = str([item for item in manifests if item["kind"] != "Secret"])
    for value in ("t0ken", "whsec_", "s3cr3t-key"):
        assert value not in others


def test_trainings_cannot_reach_the_clouds_metadata_service() -> None:
    policy = find(render(LEAST), "NetworkPolicy", "lora-trainer-trainer")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy
    blocks = [
        peer["ipBlock"] for rule in policy["egress"] for peer in rule.get("to", []) if "ipBlock" in peer
    ]
    excepted = [cidr for block in blocks for cidr in block.get("except", [])]
    assert "169.254.169.254/32" in excepted
    everywhere = [rule for rule in policy["egress"] if "to" not in rule]
    assert [{port["port"] for port in rule["ports"]} for rule in everywhere] == [{53}]


def test_two_releases_in_a_namespace_share_no_name() -> None:
    first, second = ({(m["kind"], m["metadata"]["name"]) for m in render(EVERYTHING, name)} for name in "ab")
    assert not first & second


LONGEST_NAME = {"CronJob": 52, "Job": 63, "Service": 63}
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def _refused_names(manifests: list[Manifest]) -> list[tuple[str, Any]]:
    """Kind and name of all that the API server would refuse, by its rules for names, which no schema has."""
    refused = []
    for manifest in manifests:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        rule = SERVICE_NAME if kind == "Service" else SUBDOMAIN
        if len(name) > LONGEST_NAME.get(kind, 253) or not rule.fullmatch(name):
            refused.append((kind, name))
    return refused


@pytest.mark.parametrize("length", range(1, 54))
def test_a_release_name_of_any_length_gives_names_that_are_not_too_long(length: int) -> None:
    """An install that fails at its CronJob leaves half of its objects behind."""
    assert _refused_names(render(EVERYTHING, "a" * length)) == []


@pytest.mark.parametrize(
    "release",
    ["my.release", "a" * 44 + "--b", "a" * 45 + ".b", "a-" * 24 + "b", "1st", "2026", "1e5", "true", "null"],
)
def test_a_release_name_that_helm_takes_gives_objects_that_kubernetes_takes(release: str) -> None:
    manifests = render(EVERYTHING, release)
    assert _refused_names(manifests) == []
    for manifest in manifests:
        if not manifest["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(manifest, NEWEST, strict=True)
        assert manifest["metadata"].get("labels", {}).get("app.kubernetes.io/instance", release) == release
    [secret] = [item for item in manifests if item["metadata"]["name"].endswith("-amqp")]
    [service] = [
        item for item in manifests if item["kind"] == "Service" and "rabbitmq" in item["metadata"]["name"]
    ]
    assert f"@{service['metadata']['name']}:5672/" in secret["stringData"]["amqp-url"]


@pytest.mark.parametrize("name", ["n" * 63, "a." * 31 + "a", "9lives", "v1.5", "foo-"])
@pytest.mark.parametrize("override", ["nameOverride", "fullnameOverride"])
def test_a_name_of_ones_own_gives_names_that_kubernetes_takes(override: str, name: str) -> None:
    assert _refused_names(render({**EVERYTHING, override: name}, "x")) == []


def test_a_rerun_is_kept_until_its_ttl_whatever_became_of_others() -> None:
    """By default a CronJob keeps one failed Job: the next one's end would delete it, its status untold."""
    cron_job = find(render(LEAST), "CronJob", "lora-trainer-rerun")["spec"]
    limits = (cron_job["failedJobsHistoryLimit"], cron_job["successfulJobsHistoryLimit"])
    assert min(limits) > 100_000
    assert cron_job["jobTemplate"]["spec"]["ttlSecondsAfterFinished"] == 86400
