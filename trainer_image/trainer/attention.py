"""The UNet's attention, without what SD 1.5 does not use of diffusers' own."""

from typing import Any

import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor


class LeanAttention:
    """A diffusers attention processor; what AttnProcessor2_0 computes without masks, norms and dropout.

    That one also divides every result by 1.0, and its gradient again: two kernels over all activations.
    """

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor:
        """Return [B, N, width] for hidden_states [B, N, width], which look at the texts or at themselves."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projection(states).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for projection, states in (
                (attention.to_q, hidden_states),
                (attention.to_k, context),
                (attention.to_v, context),
            )
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = attention.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out
