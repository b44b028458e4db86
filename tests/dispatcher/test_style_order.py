"""One training per style at a time, on an API server: who waits, who is released, who is left alone."""

import time

import pytest

from dispatcher.allowed_hosts import AllowedHosts
from dispatcher.backends import Snapshot
from dispatcher.backends.kubernetes import KubernetesBackend
from dispatcher.metrics import Metrics
from dispatcher.relay import Relay
from dispatcher.relay_memory import RelayOptions
from dispatcher.style_lanes import StyleLanes, hold
from dispatcher.webhook import Webhook
from tests.dispatcher.cluster import RESULT, batch_api, name_of, new_job, wait_told, watching
from tests.dispatcher.support import wait_until
from tests.parts.api_server import ApiServer, Fault
from tests.parts.job_controller import JobController
from tests.parts.receiver import Receiver


def test_two_jobs_of_a_style_run_one_after_the_other(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    first, second = new_job(receiver, "first"), new_job(receiver, "second")
    with watching(api_server.client(), api_server.namespace) as watch:
        assert watch.lanes.enter(first, 1) is None
        watch.backend.create(first)
        place = watch.lanes.enter(second, 2)
        assert place == 2
        hold(second, place)
        watch.backend.create(second)
        controller.start_pod(name_of(first))
        wait_told(receiver, "processing")
        assert (api_server.get("jobs", name_of(second)) or {})["spec"]["suspend"] is True
        batch_api(api_server).delete_namespaced_job(name_of(first), api_server.namespace)
        wait_told(receiver, "processing", "failed")
        # Its container still saves a checkpoint: the style is free when that has ended, and not before.
        wait_until(lambda: any("deletionTimestamp" in pod["metadata"] for pod in api_server.all("pods")))
        assert (api_server.get("jobs", name_of(second)) or {})["spec"]["suspend"] is True
        controller.end_deleted_pods()
        api_server.wait_for(lambda: not (api_server.get("jobs", name_of(second)) or {})["spec"]["suspend"])


def test_who_takes_over_knows_what_another_released_that_its_watch_does_not_show(
    api_server: ApiServer, receiver: Receiver
) -> None:
    """The clock of another dispatcher may give a later Job an earlier place."""
    released, earlier = new_job(receiver, "released"), new_job(receiver, "earlier")
    hold(released, 20)
    hold(earlier, 10)
    batch = batch_api(api_server)
    batch.create_namespaced_job(api_server.namespace, released)
    lanes = StyleLanes(shared=True)
    backend = KubernetesBackend(api_server.client(), api_server.namespace, "lora-trainer")
    webhook = Webhook(AllowedHosts([]), None)
    relay = Relay(backend, webhook, lanes, RelayOptions(), Metrics(), may_relay=lambda: False)
    backend.load()
    relay.observe_all()
    batch.patch_namespaced_job(name_of(released), api_server.namespace, {"spec": {"suspend": False}})
    batch.create_namespaced_job(api_server.namespace, earlier)
    relay.observe_now()
    relay.observe_all()  # from memory, which shows neither
    assert not lanes.is_next(name_of(earlier))
    assert not lanes.start(name_of(earlier))


def test_a_training_that_somebody_suspends_after_its_release_is_left_alone(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    job = new_job(receiver)
    hold(job, 1)
    with watching(api_server.client(), api_server.namespace) as watch:
        watch.backend.create(job)
        api_server.wait_for(lambda: not (api_server.get("jobs", name_of(job)) or {})["spec"]["suspend"])
        watch.backend.patch(name_of(job), {"spec": {"suspend": True}})
        wait_until(lambda: is_suspended(watch.backend.snapshot(name_of(job))), what="the relay sees it")
        # By the time that a Job which came later is through, this one has been looked at.
        later = new_job(receiver, "later", 43)
        watch.backend.create(later)
        controller.finish(name_of(later), 0, RESULT)
        wait_told(receiver, "processing", "completed", style=43)
        assert (api_server.get("jobs", name_of(job)) or {})["spec"]["suspend"] is True


def is_suspended(snapshot: Snapshot | None) -> bool:
    return snapshot is not None and bool(snapshot.job["spec"]["suspend"])


def test_a_style_stays_taken_while_nobody_can_see_whether_its_job_is_there(
    api_server: ApiServer, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch that was broken for longer than a new Job is waited for once set its style free."""
    monkeypatch.setattr("dispatcher.style_lanes._EXPECTED_SECONDS", 0.3)
    monkeypatch.setattr("dispatcher.relay._BLIND_SECONDS", 0.2)
    first, second = new_job(receiver, "first"), new_job(receiver, "second")
    with watching(api_server.client(), api_server.namespace) as watch:
        wait_until(lambda: api_server.open_watches == 2)
        for verb in ("list", "watch"):
            api_server.inject(Fault(500, verb=verb, times=999))
        api_server.end_watches("reset")
        wait_until(lambda: watch.backend.silent_for() > 0.3)
        assert watch.lanes.enter(first, 1) is None
        watch.backend.create(first)
        watch.relay.changed(name_of(first))
        until = time.monotonic() + 1.0  # more than three times as long as it is waited for
        wait_until(lambda: time.monotonic() > until)
        assert watch.lanes.enter(second, 2) == 2
        watch.lanes.leave(name_of(second))
        api_server.clear_faults()
        wait_until(lambda: watch.backend.snapshot(name_of(first)))
        assert watch.lanes.enter(second, 2) == 2


def test_a_job_whose_release_failed_is_not_started_beside_a_rerun_by_hand(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    """The claim to the style outlived its PATCH, and the rerun's name sorts behind the Job's."""
    job, rerun = new_job(receiver), new_job(receiver, "rerun")
    hold(job, 1)
    rerun["metadata"]["name"] = "rerun-42"
    with watching(api_server.client(), api_server.namespace) as watch:
        fault = api_server.inject(
            Fault(503, verb="patch", resource="jobs", name=name_of(job), containing=b"suspend", times=99)
        )
        watch.backend.create(job)
        wait_until(lambda: fault.hits > 0, what="its release fails")
        batch_api(api_server).create_namespaced_job(api_server.namespace, rerun)
        controller.start_pod("rerun-42")
        wait_told(receiver, "processing")
        api_server.clear_faults()
        watch.relay.changed(name_of(job))
        # By the time that a Job which came later is through, this one has been looked at.
        later = new_job(receiver, "later", 43)
        watch.backend.create(later)
        controller.finish(name_of(later), 0, RESULT)
        wait_told(receiver, "processing", "completed", style=43)
        assert (api_server.get("jobs", name_of(job)) or {})["spec"]["suspend"] is True
        controller.finish("rerun-42", 0, RESULT)
        api_server.wait_for(lambda: not (api_server.get("jobs", name_of(job)) or {})["spec"]["suspend"])
