"""Plays the Job controller, the scheduler and the kubelet of an ApiServer.

Step by step, as a test says; Jobs and pods are named, in the server's namespace:
    with JobController(server) as controller:
        pod = controller.start_pod("job")                a pod that runs; returns its name
        pod = controller.create_pod("job")               a pod without a node: Pending
        controller.schedule(pod), controller.run(pod)    ContainerCreating, then Running
        controller.wait_with(pod, "ImagePullBackOff", 'Back-off pulling image "x"')     with its Event
        controller.unschedulable(pod, "0/1 nodes are available: ...")
        controller.event(pod, "FailedMount", 'MountVolume.SetUp failed for volume ...')
        controller.finish("job", 0, message)             the container ends with exit code and termination
                                                         message (a pod is started if none runs), then sync
        controller.oom("job"), controller.evict("job", message)
        controller.preempt("job", exit_code=75)          DisruptionTarget, SIGTERM, this exit code
        controller.exceed_deadline("job")
        controller.sync("job")                           one look of the Job controller: counts pods that
                                                         ended, podFailurePolicy, backoffLimit, suspend.
                                                         It makes no pod: a retry is the next start_pod
        controller.expire_ttl("job")                     deletes a finished Job as the TTL controller does
        controller.job("job"), controller.pod(pod), controller.pods("job")    what is there; not to be changed
        controller.end_deleted_pods(exit_code=75)        the kubelet's part for pods with a deletionTimestamp

By itself, in a thread, for all Jobs: pods, retries, deadline, suspend, TTL, deletion (job_automation.py):
        controller.run_all()                             every training succeeds at once
        controller.run_all(lambda job, attempt: Run(70, message="{...}", seconds=0.5))
        controller.run_jobs()                            without the pods, which a NodeStandIn runs
        controller.stop()

A whole cluster in the foreground, until SIGINT or SIGTERM, in which every training succeeds:
`python -m tests.parts.job_controller --kubeconfig FILE --seconds 0.1`; it prints its URL when it is ready.
"""

import argparse
import contextlib
import copy
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from tests.parts import job_states, pod_states
from tests.parts.api_server import ApiServer
from tests.parts.job_automation import Automation, Decide, Run, succeed
from tests.parts.job_states import TERMINAL, Verdict
from tests.parts.kube_defaults import add_requests
from tests.parts.kube_schema import RESOURCES
from tests.parts.kube_store import JOB_TRACKING, Object, now, with_metadata
from tests.parts.kubelet import PODS, Kubelet

__all__ = ["JobController", "Run", "succeed"]

_JOBS: Final = next(resource for resource in RESOURCES if resource.plural == "jobs")
_SIGTERM_EXIT: Final = 143
_SIGKILL_EXIT: Final = 137


class JobController(Kubelet):
    """Raises LookupError where there is no such Job or pod."""

    def __init__(self, server: ApiServer) -> None:
        super().__init__(server)
        self._automation: Automation | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    # By itself

    def run_all(self, decide: Decide = succeed) -> Automation:
        """Run every Job, those to come too, until stop(); decide says how each of its pods ends."""
        self.stop()
        self._automation = Automation(self, decide)
        return self._automation

    def run_jobs(self) -> Automation:
        """Make and count the pods of every Job until stop(); a NodeStandIn runs them."""
        self.stop()
        self._automation = Automation(self, None)
        return self._automation

    def stop(self) -> None:
        automation, self._automation = self._automation, None
        if automation is not None:
            automation.stop()

    # The life of a pod

    def create_pod(self, job_name: str) -> str:
        """Make a Job's next pod; it has no node yet. Returns its name."""
        job = self.job(job_name)
        template = job["spec"]["template"]
        name = f"{job_name}-{secrets.token_hex(3)[:5]}"
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job_name, "uid": job["metadata"]["uid"]}
        metadata = {
            **template.get("metadata", {}),
            "name": name,
            "generateName": f"{job_name}-",
            "namespace": self.namespace,
            "finalizers": [JOB_TRACKING],
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
        }
        pod = {
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": metadata,
            "spec": copy.deepcopy(template["spec"]),
            "status": {"phase": "Pending", "qosClass": "BestEffort"},
        }
        add_requests(pod["spec"])
        self.store.create(PODS, (self.namespace, name), pod)
        self.record(job, "SuccessfulCreate", f"Created pod: {name}", "Normal")
        self.sync(job_name)
        return name

    def run(self, pod_name: str) -> None:
        """Start a pod's container; its Job counts it as ready."""
        super().run(pod_name)
        self.sync(self.pod(pod_name)["metadata"]["labels"]["job-name"])

    def start_pod(self, job_name: str) -> str:
        """Make a Job's next pod, give it a node and start its container; returns its name."""
        name = self.create_pod(job_name)
        self.schedule(name)
        self.run(name)
        return name

    def finish(self, job_name: str, exit_code: int = 0, message: str = "", reason: str = "") -> str:
        """End the Job's running pod (one is started where none runs) and sync; returns the pod's name."""
        pod_name = self._running_pod(job_name)
        self.exit(pod_name, exit_code, message, reason)
        self.sync(job_name)
        return pod_name

    def oom(self, job_name: str) -> str:
        return self.finish(job_name, _SIGKILL_EXIT, reason="OOMKilled")

    def evict(self, job_name: str, message: str = "The node was low on resource: memory.") -> str:
        """End the Job's pod as a kubelet under pressure does, and sync."""
        pod_name = self._running_pod(job_name)
        self.change_pod(pod_name, lambda pod: pod_states.evicted(pod, message))
        self.event(pod_name, "Evicted", message)
        self.sync(job_name)
        return pod_name

    def preempt(self, job_name: str, exit_code: int = _SIGTERM_EXIT, message: str = "") -> str:
        """End the Job's pod for one of a higher priority: marked, deleted, its container ended, synced."""
        pod_name = self._running_pod(job_name)
        why = "default-scheduler: preempting to accommodate a higher priority pod"
        self.change_pod(pod_name, lambda pod: pod_states.disrupted(pod, "PreemptionByScheduler", why))
        self.store.delete(PODS, (self.namespace, pod_name), "Background")
        self.end_deleted_pods(exit_code, message)
        return pod_name

    def end_deleted_pods(self, exit_code: int = _SIGTERM_EXIT, message: str = "") -> None:
        """End the pods that have a deletionTimestamp, as the kubelet does in their grace period."""
        for stored in self.store.all("pods", self.namespace):
            if "deletionTimestamp" in stored.value["metadata"]:
                self.end_deleted_pod(stored.value, exit_code, message)

    def end_deleted_pod(self, pod: Object, exit_code: int = _SIGTERM_EXIT, message: str = "") -> None:
        name, job_name = pod["metadata"]["name"], pod["metadata"].get("labels", {}).get("job-name", "")
        if pod_states.is_running(pod):
            self.exit(name, exit_code, message)
        elif not pod_states.is_finished(pod):
            self.exit(name, _SIGKILL_EXIT, reason="ContainerStatusUnknown")  # it never ran
        # The Job controller lets go of it, if it is there still, and the kubelet deletes it for good.
        if self.store.get("jobs", (self.namespace, job_name)):
            self.sync(job_name)
        if self.store.get("pods", (self.namespace, name)):
            self.store.delete(PODS, (self.namespace, name), "Background", grace_seconds=0)

    # The Job controller

    def sync(self, job_name: str) -> None:
        """Look at a Job once: count, judge, write its conditions; the final one once no pod is left."""
        with self.store.changed:
            job = self.job(job_name)
            if job_states.is_over(job):
                return
            suspended = self._follow_suspend(job)
            job, pods = self.job(job_name), self.pods(job_name)
            counted, verdict = job_states.count(job, pods)
            if not suspended and not counted["status"].get("startTime"):
                counted["status"]["startTime"] = now()
            self._change_job(job_name, lambda old: {**old, "status": counted["status"]})
            for pod in pods:
                if pod_states.is_finished(pod):
                    self._release(pod)
            if verdict is not None:
                self._conclude(job_name, verdict)

    def exceed_deadline(self, job_name: str) -> None:
        """Fail a Job for its activeDeadlineSeconds; its pods get SIGTERM and end."""
        self._conclude(job_name, job_states.DEADLINE)
        self.end_deleted_pods()
        self.sync(job_name)

    def expire_ttl(self, job_name: str) -> None:
        """Delete a finished Job as the TTL controller does: in the foreground; finalizers hold it."""
        self.store.delete(_JOBS, (self.namespace, job_name), "Foreground")

    def _conclude(self, job_name: str, verdict: Verdict) -> None:
        """Write the verdict and delete the pods that run; once they are gone, the final condition."""
        if job_states.verdict(self.job(job_name)) is None:
            self._add_condition(job_name, verdict.type, verdict)
        self._delete_active_pods(job_name)
        if any(not pod_states.is_finished(pod) for pod in self.pods(job_name)):
            return
        succeeded = verdict.type == "SuccessCriteriaMet"
        self._add_condition(job_name, TERMINAL[verdict.type], verdict)
        reason, message = ("Completed", "Job completed") if succeeded else (verdict.reason, verdict.message)
        self.record(self.job(job_name), reason, message, "Normal" if succeeded else "Warning")

    def _add_condition(self, job_name: str, kind: str, verdict: Verdict) -> None:
        def change(job: Object) -> Object:
            at = now()
            job = job_states.with_condition(job, kind, "True", verdict.reason, verdict.message, at)
            if kind in TERMINAL.values():
                job["status"] |= {"ready": 0, "terminating": 0}
                job["status"].pop("active", None)
            if kind == "Complete":
                job["status"]["completionTime"] = at
            return job

        self._change_job(job_name, change)

    def _follow_suspend(self, job: Object) -> bool:
        """Follow spec.suspend: stop the pods of a Job that it stops, start the clock of one it lets go."""
        name, was = job["metadata"]["name"], job_states.condition(job, "Suspended") is not None
        suspend = bool(job["spec"]["suspend"])
        if suspend:
            self._delete_active_pods(name)
        if suspend != was:
            reason, message = ("JobSuspended", "Job suspended") if suspend else ("JobResumed", "Job resumed")

            def change(old: Object) -> Object:
                new = job_states.with_condition(old, "Suspended", str(suspend), reason, message, now())
                # The clock of activeDeadlineSeconds starts anew when the Job is let go.
                status = {field: value for field, value in new["status"].items() if field != "startTime"}
                return {**new, "status": status}

            self._change_job(name, change)
            self.record(job, "Suspended" if suspend else "Resumed", message, "Normal")
        return suspend

    def _delete_active_pods(self, job_name: str) -> None:
        for pod in self.pods(job_name):
            if not pod_states.is_finished(pod) and "deletionTimestamp" not in pod["metadata"]:
                name = pod["metadata"]["name"]
                self.store.delete(PODS, (self.namespace, name), "Background")
                self.record(self.job(job_name), "SuccessfulDelete", f"Deleted pod: {name}", "Normal")

    def _release(self, pod: Object) -> None:
        name, finalizers = pod["metadata"]["name"], pod["metadata"].get("finalizers", [])
        if JOB_TRACKING in finalizers:
            rest = [item for item in finalizers if item != JOB_TRACKING]
            self.change_pod(name, lambda old: with_metadata(old, finalizers=rest))

    def _running_pod(self, job_name: str) -> str:
        for pod in self.pods(job_name):
            if not pod_states.is_finished(pod):
                name: str = pod["metadata"]["name"]
                if not pod_states.is_running(pod):
                    self.schedule(name)
                    self.run(name)
                return name
        return self.start_pod(job_name)

    def _change_job(self, name: str, change: Callable[[Object], Object]) -> None:
        self.store.replace(_JOBS, (self.namespace, name), change)


def main() -> None:
    """Run an API server whose Jobs run by themselves."""
    parser = argparse.ArgumentParser(description="Play a Kubernetes cluster until SIGINT or SIGTERM.")
    parser.add_argument("--kubeconfig", type=Path, required=True, help="is written, for the dispatcher")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long each training takes")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        contextlib.suppress(KeyboardInterrupt),
        ApiServer() as server,
        JobController(server) as controller,
    ):
        controller.run_all(lambda job, attempt: Run(seconds=arguments.seconds))
        server.kubeconfig(arguments.kubeconfig)
        print(server.url, flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
