"""Watches lose nothing, and fail in all the ways in which the real ones do."""

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3
from kubernetes import client, watch

from tests.parts.api_server import ApiServer
from tests.parts_tests.asking import raw
from tests.parts_tests.jobs import job

MERGE = "application/merge-patch+json"


def events(server: ApiServer, query: str, timeout: float = 10) -> Iterator[dict[str, Any]]:
    """Watch Jobs over a plain connection, so that nothing is hidden by the client."""
    response = urllib3.PoolManager(retries=False).request(
        "GET",
        f"{server.url}/apis/batch/v1/namespaces/default/jobs?watch=true&{query}",
        headers={"Authorization": f"Bearer {server.token}"},
        preload_content=False,
        timeout=timeout,
    )
    assert response.status == 200
    buffer = b""
    for chunk in response.stream():
        buffer += chunk
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            yield json.loads(line)


def test_watch_goes_on_from_a_version_without_gap_or_repetition(jobs: Any, api_server: ApiServer) -> None:
    jobs.create_namespaced_job("default", job("before"))
    version = jobs.list_namespaced_job("default").metadata.resource_version
    jobs.create_namespaced_job("default", job("a"))
    jobs.patch_namespaced_job("a", "default", {"metadata": {"finalizers": None}}, _content_type=MERGE)
    jobs.delete_namespaced_job("a", "default", propagation_policy="Background")
    seen = [
        (event["type"], event["object"]["metadata"]["name"])
        for event in events(api_server, f"resourceVersion={version}&timeoutSeconds=1")
    ]
    assert seen == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


def test_watch_shows_an_object_that_leaves_its_selector_as_deleted(jobs: Any, api_server: ApiServer) -> None:
    jobs.create_namespaced_job("default", job("a"))
    version = jobs.list_namespaced_job("default").metadata.resource_version
    jobs.patch_namespaced_job("a", "default", {"metadata": {"labels": {"style": "z"}}})
    jobs.patch_namespaced_job("a", "default", {"metadata": {"labels": {"style": "a"}}})
    query = f"resourceVersion={version}&labelSelector=style%3Da&timeoutSeconds=1"
    assert [event["type"] for event in events(api_server, query)] == ["DELETED", "ADDED"]


def test_bookmarks_come_when_allowed_and_carry_the_version(jobs: Any, api_server: ApiServer) -> None:
    api_server.bookmark_interval = 0.05
    version = jobs.create_namespaced_job("default", job("a")).metadata.resource_version
    client.CoreV1Api(api_server.client()).create_namespaced_config_map("default", {"metadata": {"name": "m"}})
    stream = events(api_server, f"resourceVersion={version}&allowWatchBookmarks=true")
    bookmark = next(stream)
    assert bookmark["type"] == "BOOKMARK"
    assert int(bookmark["object"]["metadata"]["resourceVersion"]) > int(version)
    silent = events(api_server, f"resourceVersion={version}&timeoutSeconds=1")
    assert list(silent) == []


def test_watch_from_a_compacted_version_is_410_in_the_stream_or_as_status(
    jobs: Any, api_server: ApiServer
) -> None:
    version = jobs.create_namespaced_job("default", job("a")).metadata.resource_version
    jobs.create_namespaced_job("default", job("b"))
    api_server.compact()
    [event] = events(api_server, f"resourceVersion={version}")
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")
    api_server.compact(gone_as_status=True)
    path = f"/apis/batch/v1/namespaces/default/jobs?watch=true&resourceVersion={version}"
    assert raw(api_server, "GET", path).status == 410


def test_real_client_watches_and_a_closed_stream_ends_it(jobs: Any, api_server: ApiServer) -> None:
    jobs.create_namespaced_job("default", job("a"))
    names = []
    for event in watch.Watch().stream(jobs.list_namespaced_job, "default", timeout_seconds=5):
        names.append(event["object"].metadata.name)
        if len(names) == 1:
            jobs.create_namespaced_job("default", job("b"))
        else:
            break
    assert names == ["a", "b"]
    api_server.wait_for(lambda: api_server.open_watches == 0)


def test_silenced_watch_sends_nothing_and_then_what_was_missed(jobs: Any, api_server: ApiServer) -> None:
    version = jobs.create_namespaced_job("default", job("a")).metadata.resource_version
    api_server.silence_watches()
    stream = events(api_server, f"resourceVersion={version}", timeout=0.3)
    jobs.create_namespaced_job("default", job("b"))
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        next(stream)
    stream = events(api_server, f"resourceVersion={version}")
    threading.Timer(0.1, api_server.resume_watches).start()
    assert next(stream)["object"]["metadata"]["name"] == "b"


def test_ended_watches_close_reset_or_expire(jobs: Any, api_server: ApiServer) -> None:
    version = jobs.create_namespaced_job("default", job("a")).metadata.resource_version

    def end_soon(how: str) -> Iterator[dict[str, Any]]:
        stream = events(api_server, f"resourceVersion={version}")

        def end_when_open() -> None:
            api_server.wait_for(lambda: api_server.open_watches == 1)
            api_server.end_watches(how)

        end = threading.Thread(target=end_when_open)
        end.start()
        yield from stream
        end.join()

    assert list(end_soon("close")) == []
    [event] = end_soon("expire")
    assert event["object"]["code"] == 410
    with pytest.raises(urllib3.exceptions.ProtocolError):
        list(end_soon("reset"))


def test_watch_under_concurrent_changes_replays_to_what_a_list_says(jobs: Any, api_server: ApiServer) -> None:
    """Broken streams resumed from the last version seen add up to the state, in the order of versions."""
    jobs.create_namespaced_job("default", job("first"))
    version = int(jobs.list_namespaced_job("default").metadata.resource_version)

    def change(worker: int) -> None:
        api = client.BatchV1Api(api_server.client())
        for number in range(15):
            name = f"j{worker}-{number}"
            api.create_namespaced_job("default", job(name))
            api.patch_namespaced_job(name, "default", {"metadata": {"finalizers": None}}, _content_type=MERGE)
            if number % 2:
                api.delete_namespaced_job(name, "default", propagation_policy="Background")
            if number % 5 == 0:
                api_server.end_watches("reset")

    workers = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    seen: dict[str, str] = {"first": str(version)}
    while True:
        last_round = not any(worker.is_alive() for worker in workers)
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            for event in events(api_server, f"resourceVersion={version}&timeoutSeconds=1"):
                metadata = event["object"]["metadata"]
                assert int(metadata["resourceVersion"]) > version
                version = int(metadata["resourceVersion"])
                if event["type"] == "DELETED":
                    del seen[metadata["name"]]
                else:
                    seen[metadata["name"]] = metadata["resourceVersion"]
        if last_round:
            break
    listed = jobs.list_namespaced_job("default").items
    assert seen == {item.metadata.name: item.metadata.resource_version for item in listed}
    assert len(seen) == 1 + 4 * 8
