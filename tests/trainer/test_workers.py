"""Several processes train what one process trains."""

import os
import signal
import time
from pathlib import Path

from safetensors.torch import load_file

from tests.trainer.conftest import Workshop, wait_for_line


def test_two_processes_make_the_weights_of_one(workshop: Workshop) -> None:
    """The same global batch, divided; to the tolerance of sums in another order."""
    weights = []
    for style_id, devices in ((1, "1"), (2, "2")):
        # Odd batches, so that one process has more images, and once all of them.
        request = workshop.request(style_id=style_id, batch_size=3, num_epochs=3)
        process = workshop.start(request, DEVICES=devices)
        _, log = process.communicate(timeout=120)
        assert process.returncode == 0, log
        assert ("2 x CPU" in log) == (devices == "2")
        weights.append(load_file(workshop.folder(style_id).weights))
    one, two = weights
    difference = sum(float((one[name] - two[name]).square().sum()) for name in one) ** 0.5
    change = sum(float(one[name].square().sum()) for name in one if name.endswith("up.weight")) ** 0.5
    assert change > 0
    assert difference < 0.02 * change


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


def test_killed_trainer_leaves_no_worker_behind(workshop: Workshop) -> None:
    """An orphan would hold its GPU for ever."""
    process = workshop.start(workshop.request(batch_size=2, num_epochs=400), DEVICES="2")
    wait_for_line(process, "epoch 2/400")
    (worker,) = workers_of(process.pid)
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def workers_of(pid: int) -> list[int]:
    """Return the child processes that train, by /proc; multiprocessing's helper is none."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
