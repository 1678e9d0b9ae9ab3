"""Non-local attention, for positions of F32 and for region tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NonLocal(nn.Module):
    """Non-local block: bottleneck of half the channels, output projection, residual (sections 3.2 and 3.4, eq. 4).

    Args:
        channels: Channels of a token.
        scale: Divide the attention logits by the square root of the bottleneck's width.
        normalise: LayerNorm before queries, keys and values.
    """

    def __init__(self, channels: int, *, scale: bool, normalise: bool = False) -> None:
        super().__init__()
        width = channels // 2
        self.norm = nn.LayerNorm(channels) if normalise else nn.Identity()
        self.query, self.key, self.value = (nn.Linear(channels, width) for _ in range(3))
        self.out = nn.Linear(width, channels)
        self.scale = width**-0.5 if scale else 1.0
        # The block starts as the identity, so that it cannot harm pretrained features (non-local networks, sec. 4.1).
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor, key_bias: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            tokens: (B, T, C).
            key_bias: (B, T) float32, added to the attention logits of each key. ``log(m)`` makes a key count m
                times, ``-inf`` hides it.

        Returns:
            (B, T, C), the tokens plus what they attended to.
        """
        x = self.norm(tokens)
        return tokens + self.out(self.weights(x, key_bias).to(x.dtype) @ self.value(x))

    def weights(self, x: Tensor, key_bias: Tensor | None) -> Tensor:
        """Attention of every (normalised) token over all tokens: (B, T, T) float32, rows sum to 1."""
        logits = ((self.query(x) * self.scale) @ self.key(x).transpose(1, 2)).float()
        if key_bias is not None:
            logits = logits + key_bias[:, None, :]
        return torch.softmax(logits, dim=-1)
