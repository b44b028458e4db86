"""The lean LoRA layer computes what peft's does, and the weights that are trained are float32."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from torch import Tensor, nn

from trainer.base_model import load_unet
from trainer.lora import TARGET_MODULES, LeanLoraLinear, attach_lora
from trainer.optimizer import AdapterOptimizer


class Attention(nn.Module):
    """Four projections named as a diffusers attention names them; one takes a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(8, 8, bias=False)
        self.to_k = nn.Linear(6, 8, bias=False)
        self.to_v = nn.Linear(6, 8, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(8, 8), nn.Identity()])
        self.other = nn.Linear(8, 8)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        mixed = self.to_q(x) * (self.to_k(text) + self.to_v(text)).mean(dim=1, keepdim=True)
        out: Tensor = self.to_out[0](mixed)
        return out


@pytest.fixture
def attention() -> nn.Module:
    torch.manual_seed(0)
    return Attention().requires_grad_(False)


def test_result_and_gradients_equal_those_of_peft(attention: nn.Module) -> None:
    theirs = copy.deepcopy(attention.double())
    config = LoraConfig(r=4, lora_alpha=32, target_modules=list(TARGET_MODULES))
    inject_adapter_in_model(config, theirs)
    adapter = attach_lora(attention, rank=4, alpha=32, seed=1)
    adapter.weights.normal_(generator=torch.Generator().manual_seed(2))
    parameters = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in attention.named_parameters():
            if "lora_" in name:
                parameters[name].copy_(parameter)

    x, text = torch.randn(2, 5, 8).double(), torch.randn(2, 3, 6).double()
    ours, expected = attention(x, text), theirs(x, text)
    torch.testing.assert_close(ours, expected)
    adapter.add_gradients(ours.square().sum())
    expected.square().sum().backward()
    for name, (down, up) in adapter.split(adapter.gradients).items():
        torch.testing.assert_close(down, parameters[f"{name}.lora_A.default.weight"].grad)
        torch.testing.assert_close(up, parameters[f"{name}.lora_B.default.weight"].grad)


def test_gradients_of_a_second_part_are_added(attention: nn.Module) -> None:
    adapter = attach_lora(attention, rank=4, alpha=32, seed=1)
    x, text = torch.randn(2, 5, 8), torch.randn(2, 3, 6)
    adapter.add_gradients(attention(x, text).square().sum())
    once = adapter.gradients.clone()
    adapter.add_gradients(attention(x, text).square().sum())
    torch.testing.assert_close(adapter.gradients, 2 * once)
    assert once.any()


def test_result_is_the_base_plus_eight_times_b_a_x() -> None:
    attention = Attention().requires_grad_(False)
    adapter = attach_lora(attention, rank=4, alpha=32, seed=1)
    down, up = adapter.split(adapter.weights)["to_q"]
    down.fill_(0.5)
    up.fill_(2.0)
    x = torch.ones(1, 1, 8)
    layer = adapter.layers["to_q"]
    # B A x is 4 ranks of 2.0 times 8 inputs of 0.5; times 32 / 4.
    torch.testing.assert_close(layer(x) - layer.base_layer(x), torch.full((1, 1, 8), 8 * 4 * 2.0 * (8 * 0.5)))


def test_untrained_adapter_changes_nothing(attention: nn.Module) -> None:
    x, text = torch.randn(2, 5, 8), torch.randn(2, 3, 6)
    before = attention(x, text)
    attach_lora(attention, rank=4, alpha=32, seed=1)
    assert torch.equal(attention(x, text), before)


def test_disabled_adapter_leaves_the_bare_base_and_comes_back(attention: nn.Module) -> None:
    x, text = torch.randn(2, 5, 8), torch.randn(2, 3, 6)
    before = attention(x, text)
    adapter = attach_lora(attention, rank=4, alpha=32, seed=1)
    adapter.weights.fill_(0.1)
    adapter.enable(enabled=False)
    assert torch.equal(attention(x, text), before)
    adapter.enable(enabled=True)
    assert not torch.allclose(attention(x, text), before)
    assert all(part.requires_grad for name, part in attention.named_parameters() if "lora_" in name)


def test_state_dict_is_one_that_peft_knows(attention: nn.Module) -> None:
    adapter = attach_lora(attention, rank=4, alpha=32, seed=1)
    state = get_peft_model_state_dict(attention, adapter_name="default")
    assert set(state) == {f"{name}.lora_{part}.weight" for name in adapter.layers for part in "AB"}


def test_initial_weights_follow_from_the_seed_alone(attention: nn.Module) -> None:
    first = attach_lora(copy.deepcopy(attention), rank=4, alpha=32, seed=1)
    torch.manual_seed(99)
    second = attach_lora(copy.deepcopy(attention), rank=4, alpha=32, seed=1)
    other = attach_lora(copy.deepcopy(attention), rank=4, alpha=32, seed=2)
    assert torch.equal(first.weights, second.weights)
    assert not torch.equal(first.weights, other.weights)


def test_sd15_gets_128_layers_and_nothing_else_trains(tiny_base: Path) -> None:
    unet = load_unet(tiny_base, torch.float32)
    adapter = attach_lora(unet, rank=4, alpha=32, seed=1)
    assert len(adapter.layers) == 128
    assert all(isinstance(layer, LeanLoraLinear) for layer in adapter.layers.values())
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.lora_{part}.default.weight" for name in adapter.layers for part in "AB"}
    assert sum(unet.get_parameter(name).numel() for name in trained) == adapter.weights.numel()


def test_half_precision_base_keeps_float32_weights_in_the_optimizer(attention: nn.Module) -> None:
    """Adapters in the base's dtype: "Attempting to unscale FP16 gradients" (failure 1)."""
    adapter = attach_lora(attention.half(), rank=4, alpha=32, seed=1)
    optimizer = AdapterOptimizer(adapter, [1e-4] * 3, weight_decay=0.01, max_grad_norm=1.0)
    x, text = torch.randn(2, 5, 8).half(), torch.randn(2, 3, 6).half()
    before = optimizer.master.detach().clone()
    adapter.add_gradients(optimizer.scale(attention(x, text).float().square().mean()))
    optimizer.step()
    tensors = optimizer.tensors()
    assert {tensors[name].dtype for name in ("master", "exp_avg", "exp_avg_sq")} == {torch.float32}
    changed = (optimizer.master - before).abs()
    assert 0 < changed.max() < 2e-4  # a change that half precision would round away at these weights
    assert torch.equal(adapter.weights, optimizer.master.half())
