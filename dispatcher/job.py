"""A TrainingRequest becomes a Job manifest: pure, deterministic, always a valid name."""

import copy
import hashlib
import json
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from job_contract import names
from job_contract.request import TrainingRequest, style_id_of
from job_contract.settings import InvalidSettingsError

Manifest = dict[str, Any]
"""A Kubernetes object as the API's JSON has it."""

SELECTOR: Final = f"{names.LABEL_NAME}={names.APP_NAME},{names.LABEL_COMPONENT}={names.COMPONENT}"
"""Selects every training Job and pod, reruns by hand included."""

QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
"""With it Kueue suspends a Job when it is created, and starts it when its LocalQueue has room."""

_LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True)
class JobOptions:
    """What the settings say of every Job; None leaves what the template has."""

    instance: str = names.APP_NAME
    image: str | None = None
    gpus: int | None = None
    deadline_seconds: int | None = None
    ttl_seconds: int | None = None
    models_claim: str | None = None
    priority_class: str | None = None
    kueue_queue: str | None = None
    """Empty where there is no Kueue: then the template's is taken away."""
    environment: dict[str, str] = field(default_factory=dict)


def load_template(path: Path | None) -> Manifest:
    """Read the Job template: the file, or the one that ships with the dispatcher.

    Raises:
        InvalidSettingsError: the file cannot be read, or holds no Job with a container named `trainer`.
    """
    source = path or resources.files("dispatcher").joinpath("job_template.yaml")
    try:
        template = yaml.safe_load(source.read_text())
        trainer_container(template)
    except (OSError, yaml.YAMLError) as error:
        raise InvalidSettingsError(f"JOB_TEMPLATE {path} cannot be read: {error}") from error
    except (KeyError, TypeError, StopIteration) as error:
        raise InvalidSettingsError(
            f"JOB_TEMPLATE {path} holds no Job with a container named {names.CONTAINER_NAME}"
        ) from error
    return dict(template)


def trainer_container(job: Manifest) -> Manifest:
    """Return the container named `trainer` of a Job; StopIteration when it has none."""
    containers = job["spec"]["template"]["spec"]["containers"]
    return next(container for container in containers if container["name"] == names.CONTAINER_NAME)


def job_name(style_id: int | str, identity: str) -> str:
    """Return `lora-{style}-{hash}`: the same for the same style and identity, and a valid DNS label.

    The style's part is for people: lower-cased, shortened and not unique. The hash makes it so.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", str(style_id).lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(f"{style_id}\0{identity}".encode()).hexdigest()[:12]
    return f"lora-{slug}-{digest}" if slug else f"lora-{digest}"


def style_label(style_id: int | str) -> str:
    """Return the style id as a label value; one that no label may hold becomes a hash."""
    text = str(style_id)
    if _LABEL_VALUE.fullmatch(text):
        return text
    return "x" + hashlib.sha256(text.encode()).hexdigest()[:16]


def build_job(request: TrainingRequest, template: Manifest, options: JobOptions) -> Manifest:
    """Fill the template for one request; the template itself is not changed."""
    job = copy.deepcopy(template)
    labels = {
        names.LABEL_NAME: names.APP_NAME,
        names.LABEL_COMPONENT: names.COMPONENT,
        names.LABEL_INSTANCE: options.instance,
        names.LABEL_MANAGED_BY: "lora-trainer-dispatcher",
        names.LABEL_STYLE_ID: style_label(request.style_id),
    }
    metadata = job.setdefault("metadata", {})
    metadata["name"] = job_name(request.style_id, request.task_id or request.to_json())
    metadata["finalizers"] = [names.FINALIZER]
    metadata["labels"] = {**(metadata.get("labels") or {}), **labels}
    if options.kueue_queue:
        metadata["labels"][QUEUE_LABEL] = options.kueue_queue
    elif options.kueue_queue is not None:
        metadata["labels"].pop(QUEUE_LABEL, None)

    template_metadata = job["spec"]["template"].setdefault("metadata", {})
    template_metadata["labels"] = {**(template_metadata.get("labels") or {}), **labels}
    template_metadata["annotations"] = {
        **(template_metadata.get("annotations") or {}),
        names.REQUEST_ANNOTATION: request.to_json(),
    }
    _apply(job, options)
    return job


def _apply(job: Manifest, options: JobOptions) -> None:
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    container = trainer_container(job)
    if options.image:
        container["image"] = options.image
    if options.gpus is not None:
        container.setdefault("resources", {}).setdefault("limits", {})["nvidia.com/gpu"] = options.gpus
    for kind, quantities in (container.get("resources") or {}).items():
        # YAML reads 1 as a number; a quantity is text.
        container["resources"][kind] = {name: str(quantity) for name, quantity in quantities.items()}
    if options.deadline_seconds is not None:
        spec["activeDeadlineSeconds"] = options.deadline_seconds
    if options.ttl_seconds is not None:
        spec["ttlSecondsAfterFinished"] = options.ttl_seconds
    if options.priority_class:
        pod["priorityClassName"] = options.priority_class
    if options.models_claim:
        for volume in pod.get("volumes", []):
            if volume["name"] == "models":
                volume["persistentVolumeClaim"] = {"claimName": options.models_claim}
    kept = [entry for entry in container.get("env", []) if entry["name"] not in options.environment]
    container["env"] = kept + [{"name": name, "value": value} for name, value in options.environment.items()]


def request_of(job: Manifest) -> TrainingRequest | None:
    """Return the request that a Job carries; None for a rerun by hand, which has a style id only.

    A text that is no request counts as none: the trainer says so, and the Job is relayed all the same.
    """
    annotations = job["spec"]["template"].get("metadata", {}).get("annotations") or {}
    try:
        return TrainingRequest.model_validate_json(annotations.get(names.REQUEST_ANNOTATION) or "")
    except ValidationError:
        return None


def style_of(job: Manifest) -> int | str | None:
    """Return the style that a Job trains: from its request, else from its STYLE_ID variable."""
    request = request_of(job)
    if request:
        return request.style_id
    environment = trainer_container(job).get("env") or []
    text = next((entry.get("value") for entry in environment if entry["name"] == "STYLE_ID"), None)
    if not text:
        return None
    return style_id_of(str(text))


def task_of(job: Manifest) -> str | None:
    """Return the identity of the message that a Job came from; None for a rerun by hand."""
    request = request_of(job)
    return request.task_id if request else None


def same_request(first: Manifest, second: Manifest) -> bool:
    """Whether two Jobs ask for the same training, so that creating one twice is harmless."""

    def request(job: Manifest) -> Any:
        annotations = job["spec"]["template"].get("metadata", {}).get("annotations") or {}
        return json.loads(annotations.get(names.REQUEST_ANNOTATION) or "null")

    return bool(request(first) == request(second))
