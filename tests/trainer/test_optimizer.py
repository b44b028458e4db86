"""Steps that clip, schedules that count only steps that were taken, and a state that survives."""

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from trainer.lora import Adapter
from trainer.optimizer import AdapterOptimizer, learning_rates


def make_optimizer(
    dtype: torch.dtype = torch.float32,
    *,
    steps: int = 10,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
) -> tuple[AdapterOptimizer, Adapter]:
    weights = torch.linspace(-1, 1, 6, dtype=dtype)
    adapter = Adapter({}, [], 4, 32.0, weights, torch.zeros_like(weights), torch.zeros(6, dtype=torch.bool))
    rates = [0.1 * (step + 1) for step in range(steps)]
    return AdapterOptimizer(adapter, rates, weight_decay=weight_decay, max_grad_norm=max_grad_norm), adapter


def test_learning_rates_climb_then_fall_as_half_a_cosine() -> None:
    rates = learning_rates(1.0, 10, warmup_fraction=0.2, schedule="cosine")
    expected = [1 / 3, 2 / 3, 1.0, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected), atol=1e-4, rtol=0)


def test_learning_rates_of_one_step_and_of_a_constant_schedule() -> None:
    assert learning_rates(1.0, 1, warmup_fraction=0.0, schedule="cosine") == [1.0]
    assert learning_rates(1.0, 4, warmup_fraction=0.0, schedule="constant") == [1.0] * 4


def test_steps_equal_those_of_plain_adamw_with_clipped_gradients() -> None:
    optimizer, adapter = make_optimizer(weight_decay=0.01, max_grad_norm=0.5)
    plain = nn.Parameter(adapter.weights.clone())
    adamw = torch.optim.AdamW([plain], weight_decay=0.01)
    for step in range(4):
        gradient = torch.arange(6.0) * (step - 1.5)
        adapter.gradients.copy_(gradient)
        optimizer.step()
        plain.grad = gradient.clone()
        nn.utils.clip_grad_norm_([plain], 0.5)
        adamw.param_groups[0]["lr"] = 0.1 * (step + 1)
        adamw.step()
        torch.testing.assert_close(optimizer.master, plain)
        torch.testing.assert_close(adapter.weights, plain.detach())


def test_clipping_shortens_the_gradient_that_adamw_sees() -> None:
    """An exhausted iterator of parameters clips nothing, without a word (failure 3)."""
    optimizer, adapter = make_optimizer(max_grad_norm=0.5)
    adapter.gradients.fill_(100.0)
    norm = optimizer.step()
    assert norm.item() == torch.tensor([100.0] * 6).norm().item()
    # AdamW's first moment is a tenth of the gradient after one step.
    torch.testing.assert_close(optimizer.tensors()["exp_avg"].norm(), torch.tensor(0.05))


def test_gradients_are_zero_after_a_step() -> None:
    optimizer, adapter = make_optimizer()
    adapter.gradients.fill_(1.0)
    optimizer.step()
    assert not adapter.gradients.any()


def test_fp16_overflow_advances_neither_weights_nor_adamw_nor_schedule() -> None:
    """With fused AdamW a skipped step still moved the learning rate elsewhere (failure 4)."""
    optimizer, adapter = make_optimizer(torch.float16)
    scale = optimizer.loss_scale
    before = optimizer.master.detach().clone()
    adapter.gradients.fill_(float("inf"))
    assert not torch.isfinite(optimizer.step())
    assert torch.equal(optimizer.master, before)
    assert optimizer.steps_taken == 0
    assert optimizer.loss_scale == scale / 2
    adapter.gradients.fill_(1.0)
    optimizer.step()
    assert optimizer.steps_taken == 1
    assert optimizer.learning_rate == torch.tensor(0.1).item()
    assert optimizer.tensors()["step"].item() == 1


def test_half_gradients_become_floats_in_one_copy() -> None:
    """A copy of the floats besides would be one more launch, and 3 MB more, at every step."""
    optimizer, _ = make_optimizer(torch.float16)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        optimizer.step()
    names = [event.name for event in profiler.events() or ()]
    assert "aten::_to_copy" in names
    assert "aten::clone" not in names


def run(optimizer: AdapterOptimizer, adapter: Adapter, gradients: list[Tensor]) -> None:
    for gradient in gradients:
        adapter.gradients.copy_(gradient)
        optimizer.step()


def test_restored_optimizer_goes_on_bit_for_bit_with_its_scaler() -> None:
    """A scaler that starts again at its first factor skips steps anew (failure 6)."""
    gradients = [torch.full((6,), value).half() for value in (1.0, float("inf"), 3.0, -2.0, 5.0)]
    whole, whole_adapter = make_optimizer(torch.float16)
    run(whole, whole_adapter, gradients)
    first, first_adapter = make_optimizer(torch.float16)
    run(first, first_adapter, gradients[:2])
    second, second_adapter = make_optimizer(torch.float16)
    second.restore({name: tensor.clone() for name, tensor in first.tensors().items()}, first.scaler_state())
    run(second, second_adapter, gradients[2:])
    assert torch.equal(second.master, whole.master)
    assert torch.equal(second_adapter.weights, whole_adapter.weights)
    assert second.loss_scale == whole.loss_scale == 2.0**15
    assert second.steps_taken == whole.steps_taken == 4


def test_optimizer_that_never_stepped_can_be_saved_and_restored() -> None:
    fresh, _ = make_optimizer()
    other, adapter = make_optimizer()
    other.restore(fresh.tensors(), fresh.scaler_state())
    adapter.gradients.fill_(1.0)
    other.step()
    assert torch.isfinite(other.master).all()
