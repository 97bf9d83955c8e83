"""A vision transformer, Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929.

Pre-norm blocks, a class token, learned positions. State-dict keys (``cls_token pos_embed patch_embed.proj
blocks.N.{norm1,attn.qkv,attn.proj,norm2,mlp.fc1,mlp.fc2} norm head``) are those of timm's checkpoints, so those load.

What losses can tap: ``blocks.N`` gives tokens (N, L, D), ``blocks.N.attn.softmax`` attention weights (N, heads, L, L).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewise.models.attention import Attention, Mlp


class PatchEmbed(nn.Module):
    """(N, C, H, W) -> tokens (N, H / patch * W / patch, dim)."""

    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Cut into patches and project each."""
        patches: Tensor = self.proj(x)
        return patches.flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and added to its input."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class ViT(nn.Module):
    """(N, C, H, W) -> logits (N, classes)."""

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        *,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        length = (height // patch) * (width // patch) + 1
        self.patch_embed = PatchEmbed(patch, channels, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, length, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes), read from the class token."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        logits: Tensor = self.head(x[:, 0])
        return logits
