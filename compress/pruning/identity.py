"""The place of a block that was dropped: it gives what it takes, so that the other blocks keep their names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from edgewise.config import Config
from edgewise.errors import ModelError


class BlocksDropped(Config):
    """Whole residual blocks were dropped: an identity stands at their place."""

    kind: Literal["blocks_dropped"] = "blocks_dropped"
    names: tuple[str, ...] = Field(min_length=1)


class Dropped(nn.Module):
    """What stands where a block was; whatever else the block was told (masks, positions) is not read."""

    def forward(self, x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """As given, any shape."""
        return x


def put_identities(model: nn.Module, names: Iterable[str]) -> None:
    """Drop these blocks, in place.

    Raises:
        ModelError: the model has no module of this name.
    """
    modules = dict(model.named_modules())
    for name in names:
        if not name or name not in modules:
            raise ModelError("the model has no block of this name", where=name, hint="drop blocks again")
        model.set_submodule(name, Dropped().train(modules[name].training))
