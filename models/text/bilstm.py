"""A bidirectional LSTM over words, as in "Distilling Task-Specific Knowledge from BERT", arXiv 1903.12136."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewise.models.config import BiLstm as BiLstmConfig
from edgewise.models.text import masks
from edgewise.models.text.lstm import BothWays, taken
from edgewise.models.text.words import Words


class BiLstm(nn.Module):
    """Token ids int64 (N, L), any L -> logits (N, K), or of each token (N, L, K). Trailing padding changes no answer.

    What losses can tap: ``embeddings`` and ``layers.N`` give tokens (N, L, D).
    """

    def __init__(self, config: BiLstmConfig, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        both = 2 * config.hidden
        self.padding = config.padding
        self.answers = config.answers
        self.hidden = config.hidden
        self.embeddings = Words(input_shape[1], config.embedding)
        widths = [config.embedding] + [both] * (config.layers - 1)
        self.layers = nn.ModuleList(BothWays(width, config.hidden) for width in widths)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.dense = nn.Sequential(nn.Linear(both, config.dense), nn.ReLU()) if config.dense else nn.Identity()
        self.head = nn.Linear(config.dense or both, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """A text without any token is read as one of one padding token."""
        lengths = masks.real(tokens, self.padding).to(torch.int64).sum(1).clamp(min=1)
        x: Tensor = self.dropout(self.embeddings(tokens))
        for layer in self.layers:
            x = layer(x, lengths)
        if self.answers == "sequence":
            ends = taken(x[..., : self.hidden], lengths[:, None] - 1)[:, 0]
            x = torch.cat([ends, x[:, 0, self.hidden :]], dim=-1)
        logits: Tensor = self.head(self.dropout(self.dense(x)))
        return logits
