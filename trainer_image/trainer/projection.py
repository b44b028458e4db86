"""Linear layers of one input computed as one, with their LoRA, and where their weights lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

ADAPTER: Final = "default"


class LeanLoraLinear(PeftLinear):  # type: ignore[misc]  # peft ships no types
    """peft's LoRA layer, computed by the projection that it is a part of."""

    projection: "Projection"
    part: int

    def forward(self, x: Tensor, *_args: Any, **_options: Any) -> Tensor:
        """Return [..., out] for x [..., in], in the dtype of x, which is that of all the weights."""
        return self.projection(x)[self.part]


@dataclass(frozen=True)
class Layout:
    """Where a projection has its layers' A and B in a flat tensor [size]."""

    rank: int
    inputs: int
    outputs: list[int]
    """One for each layer."""

    @property
    def size(self) -> int:
        return self._ranks * (self.inputs + sum(self.outputs))

    @property
    def _ranks(self) -> int:
        return self.rank * len(self.outputs)

    def whole(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return views of flat as A [ranks, in] and B [outs, ranks] of all the layers."""
        down, up = torch.split(flat, [self._ranks * self.inputs, self._ranks * sum(self.outputs)])
        return down.view(self._ranks, self.inputs), up.view(-1, self._ranks)

    def parts(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return views of flat as each layer's A [rank, in] and B [out, rank]."""
        down, up = self.whole(flat)
        rows = torch.split(up, self.outputs)
        blocks = [torch.split(row, self.rank, dim=1)[part] for part, row in enumerate(rows)]
        return list(zip(torch.split(down, self.rank), blocks, strict=True))


class Projection:
    """Layers that take the same input, as one: W x + b + scaling * B (A x).

    Their W [out, in] lie under each other, and so do their A [rank, in]. Their B [out, rank] lie along the
    diagonal of one B, which is zero elsewhere.

    Args:
        layers: become parts of it: their weights are views of its own from now on.
        layout: of weights.
        weights: [layout.size] zeros, in which A and B are to be.
    """

    def __init__(self, layers: Sequence[LeanLoraLinear], layout: Layout, weights: Tensor) -> None:
        self._layers = layers
        self._scaling: float = layers[0].scaling[ADAPTER]
        self.layout = layout
        self.down, self.up = (view.detach().requires_grad_() for view in layout.whole(weights))
        bases = [layer.base_layer for layer in layers]
        biases = [base.bias for base in bases if base.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        self._weight = torch.cat([base.weight for base in bases])
        rows = torch.split(self._weight, layout.outputs)
        for part, (layer, (down, up)) in enumerate(zip(layers, layout.parts(weights), strict=True)):
            layer.projection, layer.part = self, part
            layer.base_layer.weight = nn.Parameter(rows[part], requires_grad=False)
            layer.lora_A[ADAPTER].weight = nn.Parameter(down)
            layer.lora_B[ADAPTER].weight = nn.Parameter(up)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return each layer's [..., out] for x [..., in]."""
        rows = x.flatten(0, -2)
        if self._layers[0].disable_adapters:
            result = F.linear(rows, self._weight, self._bias)
        else:
            result = _LinearWithLora.apply(  # type: ignore[no-untyped-call]  # torch's
                rows, self._weight, self._bias, self.down, self.up, self._scaling
            )
        result = result.view(*x.shape[:-1], -1)
        return (result,) if len(self._layers) == 1 else torch.split(result, self.layout.outputs, dim=-1)


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
