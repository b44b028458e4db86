"""Several processes train what one process trains."""

import os
import shutil
import signal
import time
from pathlib import Path

from safetensors.torch import load_file

from tests.trainer.conftest import Train, Workshop, distance, wait_for_line

IMPATIENT = """
import os
import sys
from functools import partial
import trainer.run
from trainer.__main__ import main
from trainer.workers import Workers
trainer.run.Workers = partial(Workers, patience_seconds=1.0)
os._exit(main(sys.argv[1:]))
"""
"""The trainer, which after a signal waits one second for itself to end, and not 15."""


def test_two_processes_make_the_weights_of_one(workshop: Workshop, train: Train) -> None:
    """The same global batch, divided; to the tolerance of sums in another order."""
    # Odd batches, so that one process has more images, and once all of them.
    training = {"batch_size": 3, "num_epochs": 3}
    process = workshop.start(workshop.request(style_id=2, **training), DEVICES="2")
    _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    assert "2 x CPU" in log
    alone = train(workshop.request(style_id=1, **training), DEVICES="1")
    assert alone.code == 0, alone.log
    assert "2 x CPU" not in alone.log
    one, two = (load_file(workshop.folder(style_id).weights) for style_id in (1, 2))
    assert distance(one, two) < 0.02


def test_training_on_two_devices_with_samples_completes(workshop: Workshop) -> None:
    """The first process draws them alone, for longer than a worker would take to end; that is no death."""
    samples = {"SAMPLE_PROMPTS": '["a hill"]', "SAMPLE_STEPS": "100"}
    process = workshop.start(workshop.request(batch_size=2), DEVICES="2", **samples)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    assert workshop.folder().samples.exists()


def test_worker_that_dies_interrupts_the_training_with_a_checkpoint(workshop: Workshop) -> None:
    """Waiting for it for ever would hold the other GPUs."""
    process = workshop.start(workshop.request(batch_size=2, num_epochs=400), DEVICES="2")
    wait_for_line(process, "epoch 2/400")
    workers = workers_of(process.pid)
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGKILL)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 75, log
    assert list(workshop.folder().checkpoints.glob("epoch-*"))


def test_worker_that_fails_before_it_meets_the_others_ends_the_wait_and_is_named(
    workshop: Workshop, tiny_base: Path, tmp_path: Path
) -> None:
    """The first process waits for it inside torch's C++ code, where a signal's handler cannot run."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    request = workshop.request(batch_size=2, num_epochs=400)
    process = workshop.start(request, ("-c", IMPATIENT), DEVICES="2", BASE_MODEL=str(base))
    wait_for_line(process, "Encoding")  # the first process has its UNet
    (base / "unet/diffusion_pytorch_model.safetensors").unlink()
    _, log = process.communicate(timeout=60)
    assert process.returncode == 75, log
    assert "The unet of BASE_MODEL" in log  # the worker's own words
    failure = workshop.outcome(75, log).failure
    assert failure is not None
    assert "process on device 1 has died (exit code 1;" in failure.failure_reason


def test_signal_that_reaches_a_worker_while_it_imports_ends_nothing(workshop: Workshop) -> None:
    """Ctrl-C goes to the whole group; the first process ends the others, and says why it ends itself."""
    process = workshop.start(workshop.request(batch_size=2), DEVICES="2")
    deadline = time.monotonic() + 60
    while not (workers := workers_of(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(workers[0], number)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log


def test_sigterm_ends_a_trainer_that_waits_for_a_stopped_worker(workshop: Workshop) -> None:
    """A collective waits in C++ for five minutes; the kubelet waits for 30 s, then nobody says why."""
    request = workshop.request(batch_size=2, num_epochs=400)
    process = workshop.start(request, ("-c", IMPATIENT), DEVICES="2")
    wait_for_line(process, "epoch 2/400")
    (worker,) = workers_of(process.pid)
    os.kill(worker, signal.SIGSTOP)
    wait_until_idle(process.pid)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=25)
    assert process.returncode == 75, log
    failure = workshop.outcome(75, log).failure
    assert failure is not None
    assert "waited for another device" in failure.failure_reason
    wait_until_gone(worker)


def test_killed_trainer_leaves_no_worker_behind(workshop: Workshop) -> None:
    """An orphan would hold its GPU for ever."""
    process = workshop.start(workshop.request(batch_size=2, num_epochs=400), DEVICES="2")
    wait_for_line(process, "epoch 2/400")
    (worker,) = workers_of(process.pid)
    process.kill()
    process.communicate(timeout=30)
    wait_until_gone(worker)


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def wait_until_idle(pid: int) -> None:
    """Return when a process has used no CPU for a second's worth of looks."""
    deadline = time.monotonic() + 30
    looks = [0.0]
    while len(looks) < 20 or looks[-1] > looks[-20]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        looks.append(float(fields[11]) + float(fields[12]))


def workers_of(pid: int) -> list[int]:
    """Return the child processes that train, by /proc; multiprocessing's helper is none."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
