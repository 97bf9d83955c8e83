"""What a net knows about its tokens from their ids alone: which are padding, which belong to the second text."""

from __future__ import annotations

import torch
from torch import Tensor

# Its exponential is 0 in float32, and float16 still holds the number itself.
HIDDEN = -1e4


def real(tokens: Tensor, padding: int) -> Tensor:
    """Ids (N, L) -> bool (N, L), True where there is a token."""
    return tokens != padding


def additive(real_tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Bool (N, L) -> (N, 1, 1, L): 0 at a token, very negative at padding, to be added to attention's scores."""
    return (1 - real_tokens.to(dtype))[:, None, None, :] * HIDDEN


def token_types(tokens: Tensor, separator: int) -> Tensor:
    """Ids (N, L) -> 0 up to the first separator and on it, 1 after it; int64 (N, L)."""
    ends = (tokens == separator).to(torch.int64)
    return (ends.cumsum(1) - ends).clamp(max=1)


def mean_over(x: Tensor, real_tokens: Tensor) -> Tensor:
    """(N, L, D) -> (N, D): the mean over real tokens; zeros where a text has none."""
    weights = real_tokens.to(x.dtype)[:, :, None]
    return (x * weights).sum(1) / weights.sum(1).clamp(min=1)
