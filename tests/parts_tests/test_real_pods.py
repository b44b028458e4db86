"""What a pod of a real node runs in a test ends as the test says; shown here without a node."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from tests.parts.api_server import ApiServer
from tests.parts.real_pods import RealPods
from tests.parts.waiting import wait_for
from tests.parts_tests.jobs import job


@pytest.fixture
def container(api_server: ApiServer) -> Any:
    """The container that the trainer's becomes, in a Job that the API server takes."""
    pods = RealPods(api_server.client(), api_server.namespace, "busybox")
    made = client.BatchV1Api(api_server.client()).create_namespaced_job("default", pods.runnable(job("a")))
    return made.spec.template.spec.containers[0]


def start(container: Any, folder: Path) -> subprocess.Popen[bytes]:
    mount = container.volume_mounts[0].mount_path
    script = container.command[2].replace(mount, str(folder))
    script = script.replace(container.termination_message_path, str(folder / "last-words"))
    return subprocess.Popen([*container.command[:2], script])


def test_it_ends_with_the_code_and_the_words_of_its_annotations(container: Any, tmp_path: Path) -> None:
    process = start(container, tmp_path)
    (tmp_path / "message").write_text('{"loss": 0.1}')
    (tmp_path / "code").write_text("65")
    assert process.wait(20) == 65
    assert (tmp_path / "last-words").read_text() == '{"loss": 0.1}'


def test_it_ends_at_once_when_it_is_deleted(container: Any, tmp_path: Path) -> None:
    process = start(container, tmp_path)
    # Until its trap is set it ends by the signal itself.
    wait_for(lambda: _catches(process.pid, signal.SIGTERM), 10, "the shell has set its trap")
    process.terminate()
    assert process.wait(20) == 143


def _catches(pid: int, number: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [caught] = [line.split()[1] for line in lines if line.startswith("SigCgt")]
    return bool(int(caught, 16) >> (number - 1) & 1)
