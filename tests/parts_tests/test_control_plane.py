"""The control plane says what is wrong with it, and is gone with its process."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.parts.control_plane import PROGRAMS, ControlPlane, ControlPlaneError
from tests.parts.waiting import wait_for

ROOT = Path(__file__).parents[2]
START_AND_WAIT = """
import signal, sys
from pathlib import Path
from tests.parts.control_plane import ControlPlane
ControlPlane(Path(sys.argv[1]), Path(sys.argv[2])).start()
print("ready", flush=True)
signal.pause()
"""


def test_programs_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "etcd").touch()
    with pytest.raises(ControlPlaneError, match="kube-apiserver, kube-controller-manager not found in"):
        ControlPlane(tmp_path / "plane", tmp_path).start()


def test_a_program_that_ends_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    for name in PROGRAMS:
        (tmp_path / name).write_text("#!/bin/sh\necho the disk is full >&2\nexit 3\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(ControlPlaneError, match=r"etcd has ended with code 3:\nthe disk is full"):
        ControlPlane(tmp_path / "plane", tmp_path).start()


@pytest.mark.cluster
def test_nothing_of_it_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        pytest.skip("KUBEBUILDER_ASSETS names no folder with etcd, kube-apiserver, kube-controller-manager")
    process = subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT, str(tmp_path / "plane"), assets],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        started = psutil.Process(process.pid).children(recursive=True)
        assert {Path(item.exe()).name for item in started} >= set(PROGRAMS)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    wait_for(lambda: not any(map(_runs, started)), 20, "all programs have ended")


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
