"""Jobs in a Kubernetes cluster, by the official client. No type of that client leaves this package."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import structlog
import urllib3
from kubernetes import client
from kubernetes.client import ApiException

from dispatcher.backends import Snapshot
from dispatcher.backends.kubernetes_client import describe, post, translated, unreachable
from dispatcher.backends.kubernetes_events import Events
from dispatcher.backends.kubernetes_slim import JOB_NAME_LABEL, slim_job, slim_pod
from dispatcher.backends.reflector import Reflector
from dispatcher.errors import BackendUnavailableError, JobConflictError, StaleJobError
from dispatcher.job import SELECTOR, Manifest, same_request
from job_contract import names

_TIMEOUT: Final = (5, 30)
_CREATE_TIMEOUT: Final = (2, 6)
"""Shorter than a shutdown may take; a create that was carried out later is found by its retry."""
_STOP_SECONDS: Final = 3.0
"""For so long the last Events are waited for; a list that is not answered is left alone."""


class KubernetesBackend:
    """The Backend of a cluster: watches Jobs and pods of one namespace and one instance."""

    def __init__(
        self,
        api: client.ApiClient,
        namespace: str,
        instance: str,
        silence_seconds: float = 100.0,
    ) -> None:
        self._api = api
        self._batch = client.BatchV1Api(api)
        self._core = client.CoreV1Api(api)
        self._events = Events(self._core, namespace)
        self._namespace = namespace
        self._pods_of: dict[str, set[str]] = {}
        self._lock = threading.Lock()
        self._report: Callable[[str], None] = lambda _name: None
        self._log = structlog.get_logger("kubernetes")
        self._selector = selector = f"{SELECTOR},{names.LABEL_INSTANCE}={instance}"
        self._jobs = Reflector(
            "Job",
            partial(self._batch.list_namespaced_job, namespace, label_selector=selector),
            slim_job,
            self._job_changed,
            silence_seconds,
        )
        self._pods = Reflector(
            "Pod",
            partial(self._core.list_namespaced_pod, namespace, label_selector=selector),
            slim_pod,
            self._pod_changed,
            silence_seconds,
        )

    def create(self, job: Manifest) -> bool:
        name = job["metadata"]["name"]
        try:
            post(self._api, f"/apis/batch/v1/namespaces/{self._namespace}/jobs", job, _CREATE_TIMEOUT)
        except ApiException as error:
            if error.status != 409:
                raise translated(error, f"the Job {name} could not be created") from error
        except urllib3.exceptions.HTTPError as error:
            raise unreachable(error) from error
        else:
            return True
        # 409 is also what a quota that was being changed answers: only a Job that is there counts.
        existing = self._read(name)
        if existing is None:
            raise BackendUnavailableError(f"the Job {name} could not be created: a conflict, and no such Job")
        if not same_request(existing, job):
            raise JobConflictError(
                f"task_id was used before for another request of this style, whose Job is {name}; "
                "give the new request a task_id of its own"
            )
        return False

    def snapshot(self, name: str) -> Snapshot | None:
        job = self._jobs.get(name)
        if job is None:
            return None
        with self._lock:
            pods = [pod for pod in map(self._pods.get, self._pods_of.get(name, ())) if pod]
        uid = job["metadata"]["uid"]
        return Snapshot(job, tuple(pod for pod in pods if pod["owner"] == uid))

    def pods_now(self, name: str) -> tuple[Manifest, ...]:
        job = self._jobs.get(name)
        try:
            response = self._core.list_namespaced_pod(
                self._namespace,
                label_selector=f"{JOB_NAME_LABEL}={name}",
                _preload_content=False,
                _request_timeout=_TIMEOUT,
            )
            pods = [slim_pod(pod) for pod in json.loads(response.data).get("items") or ()]
        except ApiException as error:
            raise translated(error, f"the pods of the Job {name} could not be read") from error
        except urllib3.exceptions.HTTPError as error:
            raise unreachable(error) from error
        return tuple(pod for pod in pods if job and pod["owner"] == job["metadata"]["uid"])

    def jobs_now(self) -> Iterator[Manifest]:
        token = None
        while token != "":
            try:
                response = self._batch.list_namespaced_job(
                    self._namespace,
                    label_selector=self._selector,
                    limit=200,
                    _continue=token,
                    _preload_content=False,
                    _request_timeout=_TIMEOUT,
                )
                page = json.loads(response.data)
                token = page["metadata"].get("continue") or ""
            except ApiException as error:
                raise translated(error, "the Jobs could not be listed") from error
            except urllib3.exceptions.HTTPError as error:
                raise unreachable(error) from error
            except (ValueError, KeyError, TypeError) as error:
                raise BackendUnavailableError("the Jobs could not be listed: no list was answered") from error
            yield from map(slim_job, page.get("items") or ())

    def names(self) -> list[str]:
        return self._jobs.names()

    def patch(self, name: str, change: dict[str, Any], resource_version: str | None = None) -> None:
        if resource_version:
            change = {
                **change,
                "metadata": {**change.get("metadata", {}), "resourceVersion": resource_version},
            }
        try:
            self._batch.patch_namespaced_job(
                name,
                self._namespace,
                change,
                _content_type="application/merge-patch+json",
                _preload_content=False,
                _request_timeout=_TIMEOUT,
            ).read()
        except ApiException as error:
            if error.status == 409:
                raise StaleJobError(f"the Job {name} has changed meanwhile") from error
            if error.status != 404:  # gone: nothing is left to write on
                raise translated(error, f"the Job {name} could not be changed") from error
        except urllib3.exceptions.HTTPError as error:
            raise unreachable(error) from error

    def stop_pods(self, name: str) -> None:
        try:
            self._core.delete_collection_namespaced_pod(
                self._namespace,
                label_selector=f"{JOB_NAME_LABEL}={name}",
                _preload_content=False,
                _request_timeout=_TIMEOUT,
            ).read()
        except ApiException as error:
            raise translated(error, f"the pods of the Job {name} could not be stopped") from error
        except urllib3.exceptions.HTTPError as error:
            raise unreachable(error) from error

    def log_tail(self, pod: str, lines: int) -> str:
        try:
            response = self._core.read_namespaced_pod_log(
                pod,
                self._namespace,
                container=names.CONTAINER_NAME,
                tail_lines=lines,
                limit_bytes=65536,
                _preload_content=False,
                _request_timeout=_TIMEOUT,
            )
            return str(response.data.decode(errors="replace"))
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            self._log.info("a pod's log could not be read", pod=pod, error=describe(error))
            return ""

    def holds(self, _model_path: str) -> bool:
        # The models volume is not mounted here. The trainer reads the file back before it says so.
        return True

    def events(self, about: str) -> tuple[Manifest, ...]:
        return self._events.about(about)

    def record_event(self, job: Manifest, reason: str, message: str, *, warning: bool = False) -> None:
        self._events.record(job, reason, message, warning=warning)

    def load(self) -> None:
        try:
            self._jobs.load()
            self._pods.load()
        except ApiException as error:
            raise translated(error, "the Jobs could not be listed") from error
        except urllib3.exceptions.HTTPError as error:
            raise unreachable(error) from error

    def run(self, changed: Callable[[str], None], stop: threading.Event) -> None:
        self._report = changed
        threads = [
            threading.Thread(target=run, args=arguments, name=name, daemon=True)
            for name, run, arguments in (
                ("watch-jobs", self._jobs.run, (stop,)),
                ("watch-pods", self._pods.run, (stop,)),
                ("events", self._events.run, ()),
            )
        ]
        for thread in threads:
            thread.start()
        stop.wait()
        self._jobs.close()
        self._pods.close()
        self._events.close()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def synced(self) -> bool:
        return self._jobs.synced.is_set() and self._pods.synced.is_set()

    def silent_for(self) -> float:
        return max(self._jobs.silent_for, self._pods.silent_for)

    def _job_changed(self, job: Manifest) -> None:
        self._report(job["metadata"]["name"])

    def _pod_changed(self, pod: Manifest) -> None:
        job, name = pod["job"], pod["metadata"]["name"]
        with self._lock:
            pods = self._pods_of.setdefault(job, set())
            if self._pods.get(name) is not None:
                pods.add(name)
            else:
                pods.discard(name)
                if not pods:
                    del self._pods_of[job]
        self._report(job)

    def _read(self, name: str) -> Manifest | None:
        try:
            response = self._batch.read_namespaced_job(
                name, self._namespace, _preload_content=False, _request_timeout=_TIMEOUT
            )
            return dict(json.loads(response.data))
        except ApiException as error:
            if error.status == 404:
                return None
            raise translated(error, f"the Job {name} could not be read") from error
        except urllib3.exceptions.HTTPError as error:
            raise unreachable(error) from error
