"""LoRA on the UNet's attention: peft's layers, computed leaner, and their weights in one flat buffer.

A step on a frozen UNet is thousands of small kernels. peft's own forward casts the input of each of the 128
layers to float32 and back, and adds and scales in kernels of their own; autograd's backward does so again.
Here nothing is computed but matrix products, which add and scale by themselves, and one of them does for all
layers that take the same input.
"""

from dataclasses import dataclass
from itertools import islice
from typing import Final

import torch
from diffusers.models.attention_processor import Attention
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from trainer.attention import LeanAttention
from trainer.projection import ADAPTER, Layout, LeanLoraLinear, Projection

TARGET_MODULES: Final = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Adapter:
    """The LoRA layers of a UNet. All their weights are views of one flat tensor; the gradients are one, too.

    The clipping, the optimizer, a checkpoint and the exchange between GPUs then handle one tensor each
    instead of 256. The weights here are a working copy in the base's dtype; the float32 weights that are
    trained are the optimizer's.
    """

    layers: dict[str, LeanLoraLinear]
    """By the name of the layer in the UNet, in the UNet's order."""
    projections: list[Projection]
    rank: int
    alpha: float
    weights: Tensor
    """[P] in the base's dtype, one projection after the other. What no layer uses is zero and stays so."""
    gradients: Tensor
    """[P] in the base's dtype."""
    unused: Tensor
    """[P] bool: beside the diagonals, where no layer has a weight."""

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def add_gradients(self, loss: Tensor) -> None:
        """Add the gradients of a scalar to those that are there.

        Backward itself would add to each of the weights with a kernel of its own.
        """
        leaves = [leaf for projection in self.projections for leaf in (projection.down, projection.up)]
        parts = torch.autograd.grad(loss, leaves)
        flat = torch.cat([part.flatten() for part in parts])
        # Filled and not multiplied: an overflow there is none of the training's.
        self.gradients.add_(flat.masked_fill_(self.unused, 0))

    def split(self, flat: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return views of flat [P] as each layer's down [rank, in] and up [out, rank]."""
        layouts = [projection.layout for projection in self.projections]
        pieces = torch.split(flat, [layout.size for layout in layouts])
        views = [layout.parts(piece) for layout, piece in zip(layouts, pieces, strict=True)]
        return {
            name: views[self.projections.index(layer.projection)][layer.part]
            for name, layer in self.layers.items()
        }

    def enable(self, *, enabled: bool) -> None:
        """Switch all layers between the trained and the bare base."""
        for layer in self.layers.values():
            layer._disable_adapters = not enabled  # enable_adapters() would touch requires_grad too


def attach_lora(unet: nn.Module, *, rank: int, alpha: float, seed: int) -> Adapter:
    """Put LoRA layers on to_q, to_k, to_v and to_out.0 of the UNet's attentions, and return them.

    Down weights are Kaiming-uniform from seed, the same on every device; up weights are zero, so the UNet
    computes as before. The UNet is on its device and in its dtype already.
    """
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(TARGET_MODULES), init_lora_weights=False
    )
    config._register_custom_module({nn.Linear: LeanLoraLinear})  # peft's way to bring a layer of one's own
    inject_adapter_in_model(config, unet, adapter_name=ADAPTER)
    layers = {name: layer for name, layer in unet.named_modules() if isinstance(layer, LeanLoraLinear)}

    attentions = [module for module in unet.modules() if isinstance(module, Attention)]
    groups = [group for attention in attentions for group in _groups(attention)]
    layouts = [
        Layout(rank, group[0].in_features, [layer.out_features for layer in group]) for group in groups
    ]
    parameter = next(unet.parameters())
    sizes = [layout.size for layout in layouts]
    weights = torch.zeros(sum(sizes), dtype=parameter.dtype, device=parameter.device)
    projections = [
        Projection(group, layout, part)
        for group, layout, part in zip(groups, layouts, torch.split(weights, sizes), strict=True)
    ]
    made = iter(projections)
    for attention in attentions:
        own, *texts, out = islice(made, len(_groups(attention)))
        attention.set_processor(LeanAttention(own, *texts, out=out))

    gradients, unused = torch.zeros_like(weights), torch.ones_like(weights, dtype=torch.bool)
    adapter = Adapter(layers, projections, rank, alpha, weights, gradients, unused)
    for down, up in adapter.split(unused).values():
        down.fill_(value=False)
        up.fill_(value=False)
    generator = torch.Generator().manual_seed(seed)
    for down, _ in adapter.split(weights).values():
        bound = down.shape[1] ** -0.5  # Kaiming-uniform with a = sqrt(5), as peft and Hu et al. start
        down.copy_(torch.empty(down.shape).uniform_(-bound, bound, generator=generator))
    return adapter


def _groups(attention: Attention) -> list[list[LeanLoraLinear]]:
    """Return an attention's layers, those together that take the same input."""
    query, key, value, out = attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]
    return [[query], [key, value], [out]] if attention.is_cross_attention else [[query, key, value], [out]]
