"""A request becomes a Job that any Kubernetes takes, and that keeps both ends of the contract."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.job import (
    QUEUE_LABEL,
    JobOptions,
    build_job,
    job_name,
    load_template,
    request_of,
    same_request,
    style_label,
    style_of,
    task_of,
    trainer_container,
)
from dispatcher.service import job_options
from dispatcher.settings import DispatcherSettings
from job_contract import names
from job_contract.outcome import NO_RETRY, ExitCode
from job_contract.request import TrainingRequest
from job_contract.settings import InvalidSettingsError
from trainer.errors import TrainerError

REQUEST = TrainingRequest(style_id=42, image_paths=["s3://bucket/a.jpg"], num_epochs=200, task_id="task-1")
TEMPLATE = load_template(None)
ALL_OPTIONS = JobOptions(
    instance="prod",
    image="registry.local/trainer:1",
    gpus=2,
    deadline_seconds=60,
    ttl_seconds=0,
    models_claim="nfs",
    priority_class="low",
    kueue_queue="gpu-queue",
    environment={"BASE_MODEL": "/base", "MODELS_DIR": "/other"},
)


def job(request: TrainingRequest = REQUEST, options: JobOptions | None = None) -> dict[str, Any]:
    return build_job(request, TEMPLATE, options or JobOptions())


def test_the_whole_manifest_of_one_request() -> None:
    labels = {
        "app.kubernetes.io/name": "lora-trainer",
        "app.kubernetes.io/component": "training-job",
        "app.kubernetes.io/instance": "lora-trainer",
        "app.kubernetes.io/managed-by": "lora-trainer-dispatcher",
        "lora-trainer.io/style-id": "42",
    }
    request = '{"style_id":42,"image_paths":["s3://bucket/a.jpg"],"num_epochs":200,"task_id":"task-1"}'
    built = job()
    pod_template = built["spec"].pop("template")
    pod_finalizers = pod_template["metadata"].pop("finalizers", None)
    assert pod_finalizers in (None, ["lora-trainer.io/status-relay"])
    assert built == {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": "lora-42-cd399edb4533",
            "labels": labels,
            "finalizers": ["lora-trainer.io/status-relay"],
        },
        "spec": {
            "backoffLimit": 3,
            "activeDeadlineSeconds": 7200,
            "ttlSecondsAfterFinished": 86400,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": "trainer", "operator": "In", "values": [64, 65, 78]},
                    },
                    {
                        "action": "Ignore",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                ]
            },
        },
    }
    assert pod_template == {
        "metadata": {"labels": labels, "annotations": {"lora-trainer.io/request": request}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 30,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "fsGroup": 10001,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "containers": [
                {
                    "name": "trainer",
                    "image": "lora-trainer:latest",
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python", "-m", "trainer", "--request", "/etc/lora/request.json"],
                    "env": [{"name": "MODELS_DIR", "value": "/models"}],
                    "envFrom": [{"secretRef": {"name": "lora-trainer-env", "optional": True}}],
                    "resources": {"limits": {"nvidia.com/gpu": "1"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File",
                    "volumeMounts": [
                        {"name": "request", "mountPath": "/etc/lora", "readOnly": True},
                        {"name": "models", "mountPath": "/models"},
                        {"name": "tmp", "mountPath": "/tmp"},
                        {"name": "shm", "mountPath": "/dev/shm"},
                    ],
                }
            ],
            "volumes": [
                {
                    "name": "request",
                    "downwardAPI": {
                        "items": [
                            {
                                "path": "request.json",
                                "fieldRef": {"fieldPath": "metadata.annotations['lora-trainer.io/request']"},
                            }
                        ]
                    },
                },
                {"name": "models", "persistentVolumeClaim": {"claimName": "lora-trainer-models"}},
                {"name": "tmp", "emptyDir": {}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
            ],
        },
    }


def test_the_template_is_not_changed_by_filling_it_in() -> None:
    before = copy.deepcopy(TEMPLATE)
    job(options=ALL_OPTIONS)
    assert before == TEMPLATE


def test_every_option_arrives_in_its_place() -> None:
    built = job(options=ALL_OPTIONS)
    spec, pod = built["spec"], built["spec"]["template"]["spec"]
    container = trainer_container(built)
    assert built["metadata"]["labels"]["app.kubernetes.io/instance"] == "prod"
    assert built["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu-queue"
    assert container["image"] == "registry.local/trainer:1"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert (spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (60, 0)
    assert pod["priorityClassName"] == "low"
    assert pod["volumes"][1]["persistentVolumeClaim"] == {"claimName": "nfs"}
    assert container["env"] == [
        {"name": "BASE_MODEL", "value": "/base"},
        {"name": "MODELS_DIR", "value": "/other"},
    ]


def test_on_one_machine_no_job_is_in_a_queue_of_kueue() -> None:
    """Its turn would come there, and nobody would start it."""
    template = copy.deepcopy(TEMPLATE)
    template.setdefault("metadata", {})["labels"] = {QUEUE_LABEL: "gpus"}
    options = job_options(DispatcherSettings(job_backend="local", kueue_queue="gpus"))
    assert QUEUE_LABEL not in build_job(REQUEST, template, options)["metadata"]["labels"]


@pytest.mark.parametrize("version", ["1.29", "1.31", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("options", [JobOptions(), ALL_OPTIONS], ids=["default", "all options"])
def test_the_manifest_is_valid_strictly_by_kubernetes_own_schema(version: str, options: JobOptions) -> None:
    kubernetes_validate.validate(job(options=options), version, strict=True)


def test_the_trainer_reads_the_request_where_the_manifest_mounts_it() -> None:
    """One end of the contract is YAML: this pins it to the names that the trainer imports."""
    container = trainer_container(job())
    spec = job()["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    (item,) = volumes["request"]["downwardAPI"]["items"]
    assert mounts["request"] == names.REQUEST_MOUNT_DIR
    assert item["path"] == names.REQUEST_FILE_NAME
    assert item["fieldRef"]["fieldPath"] == f"metadata.annotations['{names.REQUEST_ANNOTATION}']"
    assert container["command"][-2:] == [
        "--request",
        f"{names.REQUEST_MOUNT_DIR}/{names.REQUEST_FILE_NAME}",
    ]
    assert mounts["models"] == names.MODELS_MOUNT_DIR
    assert {"name": "MODELS_DIR", "value": names.MODELS_MOUNT_DIR} in container["env"]
    assert container["terminationMessagePath"] == names.TERMINATION_MESSAGE_PATH
    assert container["name"] == names.CONTAINER_NAME
    annotations = job()["spec"]["template"]["metadata"]["annotations"]
    assert TrainingRequest.model_validate_json(annotations[names.REQUEST_ANNOTATION]) == REQUEST


def test_the_exit_codes_that_fail_a_job_at_once_are_those_that_mean_no_retry() -> None:
    fail_job, ignore = job()["spec"]["podFailurePolicy"]["rules"]
    assert fail_job["action"] == "FailJob"
    assert fail_job["onExitCodes"]["values"] == sorted(NO_RETRY)
    assert fail_job["onExitCodes"]["containerName"] == names.CONTAINER_NAME
    assert ignore["action"] == "Ignore"
    retried = set(ExitCode) - set(NO_RETRY) - {ExitCode.OK}
    assert retried == {ExitCode.UNAVAILABLE, ExitCode.SOFTWARE, ExitCode.INTERRUPTED}


def test_every_error_of_the_trainer_ends_with_a_code_of_the_contract() -> None:
    def classes(parent: type[TrainerError]) -> list[type[TrainerError]]:
        return [parent, *(found for child in parent.__subclasses__() for found in classes(child))]

    assert {error.exit_code for error in classes(TrainerError)} == set(ExitCode) - {ExitCode.OK}


STYLES = st.integers(-(2**62), 2**62) | st.from_regex(r"\A[A-Za-z0-9_-]{1,64}\Z")


@given(STYLES, st.text(max_size=256))
def test_a_job_name_is_always_a_dns_label_that_leaves_room_for_its_pods(style: int | str, task: str) -> None:
    name = job_name(style, task)
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= 63 - len("-abcde")


@given(STYLES, st.text(), STYLES, st.text())
def test_names_are_the_same_for_the_same_identity_and_only_then(
    style: int | str, task: str, other_style: int | str, other_task: str
) -> None:
    same = (str(style), task) == (str(other_style), other_task)
    assert (job_name(style, task) == job_name(other_style, other_task)) == same


def test_styles_that_look_alike_in_a_name_still_have_names_of_their_own() -> None:
    assert len({job_name(style, "t") for style in ("A_b", "a-b", "A-B", "a_b", "a--b")}) == 5


@given(STYLES)
def test_a_style_label_is_always_valid(style: int | str) -> None:
    label = style_label(style)
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", label)
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?", str(style)):
        assert label == str(style)


def test_what_went_into_a_job_is_read_back_from_it() -> None:
    built = job()
    assert (request_of(built), style_of(built), task_of(built)) == (REQUEST, 42, "task-1")


@pytest.mark.parametrize(
    ("text", "style"), [("42", 42), ("-7", -7), ("042", "042"), ("portrait", "portrait"), ("", None)]
)
def test_a_rerun_by_hand_has_its_style_from_the_environment(text: str, style: int | str | None) -> None:
    built = job(options=JobOptions(environment={"STYLE_ID": text}))
    del built["spec"]["template"]["metadata"]["annotations"]
    assert (request_of(built), style_of(built), task_of(built)) == (None, style, None)


@pytest.mark.parametrize("text", ["{", "[]", '{"style_id": 1}', "null"])
def test_an_annotation_that_is_no_request_is_as_none(text: str) -> None:
    """Such a Job once raised at every look, and its finalizer stayed for ever."""
    built = job(options=JobOptions(environment={"STYLE_ID": "42"}))
    built["spec"]["template"]["metadata"]["annotations"][names.REQUEST_ANNOTATION] = text
    assert (request_of(built), style_of(built), task_of(built)) == (None, 42, None)


def test_the_same_request_is_known_whatever_else_differs_between_two_jobs() -> None:
    first, second = job(), job(options=ALL_OPTIONS)
    assert same_request(first, second)
    assert not same_request(first, job(REQUEST.model_copy(update={"num_epochs": 7})))
    text = first["spec"]["template"]["metadata"]["annotations"]
    text[names.REQUEST_ANNOTATION] = json.dumps(json.loads(text[names.REQUEST_ANNOTATION]), indent=2)
    assert same_request(first, second)
    without = job()
    del without["spec"]["template"]["metadata"]["annotations"]
    assert not same_request(without, second)


def test_a_template_of_ones_own_keeps_its_labels_and_annotations(tmp_path: Path) -> None:
    own = copy.deepcopy(TEMPLATE)
    own["metadata"] = {"labels": {"team": "art"}, "annotations": {"a": "b"}}
    own["spec"]["template"]["metadata"] = {"labels": {"team": "art"}, "annotations": {"c": "d"}}
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(own))
    built = build_job(REQUEST, load_template(path), JobOptions())
    assert built["metadata"]["labels"]["team"] == built["spec"]["template"]["metadata"]["labels"]["team"]
    assert built["metadata"]["annotations"] == {"a": "b"}
    assert built["spec"]["template"]["metadata"]["annotations"]["c"] == "d"


@pytest.mark.parametrize(
    "text",
    ["", "7", "[]", "{}", "kind: Job", "spec: {template: {spec: {containers: [{name: x}]}}}", "a: [", None],
)
def test_a_template_that_is_no_training_job_is_refused_by_its_path(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidSettingsError, match=str(path)):
        load_template(path)
