"""Renders the chart with Helm v4, and finds things in what comes out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import helm_python
import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
CHART: Final = ROOT / "helm" / "lora-trainer"
NAMESPACE: Final = "ml"

Manifest = dict[str, Any]

LEAST: Final[dict[str, Any]] = {
    "amqp": {"existingSecret": "broker"},
    "backend": {"url": "https://backend.example.com"},
}
"""All that an install must set."""

EVERYTHING: Final[dict[str, Any]] = {
    "imagePullSecrets": ["registry"],
    "rabbitmq": {"dev": True},
    "backend": {
        "url": "http://backend:8000",
        "token": "t0ken",
        "webhookSecret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "allowedHosts": ["*.example.com", "10.0.0.0/8"],
    },
    "s3": {
        "bucket": "models",
        "endpoint": "http://s3:9000",
        "region": "eu-central-1",
        "accessKeyId": "key",
        "secretAccessKey": "secret",
    },
    "models": {"accessModes": ["ReadWriteMany"], "storageClassName": "nfs", "keep": False},
    "dispatcher": {
        "replicas": 2,
        "podDisruptionBudget": {"enabled": True},
        "maxActiveJobs": 1000000,
        "extraEnv": {"WORKERS": 8, "POD": {"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}},
        "extraVolumes": [{"name": "backend-ca", "configMap": {"name": "backend-ca"}}],
        "extraVolumeMounts": [{"name": "backend-ca", "mountPath": "/etc/backend-ca", "readOnly": True}],
        "podLabels": {"team": "ml"},
        "podAnnotations": {"note": "x"},
        "nodeSelector": {"cpu": "yes"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "priorityClassName": "high",
    },
    "trainer": {
        "image": {"repository": "registry.example.com/lora-trainer", "digest": "sha256:" + "0" * 64},
        "gpus": 2,
        "runtimeClassName": "nvidia",
        "priorityClassName": "low",
        "nodeSelector": {"gpu": "yes"},
        "affinity": {"nodeAffinity": {}},
        "ttlSecondsAfterFinished": 1000000,
        "extraEnv": {"LORA_RANK": 8},
        "extraEnvFrom": [{"secretRef": {"name": "more"}}],
        "extraVolumes": [{"name": "data", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "data", "mountPath": "/data"}],
        "labels": {"team": "ml"},
        "annotations": {"note": "x"},
        "kueueQueue": "gpus",
        "serviceAccountName": "trainer",
    },
    "networkPolicy": {
        "dispatcher": {
            "metricsFrom": [{"namespaceSelector": {}}],
            "egress": [{"ports": [{"port": 5672, "protocol": "TCP"}]}],
        },
        "trainer": {"egress": [{"ports": [{"port": 443, "protocol": "TCP"}]}]},
    },
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True},
    },
    "extraObjects": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-more"}}
    ],
}

MATRIX: Final[dict[str, dict[str, Any]]] = {
    "least": LEAST,
    "everything": EVERYTHING,
    "existing": {
        **LEAST,
        "backend": {"url": "https://b.example.com", "existingSecret": "backend"},
        "s3": {"existingSecret": "s3"},
        "models": {"existingClaim": "models"},
        "baseModel": {"cache": {"existingClaim": "cache"}, "offline": True},
        "serviceAccount": {"create": False, "name": "mine"},
        "rbac": {"create": False},
        "networkPolicy": {"enabled": False},
        "rerun": {"enabled": False},
        "uninstall": {"releaseJobs": False},
        "metrics": {"podMonitor": {"enabled": True}},
    },
    "cpu": {**LEAST, "trainer": {"gpus": 0, "tolerations": []}, "baseModel": {"cache": {"enabled": False}}},
    "demo": yaml.safe_load((ROOT / "helm" / "demo" / "values.yaml").read_text()),
    "folder": {**LEAST, "baseModel": {"path": "/base/sd15"}},
    "openshift": {
        **LEAST,
        "dispatcher": {"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}},
        "trainer": {"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}},
    },
}
"""Values that between them reach every branch of the templates, but the image volume's (1.33)."""


def render_files(values: dict[str, Any], name: str = "lora-trainer") -> dict[str, str]:
    """Return what each template gives, NOTES.txt among them.

    Raises:
        helm_python.HelmError: the values are refused.
    """
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(chart.merge_values(values))
        return {
            Path(path).name: text
            for path, text in chart.render(values, name=name, namespace=NAMESPACE).items()
        }


def render(values: dict[str, Any], name: str = "lora-trainer") -> list[Manifest]:
    """Return every object, hooks included."""
    files = render_files(values, name)
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    found = [item for item in manifests if item["kind"] == kind and item["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} {kind} named {name}"
    return found[0]


def job_template(manifests: list[Manifest], release: str = "lora-trainer") -> Manifest:
    """Return the Job that the dispatcher fills in."""
    text = find(manifests, "ConfigMap", f"{release}-job-template")["data"]["job-template.yaml"]
    job: Manifest = yaml.safe_load(text)
    return job


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Yield name and spec of every pod that can come of these objects, trainings included."""
    for manifest in [*manifests, job_template(manifests)]:
        name = f"{manifest['kind']} {manifest['metadata'].get('name', 'template')}"
        match manifest["kind"]:
            case "Pod":
                yield name, manifest["spec"]
            case "Deployment" | "Job":
                yield name, manifest["spec"]["template"]["spec"]
            case "CronJob":
                yield name, manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]
