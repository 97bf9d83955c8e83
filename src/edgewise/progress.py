"""How long work tells how far it is: a plain callable, handed down from the command line."""

from __future__ import annotations

from collections.abc import Callable

Tick = Callable[[int, int, str], None]
"""``tick(done, total, note)``: ``note`` is short, such as "epoch 2/4 loss 0.31"."""


def silent(done: int, total: int, note: str) -> None:
    """Say nothing."""
