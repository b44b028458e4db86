"""A real Kubernetes control plane without nodes: etcd, kube-apiserver and kube-controller-manager.

    with ControlPlane(folder, assets) as plane:
        plane.client()               a kubernetes.client.ApiClient of the administrator
        plane.kubeconfig             the administrator's, for kubectl and Helm

`assets` is a folder with the three programs, as setup-envtest's KUBEBUILDER_ASSETS. RBAC, ServiceAccount
tokens and the default admission (Pod Security, quotas) are on. Nothing runs pods: see node_stand_in.py.
Everything listens on loopback only and is gone with this process, even by SIGKILL.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import urllib3
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kubernetes import client, config

from tests.parts.kubeconfig import write_kubeconfig
from tests.parts.ports import free_port

PROGRAMS: Final = ("etcd", "kube-apiserver", "kube-controller-manager")

# What Jobs and the chart meet. Not there: whatever would act on nodes, which are pretended ones.
_CONTROLLERS: Final = (
    "cronjob-controller",
    "deployment-controller",
    "disruption-controller",
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "persistentvolumeclaim-protection-controller",
    "replicaset-controller",
    "resourcequota-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "ttl-after-finished-controller",
)

# Ends the process group when this process is gone: its end of the pipe then closes.
_GUARD: Final = """
exec 3<&0 </dev/null
(cat <&3 >/dev/null; kill -KILL 0) &
exec 3<&-
exec "$@"
"""


class ControlPlaneError(Exception):
    """A program is missing, has ended or does not answer; the text holds the end of its log."""


class ControlPlane:
    """folder (made if missing) holds data, keys and logs; its contents are of no use afterwards."""

    def __init__(self, folder: Path, assets: Path) -> None:
        self.folder = folder.resolve()
        self.kubeconfig = self.folder / "kubeconfig"
        self._assets = assets
        self._etcd_url = f"http://127.0.0.1:{free_port()}"
        self._port = free_port()
        self._url = f"https://127.0.0.1:{self._port}"
        self._admin_token, self._manager_token = secrets.token_hex(), secrets.token_hex()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self, timeout: float = 90) -> None:
        """Return when the API server is ready and namespaces get their ServiceAccounts.

        Raises:
            ControlPlaneError
        """
        missing = [name for name in PROGRAMS if not (self._assets / name).is_file()]
        if missing:
            raise ControlPlaneError(
                f"{', '.join(missing)} not found in {self._assets}: KUBEBUILDER_ASSETS must name a folder"
                f" with {', '.join(PROGRAMS)}"
            )
        try:
            self._start(time.monotonic() + timeout)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill everything: nothing of it is used again."""
        for process in reversed(self._processes.values()):
            # The guard is in the group until it is killed here, so the group's number is still ours.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self._processes.clear()

    def client(self) -> Any:
        """Return a kubernetes.client.ApiClient of the administrator."""
        return config.new_client_from_config(str(self.kubeconfig))

    @property
    def _serving_certificate(self) -> Path:
        """The API server makes it, with its CA behind it."""
        return self.folder / "apiserver.crt"

    def _start(self, deadline: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_secrets()
        self._run("etcd", self._etcd_arguments())
        self._wait("etcd", lambda: self._answers(f"{self._etcd_url}/health"), deadline)
        self._run("kube-apiserver", self._api_server_arguments())
        self._wait("kube-apiserver", self._serving_certificate.exists, deadline)
        self._write_kubeconfig(self.kubeconfig, self._admin_token)
        self._wait("kube-apiserver", lambda: self._answers(f"{self._url}/readyz"), deadline)
        self._run("kube-controller-manager", self._manager_arguments())
        self._wait("kube-controller-manager", self._has_service_account, deadline)

    def _write_secrets(self) -> None:
        """The key that signs ServiceAccount tokens, and the tokens of administrator and controllers."""
        key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        (self.folder / "service-accounts.key").write_bytes(key)
        (self.folder / "tokens.csv").write_text(
            f"{self._admin_token},admin,admin,system:masters\n"
            f"{self._manager_token},system:kube-controller-manager,manager\n"
        )

    def _etcd_arguments(self) -> dict[str, str]:
        peer = f"http://127.0.0.1:{free_port()}"
        return {
            "name": "tests",
            "data-dir": str(self.folder / "etcd"),
            "listen-client-urls": self._etcd_url,
            "advertise-client-urls": self._etcd_url,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"tests={peer}",
            "unsafe-no-fsync": "true",
            "log-level": "warn",
        }

    def _api_server_arguments(self) -> dict[str, str]:
        key = str(self.folder / "service-accounts.key")
        return {
            "etcd-servers": self._etcd_url,
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "secure-port": str(self._port),
            "cert-dir": str(self.folder),
            "endpoint-reconciler-type": "none",  # an Endpoints object may not hold a loopback address
            "service-cluster-ip-range": "10.0.0.0/24",
            "authorization-mode": "RBAC",
            "token-auth-file": str(self.folder / "tokens.csv"),
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": key,
            "service-account-signing-key-file": key,
        }

    def _manager_arguments(self) -> dict[str, str]:
        kubeconfig = self.folder / "manager.kubeconfig"
        self._write_kubeconfig(kubeconfig, self._manager_token)
        return {
            "kubeconfig": str(kubeconfig),
            "controllers": ",".join(_CONTROLLERS),
            "leader-elect": "false",
            "secure-port": "0",
            "use-service-account-credentials": "true",
            "service-account-private-key-file": str(self.folder / "service-accounts.key"),
            "root-ca-file": str(self._serving_certificate),
        }

    def _write_kubeconfig(self, path: Path, token: str) -> None:
        write_kubeconfig(path, self._url, str(self._serving_certificate), token)

    def _run(self, program: str, arguments: dict[str, str]) -> None:
        flags = [f"--{name}={value}" for name, value in arguments.items()]
        with self._log(program).open("wb") as log:
            self._processes[program] = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "guard", str(self._assets / program), *flags],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
            )

    def _wait(self, program: str, ready: Callable[[], bool], deadline: float) -> None:
        while not ready():
            process = self._processes[program]
            if process.poll() is not None:
                raise ControlPlaneError(
                    f"{program} has ended with code {process.returncode}:\n{self._end_of_log(program)}"
                )
            if time.monotonic() > deadline:
                raise ControlPlaneError(f"{program} does not get ready:\n{self._end_of_log(program)}")
            time.sleep(0.1)

    def _answers(self, url: str) -> bool:
        headers = {"Authorization": f"Bearer {self._admin_token}"}
        with urllib3.PoolManager(
            ca_certs=str(self._serving_certificate) if url.startswith("https:") else None, retries=False
        ) as http:
            try:
                return http.request("GET", url, headers=headers, timeout=5).status == 200
            except urllib3.exceptions.HTTPError:
                return False

    def _has_service_account(self) -> bool:
        """Say whether the controllers work: they give each namespace a ServiceAccount named default."""
        try:
            client.CoreV1Api(self.client()).read_namespaced_service_account("default", "default")
        except client.ApiException as error:
            if error.status == 404:
                return False
            raise
        return True

    def _log(self, program: str) -> Path:
        return self.folder / f"{program}.log"

    def _end_of_log(self, program: str) -> str:
        return self._log(program).read_text(errors="replace")[-3000:]
