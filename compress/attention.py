"""Attention modules whose heads can be counted and changed: their projections by name, the attributes that say widths.

Known by what they hold, not by their class: a count of heads, and one fused or three separate linear projections that
give heads times head width numbers. That is timm's ``Attention``, edgewise's own, and Hugging Face's encoders.
``nn.MultiheadAttention`` is none of them: its heads always fill ``embed_dim``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

COUNTS = ("num_heads", "num_attention_heads", "n_heads", "heads")
"""Attributes that hold the number of heads."""

WIDTHS = ("all_head_size", "attn_dim", "inner_dim", "embed_dim", "dim", "hidden_size")
"""Attributes that may hold heads times head width, which a forward reads to put the heads together."""

FUSED = ("qkv", "to_qkv", "qkv_proj", "in_proj")
SEPARATE = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"),
    ("q", "k", "v"),
)


@dataclass(frozen=True)
class Attention:
    """``projections``: names of the fused projection, or of queries', keys' and values'. A fused one has its queries
    first, then its keys, then its values."""

    heads: int
    head_dim: int
    projections: tuple[str, ...]

    @property
    def fused(self) -> bool:
        """One projection gives queries, keys and values."""
        return len(self.projections) == 1

    def rows(self, heads: list[int]) -> list[int]:
        """The outputs of each projection that belong to these heads."""
        width = self.heads * self.head_dim
        starts = [part * width + head * self.head_dim for part in range(3 if self.fused else 1) for head in heads]
        return sorted(start + row for start in starts for row in range(self.head_dim))

    def columns(self, heads: list[int]) -> list[int]:
        """The inputs of the output projection that these heads write."""
        return sorted(head * self.head_dim + column for head in heads for column in range(self.head_dim))


def attention_of(module: nn.Module) -> Attention | None:
    """What kind of attention ``module`` is; None where it is none, or none whose heads could leave."""
    counts = {value for name in COUNTS if (value := _integer(module, name))}
    if len(counts) != 1 or isinstance(module, nn.MultiheadAttention):
        return None
    heads = counts.pop()
    for names in (*((name,) for name in FUSED), *SEPARATE):
        layers = [module._modules.get(name) for name in names]
        widths = {layer.out_features for layer in layers if isinstance(layer, nn.Linear)}
        if len(widths) != 1 or not all(isinstance(layer, nn.Linear) for layer in layers):
            continue  # keys and values of another width: heads share them, so none can leave alone
        parts = heads * (3 if len(names) == 1 else 1)
        return None if (width := widths.pop()) % parts else Attention(heads, width // parts, names)
    return None


def sizes(module: nn.Module) -> dict[str, int]:
    """The attributes of an attention module that go with its heads, by name, the count of heads first; empty where
    :func:`attention_of` knows none. A fixed head width is not among them: it stays when heads leave."""
    found = attention_of(module)
    if found is None:
        return {}
    counts = {name: found.heads for name in COUNTS if _integer(module, name)}
    width = found.heads * found.head_dim
    return counts | {name: width for name in WIDTHS if _integer(module, name) == width}


def _integer(module: nn.Module, name: str) -> int:
    value = module.__dict__.get(name, 0)  # a property could not be set
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
