"""Jobs that an API server refuses, each for one reason, and Jobs that it takes and completes."""

import copy
from typing import Any, Final

from tests.parts_tests.jobs import job


def changed(**paths: Any) -> dict[str, Any]:
    """Return a good Job with one field of it changed; `a__b__0__c` is the path, None removes."""
    value = copy.deepcopy(job("a"))
    for path, item in paths.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("__")]
        target: Any = value
        for part in parents:
            target = target.setdefault(part, {}) if isinstance(target, dict) else target[part]
        if item is None:
            del target[last]
        else:
            target[last] = item
    return value


def still(name: str) -> dict[str, Any]:
    """Return a Job that no controller touches, so that only what is asked changes it."""
    return job(name, managedBy="tests.example.com/nobody", suspend=True)


CONTAINER: Final = "spec__template__spec__containers__0__"
RULE: Final = "spec__podFailurePolicy__rules__0__onExitCodes__"

REFUSED_JOBS: Final[dict[str, Any]] = {
    "no name": changed(metadata__name=None),
    "bad name": changed(metadata__name="Not_Valid"),
    "name longer than a label": changed(metadata__name="a" * 64),
    "name longer than a name": changed(metadata__name="a" * 254),
    "bad label": changed(metadata__labels={"app": "not valid"}),
    "bad label key": changed(metadata__labels={"a b": "c"}),
    "long label": changed(metadata__labels={"app": "a" * 64}),
    "bad annotation key": changed(metadata__annotations={"a b": "c"}),
    "annotations too long": changed(metadata__annotations={"a": "b" * 262144}),
    "finalizer without a domain": changed(metadata__finalizers=["relay"]),
    "bad finalizer": changed(metadata__finalizers=["a b/c"]),
    "another namespace": changed(metadata__namespace="elsewhere"),
    "resource version": changed(metadata__resourceVersion="5"),
    "another kind": changed(kind="CronJob"),
    "another API version": changed(apiVersion="v1"),
    "no kind": changed(kind=None, apiVersion=None),
    "no spec": changed(spec=None),
    "no template": changed(spec__template=None),
    "text for a number": changed(spec__backoffLimit="three"),
    "number for a text": changed(metadata__name=5),
    "list for an object": changed(spec__template=[]),
    "negative backoffLimit": changed(spec__backoffLimit=-1),
    "negative deadline": changed(spec__activeDeadlineSeconds=-1),
    "negative TTL": changed(spec__ttlSecondsAfterFinished=-1),
    "restartPolicy Always": changed(spec__template__spec__restartPolicy="Always"),
    "restartPolicy OnFailure with a policy": changed(spec__template__spec__restartPolicy="OnFailure"),
    "no restartPolicy": changed(spec__template__spec__restartPolicy=None),
    "unknown restartPolicy": changed(spec__template__spec__restartPolicy="Sometimes"),
    "no containers": changed(spec__template__spec__containers=[]),
    "no image": changed(**{CONTAINER + "image": None}),
    "no container name": changed(**{CONTAINER + "name": None}),
    "bad container name": changed(**{CONTAINER + "name": "Not_Valid"}),
    "unknown pull policy": changed(**{CONTAINER + "imagePullPolicy": "Often"}),
    "unknown volume": changed(**{CONTAINER + "volumeMounts": [{"name": "x", "mountPath": "/x"}]}),
    "mount without a path": changed(
        **{
            CONTAINER + "volumeMounts": [{"name": "x"}],
            "spec__template__spec__volumes": [{"name": "x", "emptyDir": {}}],
        }
    ),
    "volume twice": changed(spec__template__spec__volumes=[{"name": "x", "emptyDir": {}}] * 2),
    "volume without a source": changed(spec__template__spec__volumes=[{"name": "x"}]),
    "bad volume name": changed(spec__template__spec__volumes=[{"name": "X", "emptyDir": {}}]),
    "variable without a name": changed(**{CONTAINER + "env": [{"value": "x"}]}),
    "variable without a value": changed(**{CONTAINER + "env": [{"name": "X", "value": 5}]}),
    "bad quantity": changed(**{CONTAINER + "resources": {"limits": {"cpu": "many"}}}),
    "GPU request without limit": changed(**{CONTAINER + "resources": {"requests": {"nvidia.com/gpu": "1"}}}),
    "GPU request below limit": changed(
        **{CONTAINER + "resources": {"requests": {"nvidia.com/gpu": "1"}, "limits": {"nvidia.com/gpu": "2"}}}
    ),
    "half a GPU": changed(**{CONTAINER + "resources": {"limits": {"nvidia.com/gpu": "500m"}}}),
    "request above limit": changed(
        **{CONTAINER + "resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}}
    ),
    "policy for another container": changed(**{RULE + "containerName": "other"}),
    "policy out of order": changed(**{RULE + "values": [65, 64]}),
    "policy with exit code 0": changed(**{RULE + "values": [0, 64]}),
    "policy with a code twice": changed(**{RULE + "values": [64, 64]}),
    "policy without codes": changed(**{RULE + "values": []}),
    "policy with an unknown action": changed(spec__podFailurePolicy__rules__0__action="Panic"),
    "policy without an action": changed(spec__podFailurePolicy__rules__0__action=None),
    "policy with an unknown operator": changed(**{RULE + "operator": "Is"}),
    "policy with both kinds": changed(
        spec__podFailurePolicy__rules__0__onPodConditions=[{"type": "DisruptionTarget", "status": "True"}]
    ),
    "policy rule of neither kind": changed(spec__podFailurePolicy__rules__0__onExitCodes=None),
    "bad condition status": changed(
        spec__podFailurePolicy__rules__1__onPodConditions=[{"type": "DisruptionTarget", "status": "Yes"}]
    ),
    "selector of one's own": changed(spec__selector={"matchLabels": {"a": "b"}}),
    "unknown completionMode": changed(spec__completionMode="Sorted"),
    "several": changed(
        spec__backoffLimit=-1, spec__template__spec__restartPolicy="Always", **{CONTAINER + "image": None}
    ),
}

TAKEN_JOBS: Final[dict[str, Any]] = {
    "usual": job("a"),
    "unknown fields": changed(spec__colour="red", **{CONTAINER + "size": 5}),
    "status": changed(status={"succeeded": 1}),
    "nulls": {**job("a"), "status": None},
    "no backoffLimit": changed(spec__backoffLimit=None),
    "no policy": changed(spec__podFailurePolicy=None),
    "suspended": changed(spec__suspend=True),
    "condition without a status": changed(
        spec__podFailurePolicy__rules__1__onPodConditions=[{"type": "DisruptionTarget"}]
    ),
    "quantities": changed(
        **{
            CONTAINER + "resources": {
                "limits": {"nvidia.com/gpu": 1, "memory": "1024Mi", "cpu": "0.5"},
                "requests": {"cpu": 0.25},
            }
        }
    ),
    "volumes": changed(
        **{
            "spec__template__spec__volumes": [
                {"name": "a", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
                {"name": "b", "persistentVolumeClaim": {"claimName": "x"}},
                {"name": "d", "configMap": {"name": "x"}},
                {"name": "e", "secret": {"secretName": "x"}},
                {
                    "name": "c",
                    "downwardAPI": {
                        "items": [
                            {
                                "path": "r",
                                "fieldRef": {"fieldPath": "metadata.annotations['lora-trainer.io/request']"},
                            }
                        ]
                    },
                },
            ],
            CONTAINER + "volumeMounts": [{"name": "a", "mountPath": "/a"}, {"name": "c", "mountPath": "/c"}],
            CONTAINER + "env": [
                {"name": "A", "value": ""},
                {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "C", "valueFrom": {"secretKeyRef": {"name": "x", "key": "y"}}},
            ],
            CONTAINER + "envFrom": [{"secretRef": {"name": "x", "optional": True}}],
        }
    ),
    "service account and priority": changed(
        spec__template__spec__serviceAccountName="x",
        spec__template__spec__tolerations=[{"operator": "Exists"}],
    ),
    "image without a tag": changed(**{CONTAINER + "image": "trainer"}),
    "image with a digest": changed(**{CONTAINER + "image": "host:5000/trainer@sha256:" + "0" * 64}),
    "name that fits a label": changed(metadata__name="a" * 63),
    "owner": changed(
        metadata__ownerReferences=[
            {"apiVersion": "batch/v1", "kind": "CronJob", "name": "x", "uid": "e7b8", "controller": True}
        ]
    ),
}
