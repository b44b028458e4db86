"""The tests' own API server gives the answers of the real one."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.parts.api_server import ApiServer
from tests.parts.cluster import namespace_of_its_own
from tests.parts.control_plane import ControlPlane
from tests.parts.plain_api import Asker
from tests.parts_tests.conformance import normal
from tests.parts_tests.conversations import CONVERSATIONS, Conversation
from tests.parts_tests.manifests import REFUSED_JOBS, TAKEN_JOBS

pytestmark = pytest.mark.cluster


@pytest.fixture
def real(control_plane: ControlPlane) -> Iterator[Asker]:
    with namespace_of_its_own(control_plane.client()) as cluster:
        yield Asker(cluster.api, cluster.namespace)


@pytest.fixture
def ours() -> Iterator[Asker]:
    with ApiServer(namespace=f"compare-{uuid.uuid4().hex[:8]}") as server:
        yield Asker(server.client(admin=True), server.namespace)


def compare(conversation: Conversation, ours: Asker, real: Asker) -> None:
    got = [normal(answer, ours.namespace) for answer in conversation(ours)]
    expected = [normal(answer, real.namespace) for answer in conversation(real)]
    for number, (mine, theirs) in enumerate(zip(got, expected, strict=True), start=1):
        assert mine == theirs, f"answer {number}"


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda item: item.__name__)
def test_the_answers_are_those_of_kubernetes(conversation: Conversation, ours: Asker, real: Asker) -> None:
    compare(conversation, ours, real)


@pytest.mark.parametrize("manifest", REFUSED_JOBS.values(), ids=REFUSED_JOBS)
def test_a_job_is_refused_for_the_same_fields(manifest: Any, ours: Asker, real: Asker) -> None:
    compare(lambda ask: iter([ask.create("jobs", manifest)]), ours, real)
    assert ours.create("jobs", manifest).status >= 400


@pytest.mark.parametrize("manifest", TAKEN_JOBS.values(), ids=TAKEN_JOBS)
def test_a_job_is_completed_as_kubernetes_completes_it(manifest: Any, ours: Asker, real: Asker) -> None:
    compare(lambda ask: iter([ask.create("jobs", manifest)]), ours, real)
    assert ours.all("jobs").body["items"]
