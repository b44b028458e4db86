"""What keeps a training from starting: statuses and Events, and what each of them means."""

from datetime import UTC, datetime
from typing import Any

import pytest

from dispatcher.diagnosis import Phase, diagnose
from dispatcher.stuck import Unexplained
from job_contract.outcome import FailureCode, TrainingFailure
from tests.dispatcher.statuses import (
    BAD_IMAGE,
    CRITERIA_MET,
    FAILURE_TARGET,
    STARTED,
    SUSPENDED,
    condition,
    ended,
    job,
    pod,
    running,
    waiting,
)

# What cannot start


@pytest.mark.parametrize(
    ("the_pod", "code", "words"),
    [
        (
            waiting("ImagePullBackOff", 'Back-off pulling image "trainer:1": not found'),
            FailureCode.IMAGE_PULL,
            "trainer:1",
        ),
        (waiting("ErrImagePull", "unauthorized"), FailureCode.IMAGE_PULL, "unauthorized"),
        (waiting("InvalidImageName", "invalid reference"), FailureCode.IMAGE_PULL, "trainer:1"),
        (
            waiting("CreateContainerConfigError", 'secret "lora-env" not found'),
            FailureCode.UNSCHEDULABLE,
            'secret "lora-env" not found',
        ),
        (
            pod(
                conditions=[
                    condition(
                        "PodScheduled",
                        "Unschedulable",
                        "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
                        status="False",
                    )
                ]
            ),
            FailureCode.UNSCHEDULABLE,
            "Insufficient nvidia.com/gpu",
        ),
        (
            pod(
                conditions=[
                    condition(
                        "PodScheduled",
                        "Unschedulable",
                        'persistentvolumeclaim "lora-trainer-models" not found',
                        status="False",
                    )
                ]
            ),
            FailureCode.UNSCHEDULABLE,
            "create the volume claim",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:30],
)
def test_a_pod_that_cannot_start_is_stuck_and_not_failed(
    the_pod: dict[str, Any], code: FailureCode, words: str
) -> None:
    diagnosis = diagnose(job(active=1), [the_pod])
    assert (diagnosis.phase, diagnosis.started) == (Phase.WAITING, False)
    assert diagnosis.stuck
    assert diagnosis.stuck.failure.failure_code is code
    assert words in diagnosis.stuck.failure.failure_reason


def test_the_grace_of_an_image_begins_when_the_pod_has_its_node() -> None:
    """A node may come 20 minutes after the pod, by an autoscaler."""
    stuck = diagnose(job(), [waiting("InvalidImageName", startTime="2026-11-24T08:20:00Z")]).stuck
    assert stuck
    assert stuck.since == datetime(2026, 11, 24, 8, 20, tzinfo=UTC)


def test_the_grace_of_the_scheduler_begins_when_it_found_no_node() -> None:
    unschedulable = condition("PodScheduled", "Unschedulable", "no nodes", status="False")
    stuck = diagnose(job(), [pod(conditions=[unschedulable])]).stuck
    assert stuck
    assert stuck.since == datetime(2026, 11, 24, 8, 5, tzinfo=UTC)


def test_a_retry_that_runs_is_not_stuck_because_an_earlier_pod_was() -> None:
    stuck = waiting("ImagePullBackOff")
    diagnosis = diagnose(job(), [running("p2", "2026-11-24T08:10:00Z"), stuck])
    assert (diagnosis.phase, diagnosis.stuck) == (Phase.RUNNING, None)


# What the Events say where no status does


def event(
    reason: str, message: str = "", at: str = "2026-11-24T08:01:00Z", about: str = "u"
) -> dict[str, Any]:
    return {
        "metadata": {"name": "e"},
        "involvedObject": {"uid": about},
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
        "eventTime": None,
    }


def creating(reason: str = "ContainerCreating", message: str = "", **status: Any) -> dict[str, Any]:
    """A pod that has its node, and no container yet."""
    the_pod = waiting(reason, message, startTime="2026-11-24T08:00:30Z", **status)
    the_pod["metadata"]["uid"] = "pod-uid"
    return the_pod


def at(minutes: int, seconds: int = 0) -> datetime:
    return datetime(2026, 11, 24, 8, minutes, seconds, tzinfo=UTC)


def seen(reason: str, message: str, *times: datetime, container: str = "trainer") -> dict[str, Any]:
    """An Event about the pod's container, counted up from the first to the last of these times."""
    counted = event(reason, message, times[-1].isoformat(), "pod-uid")
    counted["firstTimestamp"] = times[0].isoformat()
    counted["involvedObject"]["fieldPath"] = f"spec.containers{{{container}}}"
    return counted


QUOTA = (
    'Error creating: pods "lora-42-x7k2p" is forbidden: exceeded quota: gpus, '
    "requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=4, "
    "limited: requests.nvidia.com/gpu=4"
)


def stuck_by(pods: list[dict[str, Any]], *events: dict[str, Any]) -> TrainingFailure:
    diagnosis = diagnose(job(), pods, events)
    assert (diagnosis.phase, diagnosis.unexplained) == (Phase.WAITING, None)
    assert diagnosis.stuck
    return diagnosis.stuck.failure


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (QUOTA, ("exceeded quota: gpus", "raise the ResourceQuota")),
        (
            'Error creating: pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot',
            ("violates PodSecurity", "security context"),
        ),
        (
            'Error creating: pods "x" is forbidden: error looking up service account ns/trainer: '
            'serviceaccount "trainer" not found',
            ('serviceaccount "trainer" not found', "create the service account"),
        ),
        (
            'Error creating: pods "x" is forbidden: [maximum cpu usage per Container is 1, but limit is 2]',
            ("maximum cpu usage", "LimitRange"),
        ),
        (
            'Error creating: pods "x" is forbidden: no PriorityClass with name gold was found',
            ("gold", "create the PriorityClass"),
        ),
        (
            'Error creating: Internal error occurred: failed calling webhook "policy.example.org": timeout',
            ("policy.example.org", "admission webhook"),
        ),
        ("Error creating: something new", ("something new", "change the Job template")),
        ("", ("FailedCreate", "change the Job template")),
    ],
    ids=lambda value: str(value)[16:50],
)
def test_13_a_job_that_may_have_no_pod_is_stuck_by_what_the_cluster_forbids(
    message: str, words: tuple[str, str]
) -> None:
    told = stuck_by([], event("FailedCreate", message))
    assert told.failure_code is FailureCode.UNSCHEDULABLE
    for word in words:
        assert word in told.failure_reason
    assert "Error creating" not in told.failure_reason


@pytest.mark.parametrize(
    ("reason", "message", "words"),
    [
        (
            "FailedMount",
            'MountVolume.SetUp failed for volume "env" : secret "lora-env" not found',
            "lora-env",
        ),
        ("FailedMount", 'MountVolume.SetUp failed for volume "x" : configmap "plan" not found', "plan"),
        ("FailedAttachVolume", 'Multi-Attach error for volume "pvc-1" Volume is already used', "free it"),
        ("FailedMapVolume", "MapVolume.SetUpDevice failed", "SetUpDevice"),
        ("FailedCreatePodSandBox", 'plugin type="calico" failed (add)', "calico"),
    ],
)
def test_13_a_pod_whose_container_is_not_created_is_stuck_by_what_its_events_name(
    reason: str, message: str, words: str
) -> None:
    told = stuck_by([creating()], event(reason, message, about="pod-uid"))
    assert told.failure_code is FailureCode.UNSCHEDULABLE
    assert words in told.failure_reason


def test_without_events_a_training_that_does_not_start_names_what_to_ask_about() -> None:
    from_job, from_pod = diagnose(job(), []).unexplained, diagnose(job(), [creating()]).unexplained
    assert from_job == Unexplained(datetime(2026, 11, 24, 8, tzinfo=UTC), "u")
    assert from_pod == Unexplained(datetime(2026, 11, 24, 8, 0, 30, tzinfo=UTC), "pod-uid")


def test_a_retry_that_may_have_no_pod_is_asked_about_from_the_last_pods_end_on() -> None:
    last = ended(70, BAD_IMAGE)
    state = last["status"]["containerStatuses"][1]["state"]["terminated"]
    state["finishedAt"] = "2026-11-24T08:30:00Z"
    unexplained = diagnose(job(failed=1), [last]).unexplained
    assert unexplained == Unexplained(datetime(2026, 11, 24, 8, 30, tzinfo=UTC), "u")
    told = diagnose(job(failed=1), [last], [event("FailedCreate", QUOTA, "2026-11-24T08:31:00Z")]).stuck
    assert told
    assert "exceeded quota" in told.failure.failure_reason


@pytest.mark.parametrize(
    ("pods", "events"),
    [
        ([], [event("SuccessfulCreate"), event("FailedCreate", QUOTA)]),
        ([], [event("SuccessfulCreate", at="2026-11-24T08:02:00Z"), event("FailedCreate", QUOTA)]),
        ([], [event("FailedCreate", QUOTA, about="another")]),
        ([], [event("Suspended"), event("StatusParked")]),
        (
            [creating()],
            [
                event("FailedMount", "timed out", about="pod-uid"),
                event("Pulling", at="2026-11-24T08:09:00Z", about="pod-uid"),
            ],
        ),
        ([creating()], [event("FailedCreate", QUOTA), event("Scheduled", about="pod-uid")]),
    ],
    ids=[
        "created at once",
        "created since",
        "another Job's",
        "no failure",
        "pulls now",
        "the Job's, not the pod's",
    ],
)
def test_an_event_of_the_past_or_of_another_object_says_nothing(
    pods: list[dict[str, Any]], events: list[dict[str, Any]]
) -> None:
    """A big image that is pulled for long after a first mount failed is no failure."""
    diagnosis = diagnose(job(), pods, events)
    assert diagnosis.stuck is None
    assert diagnosis.unexplained


def test_the_event_that_names_what_is_missing_is_told_and_not_the_one_that_only_timed_out() -> None:
    named = event("FailedMount", 'secret "lora-env" not found', about="pod-uid")
    vague = event(
        "FailedMount",
        "Unable to attach or mount volumes: timed out waiting for the condition",
        "2026-11-24T08:05:00Z",
        "pod-uid",
    )
    for events in ([named, vague], [vague, named]):
        assert "lora-env" in stuck_by([creating()], *events).failure_reason
    assert "timed out" in stuck_by([creating()], vague).failure_reason


@pytest.mark.parametrize(
    "times",
    [
        {"lastTimestamp": None, "eventTime": "2026-11-24T08:02:00.123456Z"},
        {"lastTimestamp": None, "series": {"count": 9, "lastObservedTime": "2026-11-24T08:02:00.123456Z"}},
    ],
    ids=["eventTime", "series"],
)
def test_an_event_is_read_whoever_wrote_it(times: dict[str, Any]) -> None:
    seen = {**event("FailedCreate", QUOTA), **times}
    assert "exceeded quota" in stuck_by([], seen).failure_reason


def test_the_grace_of_what_events_say_begins_when_it_began() -> None:
    """A quota that one retry met for a moment, hours after the Job began, must not end it at once."""
    succeeded = event("SuccessfulCreate", at="2026-11-24T09:00:00Z")
    first = {**event("FailedCreate", QUOTA, "2026-11-24T10:05:00Z"), "firstTimestamp": "2026-11-24T10:00:00Z"}
    later = event("FailedCreate", QUOTA, "2026-11-24T10:10:00Z")
    stuck = diagnose(job(), [], [succeeded, later, first]).stuck
    assert stuck
    assert stuck.since == datetime(2026, 11, 24, 10, tzinfo=UTC)
    # One that is counted up over the whole life of the Job began anew after what went well.
    counted = {**first, "firstTimestamp": "2026-11-24T08:00:00Z"}
    stuck = diagnose(job(), [], [succeeded, counted]).stuck
    assert stuck
    assert stuck.since == datetime(2026, 11, 24, 9, tzinfo=UTC)


def test_a_pod_that_was_evicted_before_its_container_was_made_leaves_a_job_without_a_pod() -> None:
    evicted = creating(phase="Failed")
    evicted["status"] |= {"reason": "Evicted", "containerStatuses": []}
    assert diagnose(job(), [evicted]).unexplained == Unexplained(
        datetime(2026, 11, 24, 8, 0, 30, tzinfo=UTC), "u"
    )
    told = diagnose(job(), [evicted], [event("FailedCreate", QUOTA)]).stuck
    assert told
    assert "exceeded quota" in told.failure.failure_reason


@pytest.mark.parametrize("target", [FAILURE_TARGET, CRITERIA_MET])
def test_a_job_that_is_suspended_or_about_to_end_waits_for_nothing(target: dict[str, Any]) -> None:
    suspended = job()
    suspended["spec"]["suspend"] = True
    for the_job in (suspended, job(target)):
        diagnosis = diagnose(the_job, [], [event("FailedCreate", QUOTA)])
        assert (diagnosis.stuck, diagnosis.unexplained) == (None, None)


def test_a_job_that_was_resumed_has_its_grace_from_then_on() -> None:
    """Until the Job controller has seen that, startTime and Events are those of the time before."""
    before = [{**event("FailedCreate", QUOTA), "firstTimestamp": STARTED}]
    paused = condition("Suspended", "JobSuspended", "Job suspended")
    diagnosis = diagnose(job(paused, startTime=STARTED), [], before)
    assert (diagnosis.stuck, diagnosis.unexplained) == (None, None)
    resumed = job(SUSPENDED, startTime="2026-11-24T09:00:00Z")
    for pods in ([], [ended(70, BAD_IMAGE)]):
        stuck = diagnose(resumed, pods, before).stuck
        assert stuck
        assert stuck.since == datetime(2026, 11, 24, 9, tzinfo=UTC)


# Since when an image cannot be pulled, or a container not be made

PULL_FAILS = 'Failed to pull image "trainer:1": unexpected EOF'


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError"])
def test_what_the_kubelet_tries_again_is_asked_about_and_told_all_the_same(reason: str) -> None:
    stuck = diagnose(job(), [creating(reason, "it says why")]).stuck
    assert stuck
    assert (stuck.since, stuck.about) == (at(0, 30), "pod-uid")
    assert "it says why" in stuck.failure.failure_reason


@pytest.mark.parametrize("reason", ["InvalidImageName", "ErrImageNeverPull"])
def test_an_image_that_is_not_tried_again_needs_no_events(reason: str) -> None:
    stuck = diagnose(job(), [creating(reason)]).stuck
    assert stuck
    assert (stuck.since, stuck.about) == (at(0, 30), None)


def test_the_grace_of_a_pull_begins_when_it_first_failed() -> None:
    """Ten gigabytes that came well for 14 minutes and then broke off once: the kubelet pulls again."""
    events = [
        seen("Pulling", 'Pulling image "trainer:1"', at(1)),
        seen("Failed", PULL_FAILS, at(15)),
        seen("Failed", "Error: ErrImagePull", at(15), at(16)),
        seen("BackOff", 'Back-off pulling image "trainer:1"', at(15, 10), at(16, 10)),
    ]
    stuck = diagnose(job(), [creating("ErrImagePull")], events).stuck
    assert stuck
    assert (stuck.since, stuck.about, stuck.trying_since) == (at(15), None, None)


def test_a_pull_that_goes_on_after_one_that_failed_is_known_to_go_on() -> None:
    """The status shows the old failure until the new pull has ended."""
    failed = seen("Failed", PULL_FAILS, at(15))
    pulling = seen("Pulling", 'Pulling image "trainer:1"', at(1), at(16))
    stuck = diagnose(job(), [creating("ImagePullBackOff")], [failed, pulling]).stuck
    assert stuck
    assert (stuck.since, stuck.trying_since) == (at(15), at(16))
    again = seen("Failed", "Error: ErrImagePull", at(15), at(20))
    stuck = diagnose(job(), [creating("ErrImagePull")], [failed, pulling, again]).stuck
    assert stuck
    assert (stuck.since, stuck.trying_since) == (at(15), None)


def test_a_pull_that_has_succeeded_since_fails_no_more() -> None:
    events = [seen("Failed", PULL_FAILS, at(15)), seen("Pulled", "Successfully pulled", at(30))]
    stuck = diagnose(job(), [creating("ErrImagePull")], events).stuck
    assert stuck
    assert stuck.about == "pod-uid"


def test_what_happens_to_another_container_does_not_move_the_grace_of_the_trainer() -> None:
    events = [
        seen("Failed", PULL_FAILS, at(15), at(25)),
        seen("BackOff", "Back-off restarting failed container", at(2), at(26), container="sidecar"),
        seen("Pulled", "Successfully pulled", at(2), at(24), container="sidecar"),
    ]
    stuck = diagnose(job(), [creating("ErrImagePull")], events).stuck
    assert stuck
    assert (stuck.since, stuck.trying_since) == (at(15), None)


def test_the_grace_of_a_container_that_cannot_be_made_begins_after_its_pull() -> None:
    """Each try says first that the image is there; a pull that failed before has nothing to do with it."""
    events = [
        seen("Pulling", 'Pulling image "trainer:1"', at(1), at(3)),
        seen("Failed", PULL_FAILS, at(2)),
        seen("Failed", "Error: ErrImagePull", at(2)),
        seen("Pulled", "Successfully pulled image", at(15)),
        seen("Pulled", "already present on machine", at(16), at(25)),
        seen("Failed", 'Error: secret "lora-env" not found', at(15), at(25)),
    ]
    the_pod = creating("CreateContainerConfigError", 'secret "lora-env" not found')
    stuck = diagnose(job(), [the_pod], events).stuck
    assert stuck
    assert (stuck.since, stuck.about) == (at(15), None)
    assert "lora-env" in stuck.failure.failure_reason


# What others may have


@pytest.mark.parametrize(
    ("message", "for_room"),
    [
        ("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", True),
        ("0/3 nodes are available: 1 Insufficient memory, 2 node(s) had untolerated taint(s).", True),
        ("0/1 nodes are available: 1 Too many pods.", True),
        (
            "0/1 nodes are available: 1 node has pod using PersistentVolumeClaim with the same name and "
            "ReadWriteOncePod access mode.",
            True,
        ),
        ("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.", False),
        ('persistentvolumeclaim "lora-trainer-models" not found', False),
        ("", False),
    ],
    ids=lambda value: str(value)[:60],
)
def test_13_a_pod_without_a_node_lacks_room_where_others_may_have_it(message: str, for_room: bool) -> None:
    unschedulable = condition("PodScheduled", "Unschedulable", message, status="False")
    stuck = diagnose(job(), [pod(conditions=[unschedulable])]).stuck
    assert stuck
    assert stuck.for_room == for_room


@pytest.mark.parametrize(
    ("reason", "message", "for_room"),
    [
        ("FailedAttachVolume", 'Multi-Attach error for volume "pvc-1" Volume is already used', True),
        ("FailedMount", 'MountVolume.SetUp failed for volume "env" : secret "lora-env" not found', False),
        ("FailedCreatePodSandBox", 'plugin type="calico" failed (add)', False),
    ],
)
def test_13_a_volume_that_is_attached_elsewhere_is_lack_of_room(
    reason: str, message: str, for_room: bool
) -> None:
    stuck = diagnose(job(), [creating()], [event(reason, message, about="pod-uid")]).stuck
    assert stuck
    assert stuck.for_room == for_room


def test_13_a_quota_that_is_used_up_is_lack_of_room_and_a_missing_account_is_not() -> None:
    account = 'Error creating: pods "x" is forbidden: serviceaccount "trainer" not found'
    for message, for_room in ((QUOTA, True), (account, False)):
        stuck = diagnose(job(), [], [event("FailedCreate", message)]).stuck
        assert stuck
        assert stuck.for_room == for_room
