"""An encoder of the BERT family, Devlin et al., arXiv 1810.04805: post-norm blocks over words, positions and types.

Its parts are called as the vision transformer's are: ``blocks.N.attn.qkv``, ``blocks.N.attn.softmax``,
``blocks.N.mlp.fc1``. What losses can tap besides: ``embeddings`` and ``blocks.N`` give tokens (N, L, D).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgewise.models.attention import Attention, Mlp, activation_of
from edgewise.models.config import Bert as BertConfig
from edgewise.models.text import masks
from edgewise.models.text.words import Words

POOLER: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}


class Embeddings(nn.Module):
    """Token ids (N, L) -> (N, L, width): words, positions and types, added and normed."""

    def __init__(self, config: BertConfig, words: int, positions: int) -> None:
        super().__init__()
        narrow = config.embedding or config.width
        inner = narrow if config.projects == "sum" else config.width
        self.separator = config.separator
        self.projects_sum = config.projects == "sum"
        self.words = Words(words, narrow)
        self.positions = nn.Embedding(positions, inner)
        self.types = nn.Embedding(config.types, inner) if config.types else None
        self.norm = nn.LayerNorm(inner, eps=config.norm_eps)
        self.dropout = _dropout(config.dropout)
        self.project = nn.Linear(narrow, config.width) if config.embedding else None

    def forward(self, tokens: Tensor) -> Tensor:
        """Without a separator all tokens have type 0."""
        x: Tensor = self.words(tokens)
        if self.project is not None and not self.projects_sum:
            x = self.project(x)
        x = x + self.positions.weight[: tokens.shape[1]]
        if self.types is not None and self.separator is None:
            x = x + self.types.weight[0]
        elif self.types is not None and self.separator is not None:
            x = x + self.types(masks.token_types(tokens, self.separator))
        x = self.dropout(self.norm(x))
        if self.project is not None and self.projects_sum:
            x = self.project(x)
        return x


class Block(nn.Module):
    """Attention and MLP, each added to its input and normed."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attn = Attention(config.width, config.heads)
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config.width, config.ffn or 4 * config.width, config.activation)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = _dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, L, D) and the mask (N, 1, 1, L) that is added to scores -> (N, L, D)."""
        x = self.norm1(x + self.dropout(self.attn(x, mask)))
        x = self.norm2(x + self.dropout(self.mlp(x)))
        return x


class Blocks(nn.Sequential):
    """One block after the other, each given the mask: a call of its own, by which tools that follow calls name them."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """As a block."""
        for block in self:
            x = block(x, mask)
        return x


class Pooler(nn.Module):
    """A dense layer on the pooled token."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.act = POOLER[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        x = self.act(self.dense(x))
        return x


class WordHead(nn.Module):
    """Which word stands at each token: dense, norm, and the table of words once more, read the other way."""

    def __init__(self, config: BertConfig, words: int) -> None:
        super().__init__()
        narrow = config.embedding or config.width
        self.dense = nn.Linear(config.width, narrow)
        self.act = activation_of(config.activation)
        self.norm = nn.LayerNorm(narrow, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """(N, L, D) and the table (V, E) -> (N, L, V)."""
        x = self.norm(self.act(self.dense(x)))
        return x @ words.T + self.bias


class Bert(nn.Module):
    """Token ids int64 (N, L), any L up to the longest -> logits (N, K), (N, L, K) or (N, L, V), see ``answers``.

    Trailing padding changes no answer at a real token.
    """

    def __init__(self, config: BertConfig, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        length, words = input_shape
        self.config = config
        self.padding = config.padding
        self.answers = config.answers
        self.pooling = config.pooling
        self.fresh_head = True  # until a checkpoint's is taken
        self.embeddings = Embeddings(config, words, config.positions or length)
        self.blocks = Blocks(*(Block(config) for _ in range(config.layers)))
        pooled = config.answers == "sequence" and config.pooler != "none"
        self.pooler = Pooler(config.width, config.pooler) if pooled else None
        self.dropout = _dropout(config.dropout)
        self.head = WordHead(config, words) if config.answers == "vocabulary" else nn.Linear(config.width, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Of a text without any token the answer is a number too, of no meaning."""
        real = masks.real(tokens, self.padding)
        x: Tensor = self.embeddings(tokens)
        mask = masks.additive(real, x.dtype)
        x = self.blocks(x, mask)
        if self.answers == "vocabulary":
            logits: Tensor = self.head(self.dropout(x), self.embeddings.words.weight)
            return logits
        if self.answers == "sequence":
            x = x[:, 0] if self.pooling == "cls" else masks.mean_over(x, real)
            x = x if self.pooler is None else self.pooler(x)
        logits = self.head(self.dropout(x))
        return logits


def _dropout(share: float) -> nn.Module:
    """An identity where nothing is dropped: no graph shows it."""
    return nn.Dropout(share) if share else nn.Identity()
