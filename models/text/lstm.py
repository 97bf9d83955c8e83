"""An LSTM that reads texts of different lengths in both directions, and never their padding.

In torch it is two ``nn.LSTM``: padding only follows a text, so the one that reads forward never meets it before a word,
and the other is given each text reversed within its own length. In ONNX the same is one operator, ``LSTM`` with
``sequence_lens``, which every runtime has; torch's exporter would unroll it over one fixed length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BothWays(nn.Module):
    """One layer, both directions: (N, L, D) -> (N, L, 2 H), zeros at padding."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.forwards = nn.LSTM(width, hidden, batch_first=True)
        self.backwards = nn.LSTM(width, hidden, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """``lengths`` int64 (N,): the real tokens of each text."""
        if torch.onnx.is_in_onnx_export():
            return self._operator(x, lengths)
        order = reversed_places(lengths, x.shape[1])
        ahead, _ = self.forwards(x)
        back, _ = self.backwards(taken(x, order))
        there = torch.arange(x.shape[1], device=x.device)[None] < lengths[:, None]
        return torch.cat([ahead, taken(back, order)], dim=-1) * there[:, :, None].to(x.dtype)  # as ONNX defines it

    def _operator(self, x: Tensor, lengths: Tensor) -> Tensor:
        count, length, _ = x.shape
        both = (self.forwards, self.backwards)
        weights = [torch.stack([_in_onnx_order(getattr(one, f"weight_{side}_l0")) for one in both]) for side in SIDES]
        biases = [torch.cat([_in_onnx_order(getattr(one, f"bias_{side}_l0")) for side in SIDES]) for one in both]
        states = torch.onnx.ops.symbolic(
            "LSTM",
            (x.transpose(0, 1), *weights, torch.stack(biases), lengths.to(torch.int32)),
            {"hidden_size": self.hidden, "direction": "bidirectional"},
            dtype=x.dtype,
            shape=(length, 2, count, self.hidden),
            version=14,
        )
        return states.permute(2, 0, 1, 3).reshape(count, length, 2 * self.hidden)


SIDES = ("ih", "hh")


def _in_onnx_order(rows: Tensor) -> Tensor:
    """Torch has the rows of its gates as input, forget, cell, output; ONNX as input, output, forget, cell."""
    order = torch.tensor([0, 3, 1, 2], device=rows.device)
    gates = rows.reshape(4, len(rows) // 4, *rows.shape[1:])
    return gates.index_select(0, order).reshape(rows.shape)


def reversed_places(lengths: Tensor, length: int) -> Tensor:
    """(N,) -> (N, L): the place that stands at each place of the reversed text; padding stays where it is."""
    places = torch.arange(length, device=lengths.device)[None]
    last = lengths[:, None] - 1
    return torch.where(places <= last, last - places, places)


def taken(x: Tensor, places: Tensor) -> Tensor:
    """(N, L, D) at places (N, M) -> (N, M, D)."""
    return x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))
