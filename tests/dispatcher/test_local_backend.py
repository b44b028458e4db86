"""Jobs as child processes: what a cluster guarantees must hold on one machine too, whatever is killed."""

import json
import signal
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import pytest

from dispatcher.backends.local import LocalBackend
from dispatcher.backends.local_pod import LocalPod
from dispatcher.diagnosis import Phase, diagnose
from dispatcher.errors import DispatcherError, JobConflictError, StaleJobError
from dispatcher.job import trainer_container
from job_contract import names
from tests.dispatcher.local_machine import (
    COUNT,
    UNTIL,
    ended,
    machine,
    script,
    starts,
    training,
)
from tests.dispatcher.support import wait_until

pytestmark = pytest.mark.usefixtures("no_process_is_left")


# Ends


def test_a_training_that_succeeds_is_complete_with_its_termination_message(tmp_path: Path) -> None:
    writes = "import os; open(os.environ['TERMINATION_MESSAGE_PATH'], 'w').write('{\"a\": 1}')"
    with machine(tmp_path) as local:
        local.backend.create(training(writes))
        assert local.wait_over("lora-42-a")[0] == "Complete"
        assert local.conditions("lora-42-a") == ["SuccessCriteriaMet", "Complete"]
        assert ended(local.pods("lora-42-a")[0])["message"] == '{"a": 1}'


def test_a_failure_is_retried_three_times_with_a_growing_back_off(tmp_path: Path) -> None:
    with machine(tmp_path) as local:
        local.backend.create(training("raise SystemExit(69)"))
        assert local.wait_over("lora-42-a") == ("Failed", "BackoffLimitExceeded")
        pods = local.pods("lora-42-a")
    assert [ended(pod)["exitCode"] for pod in pods] == [69] * 4
    for number in range(3):
        waited = pods[number + 1]["status"]["startTime"], ended(pods[number])["finishedAt"]
        assert seconds_between(waited[1], waited[0]) >= 0.05 * 2**number


def seconds_between(first: str, second: str) -> float:
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


def test_a_retry_that_succeeds_completes_the_job(tmp_path: Path) -> None:
    flaky = script(COUNT + "raise SystemExit(0 if len(open('{starts}').read()) == 2 else 70)", tmp_path)
    with machine(tmp_path) as local:
        local.backend.create(training(flaky))
        assert local.wait_over("lora-42-a")[0] == "Complete"
        assert local.exit_codes("lora-42-a") == [70, 0]


@pytest.mark.parametrize("code", [64, 65, 78])
def test_a_code_that_no_retry_can_help_is_not_retried(tmp_path: Path, code: int) -> None:
    with machine(tmp_path) as local:
        local.backend.create(training(f"raise SystemExit({code})"))
        assert local.wait_over("lora-42-a") == ("Failed", "PodFailurePolicy")
        assert local.exit_codes("lora-42-a") == [code]


def test_a_trainer_killed_by_the_kernel_counts_as_failed(tmp_path: Path) -> None:
    with machine(tmp_path) as local:
        local.backend.create(training("import os; os.kill(os.getpid(), 9)", backoffLimit=0))
        assert local.wait_over("lora-42-a") == ("Failed", "BackoffLimitExceeded")
        assert local.exit_codes("lora-42-a") == [137]


def test_a_job_past_its_deadline_is_stopped_though_it_ignores_sigterm(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    job = training(script(COUNT + stubborn, tmp_path), activeDeadlineSeconds=1)
    job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 0.3
    with machine(tmp_path) as local:
        local.backend.create(job)
        assert local.wait_over("lora-42-a") == ("Failed", "DeadlineExceeded")
        assert local.exit_codes("lora-42-a") == [137]


@pytest.mark.parametrize("kind", ["no such command", "not executable as a program", "no command at all"])
def test_a_command_that_cannot_be_started_fails_the_job_and_says_why(tmp_path: Path, kind: str) -> None:
    """Neither forever retried, nor told as processing, nor the end of the whole backend."""
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    job = training("")
    container = trainer_container(job)
    container["command"] = {"no such command": ["no-such-command"], "no command at all": []}.get(
        kind, [str(broken)]
    )
    with machine(tmp_path) as local:
        local.backend.create(job)
        local.backend.create(training("", "lora-43-b"))
        assert local.wait_over("lora-42-a") == ("Failed", "BackoffLimitExceeded")
        snapshot = local.backend.snapshot("lora-42-a")
        assert snapshot
        assert len(snapshot.pods) == 4
        diagnosis = diagnose(snapshot.job, snapshot.pods)
        assert not diagnosis.started
        assert diagnosis.failure
        assert "could not be started" in diagnosis.failure.failure_reason
        assert local.wait_over("lora-43-b")[0] == "Complete"


def test_a_manifest_that_cannot_be_carried_out_stops_no_other_job(tmp_path: Path) -> None:
    bad = training("")
    trainer_container(bad)["volumeMounts"].append({"name": "no-such-volume", "mountPath": "/x"})
    with machine(tmp_path) as local:
        local.backend.create(bad)
        local.backend.create(training("", "lora-43-b"))
        assert local.wait_over("lora-43-b")[0] == "Complete"


# What the container sees


def test_mount_paths_are_rewritten_and_secrets_stay_behind(tmp_path: Path) -> None:
    report = (
        "import json, os, sys; json.dump({{'argv': sys.argv[1:], 'env': dict(os.environ), "
        "'request': json.load(open(sys.argv[1]))}}, open('{folder}/seen', 'w'))"
    )
    job = training(script(report, tmp_path))
    trainer_container(job)["args"] = ["/etc/lora/request.json", "/models", "/modelsx"]
    secrets = {"AMQP_URL": "amqp://u:p@h", "BACKEND_TOKEN": "t", "webhook_secret": "whsec_"}
    with machine(tmp_path, HF_TOKEN="kept", **secrets) as local:
        local.backend.create(job)
        assert local.wait_over("lora-42-a")[0] == "Complete"
    seen = json.loads((tmp_path / "seen").read_text())
    assert seen["request"]["task_id"] == "lora-42-a"
    assert seen["argv"][1:] == [str(tmp_path / "models"), "/modelsx"]
    assert seen["env"]["MODELS_DIR"] == str(tmp_path / "models")
    assert seen["env"]["HF_TOKEN"] == "kept"
    assert not {name.upper() for name in seen["env"]} & {"AMQP_URL", "BACKEND_TOKEN", "WEBHOOK_SECRET"}


def test_one_job_at_a_time_on_a_cpu_in_the_order_of_their_creation(tmp_path: Path) -> None:
    writes = "open('{folder}/trace', 'a').write"
    traces = f"import time; {writes}('+'); time.sleep(0.2); {writes}('-')"
    with machine(tmp_path) as local:
        for name in ("lora-c", "lora-a", "lora-b"):
            local.backend.create(training(script(traces, tmp_path), name))
        for name in ("lora-c", "lora-a", "lora-b"):
            assert local.wait_over(name)[0] == "Complete"
        began = {name: local.pods(name)[0]["status"]["startTime"] for name in local.backend.names()}
    assert (tmp_path / "trace").read_text() == "+-+-+-"
    assert sorted(began, key=lambda name: began[name]) == ["lora-c", "lora-a", "lora-b"]


def test_two_gpus_train_two_jobs_at_once_and_each_sees_its_own(tmp_path: Path) -> None:
    sees = "import os; open('{folder}/gpu-' + os.environ['CUDA_VISIBLE_DEVICES'], 'a').write('x')\n" + UNTIL
    with machine(tmp_path, "0", "1") as local:
        for name in ("lora-a", "lora-b", "lora-c"):
            local.backend.create(training(script(sees, tmp_path), name))
        wait_until(lambda: (tmp_path / "gpu-0").exists() and (tmp_path / "gpu-1").exists())
        assert local.pods("lora-c") == []
        (tmp_path / "go").touch()
        for name in ("lora-a", "lora-b", "lora-c"):
            assert local.wait_over(name)[0] == "Complete"
    assert len((tmp_path / "gpu-0").read_text() + (tmp_path / "gpu-1").read_text()) == 3


def test_a_job_of_two_gpus_gets_two_and_waits_until_they_are_free(tmp_path: Path) -> None:
    sees = "import os; open('{folder}/gpu-' + os.environ['CUDA_VISIBLE_DEVICES'], 'a').write('x')\n" + UNTIL
    wide = training(script(sees, tmp_path), "lora-b")
    trainer_container(wide)["resources"]["limits"]["nvidia.com/gpu"] = "2"
    with machine(tmp_path, "GPU-x", "GPU-y") as local:
        local.backend.create(training(script(sees, tmp_path), "lora-a"))
        wait_until(lambda: (tmp_path / "gpu-GPU-x").exists())
        local.backend.create(wide)
        (tmp_path / "go").touch()
        assert local.wait_over("lora-b")[0] == "Complete"
    assert (tmp_path / "gpu-GPU-x,GPU-y").exists()


# Jobs that wait, end and go


def test_a_suspended_job_starts_when_it_is_released(tmp_path: Path) -> None:
    with machine(tmp_path) as local:
        local.backend.create(training(script(COUNT, tmp_path), suspend=True))
        local.backend.create(training("", "lora-43-b"))
        local.wait_over("lora-43-b")
        assert starts(tmp_path) == 0
        local.backend.patch("lora-42-a", {"spec": {"suspend": False}})
        assert local.wait_over("lora-42-a")[0] == "Complete"


def test_an_expired_job_stays_until_its_status_is_relayed(tmp_path: Path) -> None:
    with machine(tmp_path) as local:
        local.backend.create(training("", ttlSecondsAfterFinished=0))
        local.wait_over("lora-42-a")
        local.backend.create(training("", "lora-43-b"))
        local.wait_over("lora-43-b")  # so the loop has looked at the first one again
        assert local.job("lora-42-a")["metadata"]["finalizers"] == [names.FINALIZER]
        local.backend.patch("lora-42-a", {"metadata": {"finalizers": []}})
        wait_until(lambda: local.backend.snapshot("lora-42-a") is None)
        wait_until(lambda: not (tmp_path / "state/jobs/lora-42-a").exists())
        assert local.changes[-1] == "lora-42-a"
    with machine(tmp_path) as local:
        assert local.backend.names() == ["lora-43-b"]


def test_a_stopped_job_that_is_gone_before_its_grace_period_ended_leaves_no_error(tmp_path: Path) -> None:
    """The timer that would have killed it looks into a folder that is not there any more."""
    job = training("import time; time.sleep(60)", activeDeadlineSeconds=1, ttlSecondsAfterFinished=0)
    job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 1
    job["metadata"]["finalizers"] = []
    with machine(tmp_path) as local:
        local.backend.create(job)
        wait_until(lambda: local.backend.snapshot("lora-42-a") is None)
        wait_until(lambda: not any(isinstance(thread, threading.Timer) for thread in threading.enumerate()))


def test_a_removal_that_was_cut_off_leaves_nothing_to_a_job_of_the_same_name(tmp_path: Path) -> None:
    rest = tmp_path / "state/jobs/lora-42-a/pods/lora-42-a-2"
    rest.mkdir(parents=True)
    (rest / "pod.json").write_text(json.dumps({"metadata": {"name": "lora-42-a-2"}, "slots": []}))
    with machine(tmp_path) as local:
        assert local.backend.names() == []
        local.backend.create(training(""))
        local.wait_over("lora-42-a")
    with machine(tmp_path) as local:
        assert local.exit_codes("lora-42-a") == [0]


def test_creating_twice_makes_one_job_and_another_request_is_a_conflict(tmp_path: Path) -> None:
    other = training("")
    text = other["spec"]["template"]["metadata"]["annotations"]
    text[names.REQUEST_ANNOTATION] = text[names.REQUEST_ANNOTATION].replace("a.jpg", "b.jpg")
    with machine(tmp_path) as local:
        assert local.backend.create(training("")) is True
        local.wait_over("lora-42-a")
        assert local.backend.create(training("")) is False
        with pytest.raises(JobConflictError, match="task_id"):
            local.backend.create(other)
        assert local.exit_codes("lora-42-a") == [0]


def test_a_patch_of_a_version_that_is_past_is_stale(tmp_path: Path) -> None:
    with machine(tmp_path) as local:
        local.backend.create(training("", suspend=True))
        version = local.job("lora-42-a")["metadata"]["resourceVersion"]
        local.backend.patch("lora-42-a", {"metadata": {"annotations": {"a": "1"}}}, version)
        with pytest.raises(StaleJobError):
            local.backend.patch("lora-42-a", {"metadata": {"finalizers": []}}, version)
        assert local.job("lora-42-a")["metadata"]["annotations"] == {"a": "1"}


def test_the_end_of_the_log_is_there_while_it_trains_and_after(tmp_path: Path) -> None:
    prints = "print('epoch 1/2 ETA 0:00:01')\n" + UNTIL + "print('the end')"
    with machine(tmp_path) as local:
        local.backend.create(training(script(prints, tmp_path)))
        wait_until(lambda: "epoch 1/2" in local.backend.log_tail("lora-42-a-1", 5))
        (tmp_path / "go").touch()
        local.wait_over("lora-42-a")
        assert local.backend.log_tail("lora-42-a-1", 1) == "the end"
        assert local.backend.log_tail("no-such-pod", 1) == ""


def test_who_looks_on_beside_the_dispatcher_sees_the_jobs_and_changes_nothing(tmp_path: Path) -> None:
    with machine(tmp_path) as local:
        local.backend.create(training(script(UNTIL, tmp_path)))
        wait_until(lambda: local.pods("lora-42-a"))
        onlooker = LocalBackend(tmp_path / "state", tmp_path / "models", ["cpu"], owner=False)
        snapshot = onlooker.snapshot("lora-42-a")
        assert snapshot
        assert diagnose(snapshot.job, snapshot.pods).phase is Phase.RUNNING
        with pytest.raises(DispatcherError):
            onlooker.patch("lora-42-a", {"metadata": {"finalizers": []}})
        (tmp_path / "go").touch()
        local.wait_over("lora-42-a")
        onlooker.load()
        snapshot = onlooker.snapshot("lora-42-a")
        assert snapshot
        assert diagnose(snapshot.job, snapshot.pods).phase is not Phase.RUNNING


def test_signals_go_to_the_training_that_runs_and_never_to_a_recycled_pid(tmp_path: Path) -> None:
    """A pod folder keeps the pid of a shim that is long gone."""
    with machine(tmp_path) as local:
        local.backend.create(training(""))
        local.wait_over("lora-42-a")
        victim = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
        )
        (tmp_path / "state/jobs/lora-42-a/pods/lora-42-a-1/pid").write_text(str(victim.pid))
        LocalPod.load(tmp_path / "state/jobs/lora-42-a/pods/lora-42-a-1").signal(signal.SIGKILL)
        assert victim.poll() is None
        victim.kill()
        victim.wait()
