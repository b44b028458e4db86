"""A training on one machine outlives its dispatcher, or is started again, whatever is killed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dispatcher.backends.local import LocalBackend
from dispatcher.errors import DispatcherError
from dispatcher.job import Manifest
from tests.dispatcher.local_machine import (
    COUNT,
    UNTIL,
    ended,
    machine,
    processes_of,
    script,
    starts,
    training,
)
from tests.dispatcher.support import wait_until

HOST = """
import json, sys, threading
from datetime import timedelta
from pathlib import Path
from dispatcher.backends.local import LocalBackend
backend = LocalBackend(Path(sys.argv[1]), Path(sys.argv[2]), ["cpu"], timedelta(seconds=0.05))
backend.create(json.loads(sys.argv[3]))
backend.run(lambda name: None, threading.Event())
"""

pytestmark = pytest.mark.usefixtures("no_process_is_left")


@contextmanager
def host(tmp_path: Path, job: Manifest) -> Iterator[subprocess.Popen[bytes]]:
    """Run a LocalBackend with one Job in a process that can be killed."""
    arguments = [str(tmp_path / "state"), str(tmp_path / "models"), json.dumps(job)]
    process = subprocess.Popen([sys.executable, "-c", HOST, *arguments])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_kill_9_of_the_dispatcher_leaves_one_training_whose_end_the_next_one_learns(tmp_path: Path) -> None:
    with host(tmp_path, training(script(COUNT + UNTIL + "raise SystemExit(65)", tmp_path))) as process:
        wait_until(lambda: starts(tmp_path) == 1)
        process.kill()
        process.wait()
        with machine(tmp_path) as local:
            # It goes on, and nobody starts it again or forgets that its slot is taken.
            local.backend.create(training("", "lora-43-b"))
            wait_until(lambda: local.changes)
            assert local.pods("lora-43-b") == []
            (tmp_path / "go").touch()
            assert local.wait_over("lora-42-a") == ("Failed", "PodFailurePolicy")
            assert local.exit_codes("lora-42-a") == [65]
            assert local.wait_over("lora-43-b")[0] == "Complete"
    assert starts(tmp_path) == 1


def test_a_training_that_ended_while_no_dispatcher_ran_is_known_to_have_ended_so(tmp_path: Path) -> None:
    with host(tmp_path, training(script(COUNT + UNTIL, tmp_path))) as process:
        wait_until(lambda: starts(tmp_path) == 1)
        process.kill()
        process.wait()
        (tmp_path / "go").touch()
        wait_until(lambda: not processes_of(tmp_path))
        with machine(tmp_path) as local:
            assert local.wait_over("lora-42-a")[0] == "Complete"
    assert starts(tmp_path) == 1


def test_kill_9_of_dispatcher_and_training_starts_it_again_and_costs_no_retry(tmp_path: Path) -> None:
    """As when the machine goes down."""
    resumes = COUNT + "import os\nif len(open('{starts}').read()) == 1: os.killpg(0, 9)\n"
    with machine(tmp_path) as local:
        local.backend.create(training(script(resumes, tmp_path), backoffLimit=0))
        assert local.wait_over("lora-42-a")[0] == "Complete"
        assert local.exit_codes("lora-42-a") == [137, 0]


def test_a_shim_killed_alone_does_not_let_a_second_training_run_beside_the_first(tmp_path: Path) -> None:
    kills = COUNT + "import os\nif len(open('{starts}').read()) == 1: os.kill(os.getppid(), 9)\n" + UNTIL
    with machine(tmp_path) as local:
        local.backend.create(training(script(kills, tmp_path)))
        wait_until(lambda: starts(tmp_path) == 1)
        pid = int((tmp_path / "state/jobs/lora-42-a/pods/lora-42-a-1/pid").read_text())
        wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")
        local.backend.create(training("", "lora-43-b"))
        assert ended(local.pods("lora-42-a")[0]) == {}
        assert local.pods("lora-43-b") == []
        (tmp_path / "go").touch()
        assert local.wait_over("lora-42-a")[0] == "Complete"


def test_sigterm_interrupts_costs_no_retry_and_the_next_start_resumes(tmp_path: Path) -> None:
    saves = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75))\n" + COUNT
    job = training(script(saves + "\n" + UNTIL, tmp_path), backoffLimit=0)
    with machine(tmp_path) as local:
        local.backend.create(job)
        wait_until(lambda: starts(tmp_path) == 1)
    # Stopped: nothing runs, and the Job is not over.
    assert processes_of(tmp_path) == []
    (tmp_path / "go").touch()
    with machine(tmp_path) as local:
        assert local.wait_over("lora-42-a")[0] == "Complete"
        assert local.exit_codes("lora-42-a") == [75, 0]
    assert starts(tmp_path) == 2


def test_sigterm_right_after_the_start_is_not_lost(tmp_path: Path) -> None:
    """The shim is there before the training: a signal in between must not leave it training on."""
    for _ in range(3):
        with machine(tmp_path) as local:
            local.backend.create(
                training(script(UNTIL, tmp_path)),
            )
            wait_until(lambda: any(not ended(pod) for pod in local.pods("lora-42-a")))
        assert processes_of(tmp_path) == []


WORKER = (
    "import signal, time; signal.signal(15, signal.SIG_IGN); open('{folder}/worker', 'w'); time.sleep(60)"
)


def test_what_a_training_leaves_running_ends_with_it(tmp_path: Path) -> None:
    trains = (
        "import subprocess, sys, os, time\n"
        f"subprocess.Popen([sys.executable, '-c', {script(WORKER, tmp_path)!r}])\n"
        f"while not os.path.exists({str(tmp_path / 'worker')!r}): time.sleep(0.01)\n"
    )
    with machine(tmp_path) as local:
        local.backend.create(training(trains))
        assert local.wait_over("lora-42-a")[0] == "Complete"
        wait_until(lambda: not processes_of(tmp_path / "worker"), 5, "the worker is gone")


def test_a_stop_ends_workers_that_ignore_sigterm_with_their_training(tmp_path: Path) -> None:
    trains = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {script(WORKER, tmp_path)!r}])\n"
        "time.sleep(60)"
    )
    job = training(trains)
    job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 1
    with machine(tmp_path) as local:
        local.backend.create(job)
        wait_until(lambda: (tmp_path / "worker").exists())
        local.backend.patch("lora-42-a", {"spec": {"suspend": True}})
        wait_until(lambda: ended(local.pods("lora-42-a")[0]), 5)
        wait_until(lambda: not processes_of(tmp_path / "worker"), 5, "the worker is gone")
        assert local.conditions("lora-42-a") == []


def test_a_second_dispatcher_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with machine(tmp_path), pytest.raises(DispatcherError, match="LOCAL_STATE_DIR"):
        LocalBackend(tmp_path / "state", tmp_path / "models", ["cpu"])
    with machine(tmp_path):  # the first has let go of it
        pass
