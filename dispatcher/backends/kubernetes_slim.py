"""What is kept in memory of a Job and of a pod: ten thousand of each fit in little."""

from typing import Final

from dispatcher.job import Manifest, trainer_container
from job_contract import names

JOB_NAME_LABEL: Final = "batch.kubernetes.io/job-name"
_JOB_UID_LABEL: Final = "batch.kubernetes.io/controller-uid"


def slim_job(job: Manifest) -> Manifest:
    """Keep what diagnosis, relay and style lanes read; a spec is most of a Job's bytes."""
    metadata, spec = job["metadata"], job["spec"]
    template = spec["template"].get("metadata") or {}
    try:
        environment = [
            entry for entry in trainer_container(job).get("env") or () if entry["name"] == "STYLE_ID"
        ]
    except StopIteration:
        environment = []
    request = (template.get("annotations") or {}).get(names.REQUEST_ANNOTATION)
    return {
        "metadata": _slim_metadata(metadata),
        "spec": {
            "suspend": spec.get("suspend"),
            "activeDeadlineSeconds": spec.get("activeDeadlineSeconds"),
            "template": {
                "metadata": {"annotations": {names.REQUEST_ANNOTATION: request} if request else {}},
                "spec": {"containers": [{"name": names.CONTAINER_NAME, "env": environment}]},
            },
        },
        "status": job.get("status") or {},
    }


def slim_pod(pod: Manifest) -> Manifest:
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels = metadata.get("labels") or {}
    return {
        "metadata": _slim_metadata(metadata),
        "job": labels.get(JOB_NAME_LABEL, ""),
        # Not the owner reference: deleting a Job with --cascade=orphan takes that away.
        "owner": labels.get(_JOB_UID_LABEL),
        "status": {
            key: status[key]
            for key in ("phase", "reason", "message", "conditions", "containerStatuses", "startTime")
            if key in status
        },
    }


def _slim_metadata(metadata: Manifest) -> Manifest:
    dropped = ("managedFields", "labels", "ownerReferences", "generateName", "selfLink")
    return {key: value for key, value in metadata.items() if key not in dropped}
