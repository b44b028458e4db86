"""What a step asks of a CUDA device, seen without one: see fake_cuda.py. Values are not computed here."""

from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from bench_bounds import TFLOP_PER_IMAGE
from tests.trainer.bench_roofline import Work, work_of_the_plain_loop, work_of_the_trainer
from tests.trainer.fake_cuda import CUDA, fake_cuda
from tests.trainer.fake_training import SIDE, TEXT_WIDTH, FakeTraining, record_step, recorded_step
from tests.trainer.operator_log import Operator, OperatorLog

PRODUCTS: Final = {
    "mm": 2,
    "addmm": 3,
    "addmm_": 3,
    "bmm": 2,
    "baddbmm": 3,
    "convolution": 2,
    "convolution_backward": 3,
    "_scaled_dot_product_flash_attention": 3,
    "_scaled_dot_product_flash_attention_backward": 4,
}
"""The operators that tensor cores are for, and how many of their first operands they multiply or add."""

REFUSED_BY_CUDA: Final = {
    "_adaptive_avg_pool2d_backward",
    "_embedding_bag_backward",
    "bincount",
    "cumsum",
    "grid_sampler_2d_backward",
    "histc",
    "kthvalue",
    "max_unpool2d",
    "median",
    "nll_loss2d_forward",
    "put_",
    "reflection_pad2d_backward",
    "scatter_reduce",
    "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward",
}
"""Operators of pictures and texts without a deterministic kernel (torch.use_deterministic_algorithms)."""


def what_a_graph_cannot_hold(operators: list[Operator]) -> list[str]:
    """Return the operators that a CUDA graph's recording forbids, and that cost a device its queue.

    A CPU's scalar is allowed where it is an operand: a kernel gets it by value.
    """
    return [
        str(operator)
        for operator in operators
        if operator.name in {"_local_scalar_dense", "_pin_memory"}
        or any(operand.device == "cpu" for operand in operator.outputs)
        or any(
            operand.device == "cpu" and (operand.shape or operator.name in {"_to_copy", "copy_"})
            for operand in operator.inputs
        )
    ]


@pytest.mark.parametrize(
    "options",
    [{}, {"checkpointing": True}, {"batch_size": 4}, {"dtype": torch.float32}],
    ids=["plain", "checkpointing", "batch of 4", "float32"],
)
def test_step_neither_waits_for_the_device_nor_copies_to_it(tiny_base: Path, options: dict[str, Any]) -> None:
    """Either makes the recording of a CUDA graph fail. Operands on two devices raise by themselves."""
    assert what_a_graph_cannot_hold(recorded_step(tiny_base, **options).operators) == []


@pytest.mark.parametrize("options", [{}, {"checkpointing": True}, {"dtype": torch.float32}])
def test_step_has_no_operator_that_cuda_refuses(tiny_base: Path, options: dict[str, Any]) -> None:
    """Where everything is to be deterministic, as on CUDA it is, one such operator ends every training."""
    assert not {operator.name for operator in recorded_step(tiny_base, **options).operators} & REFUSED_BY_CUDA


def test_step_that_waits_or_copies_is_caught(tiny_base: Path) -> None:
    def spoil(output: Tensor) -> Tensor:
        output = output * output.mean().item()
        output = output if output.isfinite().all() else -output
        output = output * torch.zeros(()).to(CUDA)
        return output + torch.zeros(64).to(CUDA)

    assert what_a_graph_cannot_hold(record_step(tiny_base, spoil=spoil).operators) == [
        "_local_scalar_dense(cuda float16[]) -> ",
        "_local_scalar_dense(cuda bool[]) -> ",
        "zeros() -> cpu float32[]",
        "_to_copy(cpu float32[]) -> cuda float32[]",
        "zeros() -> cpu float32[64]",
        "_to_copy(cpu float32[64]) -> cuda float32[64]",
    ]


def test_operands_on_two_devices_are_caught(tiny_base: Path) -> None:
    with pytest.raises(RuntimeError, match="same device, but found at least two devices, cuda:0 and cpu"):
        record_step(tiny_base, spoil=lambda output: output + torch.zeros(64))


def test_epoch_is_drawn_with_one_copy_of_each_kind(tiny_base: Path) -> None:
    """A copy for each image is a launch for each image."""
    with fake_cuda() as mode, OperatorLog() as log:
        training = FakeTraining(mode, log, tiny_base)
        log.begin()
        training.draw()
    copies = [one.name for one in log.operators if {"cpu"} == one.devices_in and {"cuda"} == one.devices_out]
    assert copies == ["_to_copy"] * 3


def test_fp16_step_multiplies_in_fp16_and_keeps_its_weights_in_fp32(tiny_base: Path) -> None:
    """One float32 factor takes a product off the tensor cores; fp16 masters lose small steps."""
    step = recorded_step(tiny_base)
    products = [one for one in step.operators if one.name in PRODUCTS]
    assert len(products) > 500
    assert {operand.dtype for one in products for operand in one.inputs[: PRODUCTS[one.name]]} == {
        torch.float16
    }
    (adamw,) = (one for one in step.operators if one.name == "_fused_adamw_")
    assert {operand.dtype for operand in adamw.inputs} == {torch.float32}
    assert step.loss_dtype == torch.float32


def test_fp16_step_casts_its_inputs_and_its_result_and_nothing_between(tiny_base: Path) -> None:
    """peft and autocast cast every layer's activations: kernels, and memory for both copies."""
    step = recorded_step(tiny_base)
    casts = Counter(
        (one.inputs[0].dtype, one.outputs[0].dtype, tuple(one.inputs[0].shape))
        for one in step.operators
        if one.name == "_to_copy" and one.inputs[0].shape.numel() > 1
    )
    latents = (1, 4, SIDE, SIDE)
    assert casts == {
        (torch.float32, torch.float16, latents): 2,  # noisy latents, and the gradient of the result
        (torch.float32, torch.float16, (1, 77, TEXT_WIDTH)): 1,
        (torch.float32, torch.float16, (1, 320)): 1,  # the timestep's sines
        (torch.float16, torch.float32, latents): 1,  # the result, for the loss
        (torch.float16, torch.float32, (step.adapter_size,)): 1,  # the gradients, for the optimizer
    }


def test_convolutions_weights_lie_channels_last(tiny_base: Path) -> None:
    """Otherwise cuDNN turns each of them around in every step."""
    with fake_cuda() as mode, OperatorLog() as log:
        parameters = FakeTraining(mode, log, tiny_base).unet.parameters()
        kernels = [parameter for parameter in parameters if parameter.dim() == 4]
        assert len(kernels) > 50
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_bench_counts_the_arithmetic_of_both_sides(tiny_base: Path) -> None:
    """By these two numbers it says which part of a GPU's peak was reached."""
    for side, measure in (("trainer", work_of_the_trainer), ("reference", work_of_the_plain_loop)):
        work = measure(tiny_base, 1, Work(1.0, 1.0))
        assert work.tflop == pytest.approx(TFLOP_PER_IMAGE[side], rel=0.05)


def test_step_at_full_size_asks_for_few_kernels(tiny_base: Path) -> None:
    """Some 1,900; a plain diffusers loop under autocast asks for more than 4,600."""
    step = recorded_step(tiny_base)
    assert sum(one.is_kernel for one in step.operators) < 2000
