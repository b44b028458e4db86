"""A watch that ends, goes silent or fails leaves no gap in what is known of the Jobs."""

import time

import pytest

from tests.dispatcher.cluster import (
    batch_api,
    complete_new_job,
    name_of,
    new_job,
    wait_told,
    watching,
)
from tests.dispatcher.support import wait_until
from tests.parts.api_server import ApiServer, Fault
from tests.parts.job_controller import JobController
from tests.parts.receiver import Receiver


@pytest.mark.parametrize("how", ["close", "reset", "expire"])
def test_2_a_watch_that_ends_leaves_no_gap(
    api_server: ApiServer, controller: JobController, receiver: Receiver, how: str
) -> None:
    with watching(api_server.client(), api_server.namespace) as watch:
        wait_until(lambda: api_server.open_watches == 2)
        complete_new_job(controller, receiver, watch.backend, "before")
        api_server.end_watches(how)
        complete_new_job(controller, receiver, watch.backend, "after")
        wait_told(receiver, "processing", "completed", style="before")
        wait_told(receiver, "processing", "completed", style="after")


@pytest.mark.parametrize("as_status", [False, True], ids=["in the stream", "as the status"])
def test_2_410_gone_lists_anew_and_leaves_no_gap(
    api_server: ApiServer, controller: JobController, receiver: Receiver, as_status: bool
) -> None:
    with watching(api_server.client(), api_server.namespace) as watch:
        wait_until(lambda: api_server.open_watches == 2)
        api_server.silence_watches()
        complete_new_job(controller, receiver, watch.backend, "gap")
        api_server.compact(gone_as_status=as_status)
        lists = api_server.count("list", "jobs")
        api_server.end_watches("close")
        wait_until(lambda: api_server.count("list", "jobs") > lists, what="listed anew")
        api_server.resume_watches()
        wait_told(receiver, "processing", "completed", style="gap")


def test_1_a_watch_that_goes_silent_is_given_up(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    with watching(api_server.client(), api_server.namespace, silence_seconds=0.7) as watch:
        wait_until(lambda: api_server.open_watches >= 2)
        api_server.silence_watches()
        complete_new_job(controller, receiver, watch.backend, "silent")
        wait_told(receiver, "processing", "completed", style="silent")
        api_server.resume_watches()


def test_1_bookmarks_keep_a_quiet_watch_alive(api_server: ApiServer) -> None:
    api_server.bookmark_interval = 0.2
    with watching(api_server.client(), api_server.namespace, silence_seconds=1.0) as watch:
        wait_until(lambda: api_server.open_watches == 2)
        lists, until = api_server.count("list", "jobs"), time.monotonic() + 2.0
        wait_until(lambda: time.monotonic() > until)
        assert api_server.count("list", "jobs") == lists
        assert watch.backend.silent_for() < 1.0


def test_3_a_delete_between_list_and_watch_is_seen(api_server: ApiServer, receiver: Receiver) -> None:
    """The watch goes on from the list's version, so what happens between the two is in it."""
    job = new_job(receiver)
    del job["metadata"]["finalizers"]
    batch_api(api_server).create_namespaced_job(api_server.namespace, job)
    hang = api_server.inject(Fault(hang=True, verb="watch", resource="jobs"))
    with watching(api_server.client(), api_server.namespace) as watch:
        wait_until(lambda: hang.hits == 1)
        assert watch.backend.snapshot(name_of(job))
        batch_api(api_server).patch_namespaced_job(
            name_of(job), api_server.namespace, {"metadata": {"finalizers": None}}
        )
        batch_api(api_server).delete_namespaced_job(name_of(job), api_server.namespace)
        api_server.release_hangs()
        wait_until(lambda: watch.backend.snapshot(name_of(job)) is None)
        assert name_of(job) in watch.changes


def test_4_api_errors_for_a_while_are_recovered_from(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    with watching(api_server.client(), api_server.namespace) as watch:
        wait_until(lambda: api_server.open_watches == 2)
        for verb, body in (("watch", None), ("list", b"<html>"), ("list", b"[]"), ("watch", b"{}")):
            api_server.inject(Fault(500 if body is None else 200, verb=verb, body=body))
        api_server.end_watches("reset")
        complete_new_job(controller, receiver, watch.backend, "after")
        wait_told(receiver, "processing", "completed", style="after")


def test_4_an_api_server_that_restarts_is_come_back_to(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    with watching(api_server.client(), api_server.namespace) as watch:
        wait_until(lambda: api_server.open_watches == 2)
        api_server.stop()
        wait_until(lambda: watch.backend.silent_for() > 0.5)
        api_server.start()
        complete_new_job(controller, receiver, watch.backend, "after")
        wait_told(receiver, "processing", "completed", style="after")


def test_a_server_that_hangs_up_on_every_watch_is_not_hammered(api_server: ApiServer) -> None:
    api_server.inject(Fault(200, body=b"", verb="watch", times=10_000))
    with watching(api_server.client(), api_server.namespace):
        until = time.monotonic() + 1.5
        wait_until(lambda: time.monotonic() > until)
    assert api_server.count("watch") < 40
    assert api_server.count("list") < 10


def test_many_jobs_are_listed_in_pages(api_server: ApiServer, receiver: Receiver) -> None:
    for number in range(520):
        job = new_job(receiver, f"t{number}", number)
        job["metadata"] |= {"uid": f"uid-{number}", "creationTimestamp": "2026-11-24T08:00:00Z"}
        api_server.put({**job, "status": {}})
    with watching(api_server.client(), api_server.namespace) as watch:
        assert len(watch.backend.names()) == 520
    assert api_server.count("list", "jobs") >= 2


def test_stopping_takes_no_time_though_watches_are_open(api_server: ApiServer) -> None:
    with watching(api_server.client(), api_server.namespace):
        wait_until(lambda: api_server.open_watches == 2)
        began = time.monotonic()
    assert time.monotonic() - began < 5
