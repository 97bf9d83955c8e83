"""What every loss sees: the two nets' outputs and the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """``inputs`` (N, C, H, W), ``targets`` (N,), ``index`` (N,): positions in the training split."""

    inputs: Tensor
    targets: Tensor
    index: Tensor


@dataclass(frozen=True)
class Outputs:
    """``logits`` (N, K) and the tapped ``features``, by module name."""

    logits: Tensor
    features: Mapping[str, Tensor]
