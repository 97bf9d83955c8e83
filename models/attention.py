"""What every transformer here is made of: attention with one fused projection, and the two linear layers behind it.

What losses can tap: ``attn.softmax`` gives attention weights (N, heads, L, L), ``attn.qkv`` queries, keys and values.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Activation = Literal["gelu", "gelu_tanh", "relu"]


class Attention(nn.Module):
    """Multi-head self-attention on tokens (N, L, D), with one fused projection for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.softmax = nn.Softmax(dim=-1)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, L, D) -> (N, L, D). ``mask`` is added to the scores: (N, 1, 1, L), very negative where none may look."""
        length = x.shape[1]
        qkv = self.qkv(x).reshape(-1, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        # Written out: the exporter surrounds scaled_dot_product_attention with some eight shape nodes a block, which
        # cost 2 to 3 % in ONNX Runtime and OpenVINO.
        scores = (query * self.head_dim**-0.5) @ key.transpose(-2, -1)
        weights = self.softmax(scores if mask is None else scores + mask)
        out = (weights @ value).transpose(1, 2)
        mixed: Tensor = self.proj(out.reshape(-1, length, self.num_heads * self.head_dim))
        return mixed


class Mlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, dim: int, hidden: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = activation_of(activation)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        x = self.fc2(self.act(self.fc1(x)))
        return x


def activation_of(name: Activation) -> nn.Module:
    """``gelu`` with the error function, ``gelu_tanh`` its approximation, or ``relu``."""
    if name == "relu":
        return nn.ReLU()
    return nn.GELU(approximate="tanh" if name == "gelu_tanh" else "none")
