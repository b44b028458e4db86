"""What the Job controller makes of a Job and its pods: counts, verdict, conditions. No store, no clock."""

from typing import Any, Final, NamedTuple

from tests.parts.kube_store import JOB_TRACKING, Object
from tests.parts.pod_states import is_finished

TERMINAL: Final = {"FailureTarget": "Failed", "SuccessCriteriaMet": "Complete"}
"""Since Kubernetes 1.31 the verdict stands first, and the final condition once no pod is left."""


class Verdict(NamedTuple):
    type: str
    """FailureTarget or SuccessCriteriaMet."""
    reason: str
    message: str


DEADLINE: Final = Verdict(
    "FailureTarget", "DeadlineExceeded", "Job was active longer than specified deadline"
)
_BACKOFF: Final = Verdict(
    "FailureTarget", "BackoffLimitExceeded", "Job has reached the specified backoff limit"
)
_SUCCESS: Final = Verdict(
    "SuccessCriteriaMet", "CompletionsReached", "Reached expected number of succeeded pods"
)


def condition(job: Object, kind: str) -> dict[str, Any] | None:
    """Return the condition of that type when its status is True."""
    for item in job["status"].get("conditions", ()):
        if item["type"] == kind and item["status"] == "True":
            found: dict[str, Any] = item
            return found
    return None


def verdict(job: Object) -> Verdict | None:
    """Return the verdict that the Job's conditions already hold."""
    for kind in TERMINAL:
        if item := condition(job, kind):
            return Verdict(kind, item["reason"], item["message"])
    return None


def is_over(job: Object) -> bool:
    return any(condition(job, kind) for kind in TERMINAL.values())


def with_condition(job: Object, kind: str, status: str, reason: str, message: str, at: str) -> Object:
    others = [item for item in job["status"].get("conditions", ()) if item["type"] != kind]
    new = {"type": kind, "status": status, "reason": reason, "message": message}
    new |= {"lastProbeTime": at, "lastTransitionTime": at}
    return {**job, "status": {**job["status"], "conditions": [*others, new]}}


def count(job: Object, pods: list[Object]) -> tuple[Object, Verdict | None]:
    """Count the pods that ended since the last time (they have the tracking finalizer still), and judge.

    A pod that podFailurePolicy ignores is not counted, and neither is one that ends because the Job was
    suspended.
    """
    status, judged = dict(job["status"]), verdict(job)
    for pod in pods:
        if not is_finished(pod) or JOB_TRACKING not in pod["metadata"].get("finalizers", ()):
            continue
        if pod["status"]["phase"] == "Succeeded":
            status["succeeded"] = status.get("succeeded", 0) + 1
            continue
        action, message = _policy_action(job, pod)
        if job["spec"]["suspend"]:
            continue
        if action != "Ignore":
            status["failed"] = status.get("failed", 0) + 1
        if action == "FailJob":
            judged = judged or Verdict("FailureTarget", "PodFailurePolicy", message)
    unfinished = [pod for pod in pods if not is_finished(pod)]
    terminating = [pod for pod in unfinished if "deletionTimestamp" in pod["metadata"]]
    active = [pod for pod in unfinished if "deletionTimestamp" not in pod["metadata"]]
    ready = [pod for pod in active if pod["status"].get("phase") == "Running"]
    status |= {"ready": len(ready), "terminating": len(terminating), "uncountedTerminatedPods": {}}
    status |= {"active": len(active)}
    if not active:
        del status["active"]
    if judged is None and status.get("succeeded", 0) >= job["spec"]["completions"]:
        judged = _SUCCESS
    if judged is None and status.get("failed", 0) > job["spec"]["backoffLimit"]:
        judged = _BACKOFF
    return {**job, "status": status}, judged


def _policy_action(job: Object, pod: Object) -> tuple[str, str]:
    """Return the action of the first rule that matches a failed pod, and its message."""
    where = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    for index, rule in enumerate(job["spec"].get("podFailurePolicy", {}).get("rules", ())):
        if codes := rule.get("onExitCodes"):
            for status in pod["status"].get("containerStatuses", ()):
                code = status["state"].get("terminated", {}).get("exitCode", 0)
                named = codes.get("containerName") in (None, status["name"])
                if code and named and (code in codes["values"]) == (codes["operator"] == "In"):
                    return rule["action"], (
                        f"Container {status['name']} for pod {where} failed with exit code {code} matching"
                        f" {rule['action']} rule at index {index}"
                    )
        for pattern in rule.get("onPodConditions", ()):
            for item in pod["status"].get("conditions", ()):
                if (item["type"], item["status"]) == (pattern["type"], pattern["status"]):
                    return rule["action"], (
                        f"Pod {where} has condition {item['type']} matching {rule['action']} rule at index"
                        f" {index}"
                    )
    return "Count", ""
