"""LoRA on the UNet's attention: peft's layers with a leaner forward, and their weights in one flat buffer.

A step on a frozen UNet is thousands of small kernels. peft's own forward casts the input of each of the 128
layers to float32 and back, and adds and scales in kernels of their own; autograd's backward does so again.
Here nothing is computed but matrix products, and those add and scale by themselves.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

TARGET_MODULES: Final = ("to_q", "to_k", "to_v", "to_out.0")
_ADAPTER: Final = "default"


class LeanLoraLinear(PeftLinear):  # type: ignore[misc]  # peft ships no types
    """peft's LoRA layer; its result without the copies: W x + b + scaling * B (A x)."""

    def forward(self, x: Tensor, *_args: Any, **_options: Any) -> Tensor:
        """Return [..., out] for x [..., in], in the dtype of x, which is that of all the weights."""
        base = self.base_layer
        if self.disable_adapters:
            bare: Tensor = base(x)
            return bare
        down, up = self.lora_A[_ADAPTER].weight, self.lora_B[_ADAPTER].weight
        result: Tensor = _LinearWithLora.apply(  # type: ignore[no-untyped-call]  # torch's
            x.flatten(0, -2), base.weight, base.bias, down, up, self.scaling[_ADAPTER]
        )
        return result.view(*x.shape[:-1], -1)


class _LinearWithLora(torch.autograd.Function):
    """W x + b + scaling * B (A x), of which W and b are frozen.

    x is [N, in], W [out, in], b [out] or None, A [rank, in], B [out, rank].
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        hidden = x @ down.t()
        ctx.save_for_backward(x, weight, down, up, hidden)
        ctx.scaling = scaling
        return F.linear(x, weight, bias).addmm_(hidden, up.t(), alpha=scaling)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight, down, up, hidden = ctx.saved_tensors
        of_hidden = _product(gradient, up, ctx.scaling)
        of_x = (gradient @ weight).addmm_(of_hidden, down) if ctx.needs_input_grad[0] else None
        of_up = _product(gradient.t(), hidden, ctx.scaling)
        return of_x, None, None, of_hidden.t() @ x, of_up, None


def _product(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """Return factor * a b by the product's own kernel."""
    return torch.addmm(a.new_empty(()), a, b, beta=0, alpha=factor)


@dataclass(frozen=True)
class Adapter:
    """The LoRA layers of a UNet. All their weights are views of one flat tensor; the gradients are one, too.

    The clipping, the optimizer, a checkpoint and the exchange between GPUs then handle one tensor each
    instead of 256. The weights here are a working copy in the base's dtype; the float32 weights that are
    trained are the optimizer's.
    """

    layers: dict[str, LeanLoraLinear]
    """By the name of the layer in the UNet, in the UNet's order."""
    rank: int
    alpha: float
    weights: Tensor
    """[P] in the base's dtype."""
    gradients: Tensor
    """[P] in the base's dtype."""

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def add_gradients(self, loss: Tensor) -> None:
        """Add the gradients of a scalar to those that are there.

        Backward itself would add to each of the 256 with a kernel of its own.
        """
        parts = torch.autograd.grad(loss, list(self._parameters()))
        self.gradients.add_(torch.cat([part.flatten() for part in parts]))

    def _parameters(self) -> Iterator[Tensor]:
        """Yield the weights as the layers have them, in the order of the flat tensor."""
        for layer in self.layers.values():
            yield layer.lora_A[_ADAPTER].weight
            yield layer.lora_B[_ADAPTER].weight

    def split(self, flat: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return views of flat [P] as each layer's down [rank, in] and up [out, rank]."""
        shapes = [weight.shape for weight in self._parameters()]
        parts = torch.split(flat, [shape.numel() for shape in shapes])
        views = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return dict(zip(self.layers, zip(views[::2], views[1::2], strict=True), strict=True))

    def enable(self, *, enabled: bool) -> None:
        """Switch all layers between the trained and the bare base."""
        for layer in self.layers.values():
            layer._disable_adapters = not enabled  # enable_adapters() would touch requires_grad too


def attach_lora(unet: nn.Module, *, rank: int, alpha: float, seed: int) -> Adapter:
    """Put LoRA layers on the UNet's to_q, to_k, to_v and to_out.0, and return them.

    Down weights are Kaiming-uniform from seed, the same on every device; up weights are zero, so the UNet
    computes as before. The UNet is on its device and in its dtype already.
    """
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(TARGET_MODULES), init_lora_weights=False
    )
    config._register_custom_module({nn.Linear: LeanLoraLinear})  # peft's way to bring a layer of one's own
    inject_adapter_in_model(config, unet, adapter_name=_ADAPTER)
    layers = {name: layer for name, layer in unet.named_modules() if isinstance(layer, LeanLoraLinear)}

    parameter = next(unet.parameters())
    sizes = [
        layer.lora_A[_ADAPTER].weight.numel() + layer.lora_B[_ADAPTER].weight.numel()
        for layer in layers.values()
    ]
    weights = torch.zeros(sum(sizes), dtype=parameter.dtype, device=parameter.device)
    adapter = Adapter(layers, rank, alpha, weights, torch.zeros_like(weights))

    generator = torch.Generator().manual_seed(seed)
    for layer, (down, up) in zip(layers.values(), adapter.split(weights).values(), strict=True):
        bound = down.shape[1] ** -0.5  # Kaiming-uniform with a = sqrt(5), as peft and Hu et al. start
        down.copy_(torch.empty(down.shape).uniform_(-bound, bound, generator=generator))
        layer.lora_A[_ADAPTER].weight = nn.Parameter(down)
        layer.lora_B[_ADAPTER].weight = nn.Parameter(up)
    return adapter
