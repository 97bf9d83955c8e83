"""A user's own loss, by import path: a function ``(student, teacher, batch, **arguments) -> scalar``, or a class of
``torch.nn.Module`` where the loss learns something beside the student.

``student`` and ``teacher`` are :class:`Outputs`, ``batch`` is a :class:`Batch`. A class is made with
``(sizes, **arguments)`` and called like the function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, JsonValue

from edgewise.compress.losses.base import Batch, Layers, Loss, Outputs, Sizes
from edgewise.errors import ModelError
from edgewise.models import factory
from edgewise.models.config import IMPORT_PATH

if TYPE_CHECKING:
    from torch import Tensor, nn


class Custom(Loss):
    """A loss from the user's own file."""

    kind: Literal["custom"]
    loss: str = Field(pattern=IMPORT_PATH, description="package.module:name")
    layers: Layers | None = Field(None, description="whose features it gets; none: logits alone")
    arguments: dict[str, JsonValue] = Field(default={}, description="keyword arguments")

    def wanted_layers(self) -> Layers:
        """None wanted is an empty list here: a class is to be made all the same."""
        return self.layers if self.layers is not None else ()

    def learner(self, sizes: Sizes) -> nn.Module | None:
        """The user's module, where the path names a class."""
        from torch import nn

        if not isinstance(factory.resolve(self.loss, error=ModelError), type):
            return None
        made = factory.call(self.loss, sizes, error=ModelError, arguments=dict(self.arguments))
        if not isinstance(made, nn.Module):
            raise ModelError(f"expected a torch.nn.Module, got {type(made).__name__}", where=self.loss)
        return made

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """What the user's code says.

        Raises:
            ModelError: the call fails, or what it gives is no scalar tensor.
        """
        import torch

        found: Any
        if learner is not None:
            found = learner(student, teacher, batch)
        else:
            arguments = dict(self.arguments)
            found = factory.call(self.loss, student, teacher, batch, error=ModelError, arguments=arguments)
        if not isinstance(found, torch.Tensor) or found.dim() != 0:
            got = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise ModelError(f"expected a scalar tensor, got {got}", where=self.loss, hint="end it with .mean()")
        return found
