"""The lean LoRA layers compute what peft's do, and the weights that are trained are float32."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from torch import Tensor, nn

from tests.trainer.rig import randomize
from trainer.base_model import load_unet
from trainer.lora import TARGET_MODULES, Adapter, attach_lora
from trainer.optimizer import AdapterOptimizer
from trainer.projection import LeanLoraLinear


class Block(nn.Module):
    """Self-attention and cross-attention as SD 1.5 has them, and a layer that gets no LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = Attention(query_dim=8, heads=2, dim_head=4)
        self.attn2 = Attention(query_dim=8, cross_attention_dim=6, heads=2, dim_head=4)
        self.other = nn.Linear(8, 8)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        x = x + self.attn1(x)
        out: Tensor = self.other(x + self.attn2(x, text))
        return out


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block().requires_grad_(False)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return what a block takes: x [2, 5, 8] and text [2, 3, 6]."""
    numbers = torch.randn(116, generator=torch.Generator().manual_seed(1)).to(dtype)
    x, text = torch.split(numbers, [80, 36])
    return x.view(2, 5, 8), text.view(2, 3, 6)


def with_peft(block: nn.Module) -> nn.Module:
    """Return a copy of block with peft's own layers."""
    theirs = copy.deepcopy(block)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=32, target_modules=list(TARGET_MODULES)), theirs)
    return theirs


def copy_weights(adapter: Adapter, theirs: nn.Module) -> None:
    for name, (down, up) in adapter.split(adapter.weights).items():
        theirs.get_parameter(f"{name}.lora_A.default.weight").data.copy_(down)
        theirs.get_parameter(f"{name}.lora_B.default.weight").data.copy_(up)


def assert_same_gradients(adapter: Adapter, theirs: nn.Module) -> None:
    for name, (down, up) in adapter.split(adapter.gradients).items():
        torch.testing.assert_close(down, theirs.get_parameter(f"{name}.lora_A.default.weight").grad)
        torch.testing.assert_close(up, theirs.get_parameter(f"{name}.lora_B.default.weight").grad)


def test_result_and_gradients_equal_those_of_peft(block: Block) -> None:
    theirs = with_peft(block.double())
    adapter = attach_lora(block, rank=4, alpha=32, seed=1)
    randomize(adapter, std=0.3)
    copy_weights(adapter, theirs)

    x, text = inputs(torch.float64)
    ours, expected = block(x, text), theirs(x, text)
    torch.testing.assert_close(ours, expected)
    adapter.add_gradients(ours.square().sum())
    expected.square().sum().backward()
    assert_same_gradients(adapter, theirs)


def test_unet_and_its_gradients_equal_those_of_diffusers_and_peft(tiny_base: Path) -> None:
    theirs: Any = with_peft(load_unet(tiny_base, torch.float32).double())
    unet: Any = load_unet(tiny_base, torch.float32).double()
    adapter = attach_lora(unet, rank=4, alpha=32, seed=1)
    randomize(adapter, std=0.05)
    copy_weights(adapter, theirs)

    generator = torch.Generator().manual_seed(2)
    latents, texts = (torch.randn(2, *size, generator=generator).double() for size in ((4, 8, 16), (77, 32)))
    ours, expected = (one(latents, torch.tensor([3, 600]), texts).sample for one in (unet, theirs))
    torch.testing.assert_close(ours, expected)
    adapter.add_gradients(ours.square().mean())
    expected.square().mean().backward()
    assert_same_gradients(adapter, theirs)


def test_gradients_of_a_second_part_are_added(block: Block) -> None:
    adapter = attach_lora(block, rank=4, alpha=32, seed=1)
    adapter.add_gradients(block(*inputs()).square().sum())
    once = adapter.gradients.clone()
    adapter.add_gradients(block(*inputs()).square().sum())
    torch.testing.assert_close(adapter.gradients, 2 * once)
    assert once.any()


def test_no_layer_leaks_into_another_that_shares_its_input(block: Block) -> None:
    """Beside the diagonal lies what no layer has: trained, it would be in no file."""
    adapter = attach_lora(block, rank=4, alpha=32, seed=1)
    optimizer = AdapterOptimizer(adapter, [1e-2] * 5, weight_decay=0.01, max_grad_norm=1.0)
    for _ in range(5):
        adapter.add_gradients(block(*inputs()).square().sum())
        optimizer.step()
    trained = sum(down.numel() + up.numel() for down, up in adapter.split(adapter.weights).values())
    assert (~adapter.unused).sum() == trained < adapter.weights.numel()
    assert optimizer.master[~adapter.unused].all()
    assert not optimizer.master[adapter.unused].any()


def test_overflow_beside_the_diagonal_is_none_of_the_trainings(block: Block) -> None:
    """There one layer's gradient meets another's input, a product that no layer has."""
    adapter = attach_lora(block, rank=4, alpha=32, seed=1)
    first = adapter.projections[0]
    _, beside = first.layout.whole(adapter.unused[: first.layout.size])
    overflow: Any = first.up
    overflow.register_hook(lambda gradient: gradient.masked_fill(beside, torch.inf))
    adapter.add_gradients(block(*inputs()).square().sum())
    assert beside.any()
    assert torch.isfinite(adapter.gradients).all()
    assert adapter.gradients.any()


def test_result_is_the_base_plus_eight_times_b_a_x(block: Block) -> None:
    bare = copy.deepcopy(block.attn1.to_k)
    adapter = attach_lora(block, rank=4, alpha=32, seed=1)
    down, up = adapter.split(adapter.weights)["attn1.to_k"]
    down.fill_(0.5)
    up.fill_(2.0)
    x = torch.ones(1, 1, 8)
    # B A x is 4 ranks of 2.0 times 8 inputs of 0.5; times 32 / 4.
    expected = torch.full((1, 1, 8), 8 * 4 * 2.0 * (8 * 0.5))
    torch.testing.assert_close(adapter.layers["attn1.to_k"](x) - bare(x), expected)


def test_untrained_adapter_changes_nothing(block: Block) -> None:
    before = block(*inputs())
    attach_lora(block, rank=4, alpha=32, seed=1)
    torch.testing.assert_close(block(*inputs()), before)


def test_disabled_adapter_leaves_the_bare_base_and_comes_back(block: Block) -> None:
    before = block(*inputs())
    adapter = attach_lora(block, rank=4, alpha=32, seed=1)
    randomize(adapter, std=0.5)
    adapter.enable(enabled=False)
    torch.testing.assert_close(block(*inputs()), before)
    adapter.enable(enabled=True)
    assert not torch.allclose(block(*inputs()), before)


def test_state_dict_is_one_that_peft_knows(block: Block) -> None:
    adapter = attach_lora(block, rank=4, alpha=32, seed=1)
    randomize(adapter, std=0.5)
    state = get_peft_model_state_dict(block, adapter_name="default")
    assert set(state) == {f"{name}.lora_{part}.weight" for name in adapter.layers for part in "AB"}
    for name, (down, up) in adapter.split(adapter.weights).items():
        assert torch.equal(state[f"{name}.lora_A.weight"], down)
        assert torch.equal(state[f"{name}.lora_B.weight"], up)


def test_initial_weights_follow_from_the_seed_alone(block: Block) -> None:
    first = attach_lora(copy.deepcopy(block), rank=4, alpha=32, seed=1)
    torch.manual_seed(99)
    second = attach_lora(copy.deepcopy(block), rank=4, alpha=32, seed=1)
    other = attach_lora(copy.deepcopy(block), rank=4, alpha=32, seed=2)
    assert torch.equal(first.weights, second.weights)
    assert not torch.equal(first.weights, other.weights)


def test_sd15_gets_128_layers_and_nothing_else_trains(tiny_base: Path) -> None:
    unet = load_unet(tiny_base, torch.float32)
    adapter = attach_lora(unet, rank=4, alpha=32, seed=1)
    assert len(adapter.layers) == 128
    assert all(isinstance(layer, LeanLoraLinear) for layer in adapter.layers.values())
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.lora_{part}.default.weight" for name in adapter.layers for part in "AB"}
    assert sum(unet.get_parameter(name).numel() for name in trained) == (~adapter.unused).sum()


def test_half_precision_base_keeps_float32_weights_in_the_optimizer(block: Block) -> None:
    """Adapters in the base's dtype: "Attempting to unscale FP16 gradients" (failure 1)."""
    adapter = attach_lora(block.half(), rank=4, alpha=32, seed=1)
    optimizer = AdapterOptimizer(adapter, [1e-4] * 3, weight_decay=0.01, max_grad_norm=1.0)
    before = optimizer.master.detach().clone()
    adapter.add_gradients(optimizer.scale(block(*inputs(torch.float16)).float().square().mean()))
    optimizer.step()
    tensors = optimizer.tensors()
    assert {tensors[name].dtype for name in ("master", "exp_avg", "exp_avg_sq")} == {torch.float32}
    changed = (optimizer.master - before).abs()
    assert 0 < changed.max() < 2e-4  # a change that half precision would round away at these weights
    assert torch.equal(adapter.weights, optimizer.master.half())
