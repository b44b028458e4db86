"""Runs a container of the dispatcher's image as a process of this machine, with what the cluster gives it.

That is: its arguments, its variables (Secrets and the namespace read from the API server), the Job template
of its ConfigMap, and a token of its ServiceAccount, so that RBAC decides as it does for the pod.
"""

import base64
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from kubernetes import client

from tests.packaging.chart import ROOT, Manifest
from tests.parts.cluster import Cluster
from tests.parts.kubeconfig import write_kubeconfig


class LocalContainer:
    """The only container of a pod's spec; folder takes its files."""

    def __init__(
        self, cluster: Cluster, pod: Manifest, folder: Path, overrides: Mapping[str, str] | None = None
    ) -> None:
        self._cluster = cluster
        [self._container] = pod["containers"]
        self.environment = {
            "PATH": os.environ["PATH"],
            **self._variables(),
            "KUBECONFIG": str(self._kubeconfig(pod["serviceAccountName"], folder)),
            **(overrides or {}),
        }
        for volume in pod.get("volumes", ()):
            if "configMap" in volume:
                self._write_config_map(volume["configMap"]["name"], folder)
                self.environment["JOB_TEMPLATE"] = str(folder / "job-template.yaml")

    def start(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end, with its own arguments unless others are given."""
        command = [*self._command[:3], *arguments] if arguments else self._command
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def _command(self) -> list[str]:
        return [sys.executable, "-m", "dispatcher", *self._container["args"]]

    def _variables(self) -> dict[str, str]:
        found = {}
        for entry in self._container["env"]:
            value = entry.get("value", "")
            if "valueFrom" in entry:
                value = self._referred(entry["valueFrom"])
            if value is not None:
                found[entry["name"]] = value
        return found

    def _referred(self, source: dict[str, Any]) -> str | None:
        """Return what a reference names; None where that is optional and not there."""
        if "fieldRef" in source:
            assert source["fieldRef"]["fieldPath"] == "metadata.namespace"
            return self._cluster.namespace
        reference = source["secretKeyRef"]
        try:
            secret = self._cluster.core.read_namespaced_secret(reference["name"], self._cluster.namespace)
            return base64.b64decode(secret.data[reference["key"]]).decode()
        except (client.ApiException, KeyError):
            if reference.get("optional"):
                return None
            raise

    def _kubeconfig(self, account: str, folder: Path) -> Path:
        request = {"spec": {"expirationSeconds": 3600, "audiences": None}}
        answer = self._cluster.core.create_namespaced_service_account_token(
            account, self._cluster.namespace, request
        )
        configuration = self._cluster.api.configuration
        path = folder / f"{account}.kubeconfig"
        write_kubeconfig(path, configuration.host, configuration.ssl_ca_cert, answer.status.token)
        return path

    def _write_config_map(self, name: str, folder: Path) -> None:
        config_map = self._cluster.core.read_namespaced_config_map(name, self._cluster.namespace)
        for file, text in config_map.data.items():
            (folder / file).write_text(text)
