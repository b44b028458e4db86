"""The UNet's attention, without what SD 1.5 does not use of diffusers' own."""

from typing import Any

import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from trainer.projection import Projection


class LeanAttention:
    """A diffusers attention processor; what AttnProcessor2_0 computes without masks, norms and dropout.

    That one has a product for each of query, key and value. It also divides every result by 1.0, and its
    gradient again: two kernels over all activations.

    Args:
        own: to query, and in self-attention to key and value.
        texts: to key and value in cross-attention.
        out: to the result.
    """

    def __init__(self, own: Projection, texts: Projection | None = None, *, out: Projection) -> None:
        self._own = own
        self._texts = texts
        self._out = out

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor:
        """Return [B, N, width] for hidden_states [B, N, width], which look at the texts or at themselves."""
        projected = self._own(hidden_states)
        if self._texts:
            projected += self._texts(encoder_hidden_states)  # type: ignore[arg-type]  # it is there
        query, key, value = (
            one.view(*one.shape[:2], attention.heads, -1).transpose(1, 2) for one in projected
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        (result,) = self._out(mixed.transpose(1, 2).flatten(2))
        return result
