"""Fixtures for the parts in tests/parts: a broker for the session, the rest fresh for each test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import config

from tests.parts.api_server import ApiServer
from tests.parts.broker import RabbitNode, RabbitNotFoundError
from tests.parts.cluster import Cluster, Pods, chosen_cluster, is_real, namespace_of_its_own
from tests.parts.control_plane import ControlPlane
from tests.parts.job_controller import JobController
from tests.parts.node_stand_in import NodeStandIn
from tests.parts.real_pods import RealPods
from tests.parts.receiver import Receiver


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from tests that are for the CPU: there a training is the same to the last bit."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_report_header() -> str:
    return f"cluster tests: on {chosen_cluster()}"


def _without_broker(reason: str) -> None:
    """Skip on a person's machine; fail where a skip would hide that nothing was tested."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    """A private RabbitMQ node of the session: queues of other tests are in it. Start what you stop."""
    node = RabbitNode(tmp_path_factory.mktemp("rabbit"))
    try:
        node.start()
    except RabbitNotFoundError as error:
        _without_broker(str(error))
    yield node
    node.stop()


@pytest.fixture(scope="session")
def amqp_url(request: pytest.FixtureRequest) -> str:
    """URL of the broker in AMQP_URL, else of a private one; take queue names that nobody else has."""
    url = os.environ.get("AMQP_URL")
    if url:
        return url
    node: RabbitNode = request.getfixturevalue("rabbit")
    return node.url


@pytest.fixture
def own_rabbit(tmp_path: Path) -> Iterator[RabbitNode]:
    """A RabbitMQ node of this test alone, which may stop, kill and restart it; it takes 3 s to start."""
    node = RabbitNode(tmp_path / "rabbit")
    try:
        node.start()
    except RabbitNotFoundError as error:
        _without_broker(str(error))
    yield node
    node.stop()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A backend that takes the token "backend-token"."""
    with Receiver("backend-token") as receiver:
        yield receiver


@pytest.fixture
def api_server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def controller(api_server: ApiServer) -> Iterator[JobController]:
    """Plays Job controller and kubelet of api_server when a test tells it to."""
    with JobController(api_server) as controller:
        yield controller


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A real control plane of the session, from the programs in KUBEBUILDER_ASSETS."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        pytest.skip("KUBEBUILDER_ASSETS names no folder with etcd, kube-apiserver, kube-controller-manager")
    with ControlPlane(tmp_path_factory.mktemp("control-plane"), Path(assets)) as plane:
        yield plane


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster of KUBECONFIG, else a control plane, else the server in this process; one namespace."""
    if os.environ.get("KUBECONFIG"):
        with namespace_of_its_own(config.new_client_from_config()) as cluster:
            yield cluster
    elif os.environ.get("KUBEBUILDER_ASSETS"):
        plane: ControlPlane = request.getfixturevalue("control_plane")
        with namespace_of_its_own(plane.client()) as cluster:
            yield cluster
    else:
        server: ApiServer = request.getfixturevalue("api_server")
        controller: JobController = request.getfixturevalue("controller")
        controller.run_jobs()
        yield Cluster(server.client(admin=True), server.namespace)


@pytest.fixture
def pods(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Pods]:
    """Who runs the cluster's pods: its nodes where it has some, else a stand-in for one."""
    if not cluster.has_nodes():
        ours = None if is_real() else request.getfixturevalue("api_server").write_log
        with NodeStandIn(cluster.api, cluster.namespace, ours) as stand_in:
            yield stand_in
        return
    image = os.environ.get("TEST_IMAGE")
    if not image:
        pytest.skip("the cluster has nodes: TEST_IMAGE must name an image with a shell that they can run")
    yield RealPods(cluster.api, cluster.namespace, image)
