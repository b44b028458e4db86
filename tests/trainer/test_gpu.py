"""What only a GPU shows. `make test-gpu` runs these tests and no others, which are for the CPU."""

import logging
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bench_base import build_base
from tests.trainer.conftest import Outcome, Workshop, distance, wait_for_line
from tests.trainer.rig import Rig
from trainer.graphed_step import GraphedStep, record_cuda_graph

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU is needed, and make test-gpu"),
]

needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed")

EPOCHS = 50
"""Of four pictures: 200 steps, enough for a CUDA graph after an interruption, too."""
GRAPH = "The steps run as a CUDA graph from now on"
CARD_MIB = 5600
"""What a 6 GB card has left beside CUDA's context."""
LIMITED = f"""
import os
import sys
import torch
from trainer.__main__ import main
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction({CARD_MIB} * 2**20 / total, 0)
os._exit(main(sys.argv[1:]))
"""
"""The trainer on a part of the GPU's memory."""


@pytest.fixture(scope="module")
def full_size_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 1.5's architecture and size with random weights."""
    return build_base(tmp_path_factory.mktemp("full-size"), full_size=True, half=True)


def run(
    workshop: Workshop, request: list[str], program: Sequence[str] = ("-m", "trainer"), **settings: str
) -> Outcome:
    """Run a trainer to its good end, as a process of its own."""
    process = workshop.start(request, program, REQUIRE_CUDA="true", **settings)
    _, log = process.communicate(timeout=280)
    assert process.returncode == 0, log
    outcome = workshop.outcome(process.returncode, log)
    assert outcome.result is not None
    assert not outcome.result.notes
    return outcome


def weights(workshop: Workshop, style_id: int) -> dict[str, Tensor]:
    return load_file(workshop.folder(style_id).weights)


def graphed(rig: Rig) -> GraphedStep:
    return GraphedStep(rig.parts.eager_step(), rig.parts.adapter.gradients, record_cuda_graph, exact=False)


def test_steps_on_a_gpu_are_those_of_the_cpu(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that CUDA does otherwise (layout, kernels, optimizer) nothing may change what is learned."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    rigs = [Rig(tiny_base, torch.float32, device, num_epochs=3) for device in ("cpu", "cuda")]
    for rig in rigs:
        rig.training().train()
    losses = [torch.tensor([metrics.loss for metrics in rig.epochs]) for rig in rigs]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)
    cpu, gpu = (rig.weights.cpu() for rig in rigs)
    assert (gpu - cpu).norm() < 1e-2 * cpu.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_cuda_graph_trains_what_eager_steps_train(
    tiny_base: Path, caplog: pytest.LogCaptureFixture, dtype: torch.dtype, batch_size: int
) -> None:
    caplog.set_level(logging.INFO)
    eager = Rig(tiny_base, dtype, "cuda", num_epochs=5, batch_size=batch_size)
    eager.training().train()
    rig = Rig(tiny_base, dtype, "cuda", num_epochs=5, batch_size=batch_size)
    rig.training(gradient_step=graphed(rig)).train()
    assert [GRAPH in line for line in caplog.messages] == [True]
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    losses = [torch.tensor([metrics.loss for metrics in one.epochs]) for one in (rig, eager)]
    torch.testing.assert_close(*losses, rtol=tolerance, atol=0)
    assert (rig.weights - eager.weights).norm() < 10 * tolerance * eager.weights.norm()


def test_invalid_capture_leaves_an_allocator_that_gives_memory_back() -> None:
    x = torch.ones(2**28, device="cuda")

    def waits() -> Tensor:
        y = x * 2
        if torch.cuda.is_current_stream_capturing():
            y.sum().item()
        return y

    before = torch.cuda.memory_reserved()
    with suppress(RuntimeError):  # pytest.raises would keep the error, and with it y
        record_cuda_graph(waits)
        pytest.fail("nothing was raised")
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - before < 2**28


@pytest.mark.parametrize("graphs", ["auto", "off"])
def test_interrupted_training_ends_with_the_weights_of_an_undisturbed_one(
    workshop: Workshop, graphs: str
) -> None:
    """To 1e-5, by the tests of all other devices bit for bit; SIGTERM first, then kill -9."""
    whole = run(workshop, workshop.request(style_id=1, num_epochs=EPOCHS), CUDA_GRAPHS=graphs)
    assert (GRAPH in whole.log) == (graphs == "auto")
    request = workshop.request(style_id=2, num_epochs=EPOCHS)
    for number, (name, code) in enumerate([(signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)], 1):
        process = workshop.start(request, CUDA_GRAPHS=graphs)
        wait_for_line(process, f"epoch {12 * number}/{EPOCHS}")
        process.send_signal(name)
        process.communicate(timeout=20)
        assert process.returncode == code
    resumed = run(workshop, request, CUDA_GRAPHS=graphs)
    assert "Going on from the checkpoint" in resumed.log
    assert distance(weights(workshop, 1), weights(workshop, 2)) < 1e-5


def test_training_of_sd15s_size_fits_a_card_of_6_gb(workshop: Workshop, full_size_base: Path) -> None:
    """With all that comes with it: encoding before, samples after."""
    outcome = run(
        workshop,
        workshop.request(num_epochs=2),
        ("-c", LIMITED),
        BASE_MODEL=str(full_size_base),
        RESOLUTION="512",
        SAMPLE_PROMPTS='["a hill"]',
        SAMPLE_STEPS="2",
    )
    assert "out of memory" not in outcome.log
    assert workshop.folder().samples.exists()


def test_batch_that_the_memory_does_not_hold_is_trained_in_parts(
    workshop: Workshop, full_size_base: Path
) -> None:
    """A batch of eight asks for some 8 GB, so that it goes through the UNet by four, or fewer, at a time."""
    pictures = [str(path) for path in workshop.pictures * 2]
    outcome = run(
        workshop,
        workshop.request(num_epochs=2, batch_size=8, image_paths=pictures),
        ("-c", LIMITED),
        BASE_MODEL=str(full_size_base),
        RESOLUTION="512",
    )
    assert "going on with at most" in outcome.log


@needs_two
def test_two_gpus_make_the_weights_of_one(workshop: Workshop) -> None:
    for style_id, devices in ((1, "1"), (2, "2")):
        outcome = run(
            workshop,
            workshop.request(style_id=style_id, batch_size=4, num_epochs=5),
            DEVICES=devices,
            MIXED_PRECISION="no",
        )
        assert ("2 x " in outcome.log) == (devices == "2")
    assert distance(weights(workshop, 1), weights(workshop, 2)) < 0.02
