"""A number of heads, carried where a loss keeps what it settled from the dry run."""

from __future__ import annotations

from torch import nn


class RelationHeads(nn.Module):
    """Holds ``heads``; nothing to train and nothing to save."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"heads={self.heads}"
