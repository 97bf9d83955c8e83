"""The table of words. Once the vocabulary was pruned it has fewer rows than there are ids, and says which id has which:
all nets of one recipe go on reading the same ids."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Words(nn.Embedding):
    """Token ids (N, L) -> (N, L, D). ``remap``: int32 (V,), the row of each id; None while each has its own."""

    remap: Tensor | None

    def __init__(self, words: int, width: int) -> None:
        super().__init__(words, width)
        self.ids = words
        self.register_buffer("remap", None)

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids int64 of any shape; one beyond the vocabulary is an error of torch."""
        rows = tokens if self.remap is None else self.remap[tokens]
        return nn.functional.embedding(rows, self.weight)

    def shrink(self, rows: int) -> None:
        """An empty table of so many rows, and an empty map; weights to be loaded."""
        self.num_embeddings = rows
        self.weight = nn.Parameter(self.weight.new_zeros(rows, self.embedding_dim), self.weight.requires_grad)
        self.remap = torch.zeros(self.ids, dtype=torch.int32, device=self.weight.device)
