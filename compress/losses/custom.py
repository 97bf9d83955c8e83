"""A user's own loss, by import path: a function ``(student, teacher, batch, **arguments) -> scalar``, or a class of
``torch.nn.Module`` where the loss learns something beside the student.

``student`` and ``teacher`` are :class:`Outputs`, ``batch`` is a :class:`Batch`. A class is made with
``(sizes, **arguments)`` and called like the function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, JsonValue

from edgewise.compress.losses.base import Batch, Layers, Loss, Outputs, Sizes
from edgewise.errors import EdgewiseError, ModelError
from edgewise.models import factory
from edgewise.models.config import IMPORT_PATH

if TYPE_CHECKING:
    from torch import Tensor, nn


@lru_cache
def _resolved(import_path: str) -> Callable[..., Any]:
    return factory.resolve(import_path, error=ModelError)


class Custom(Loss):
    """A loss from the user's own file."""

    reads_mask: ClassVar[bool] = True  # it is in the batch; whether it is used is the user's business

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

        if not isinstance(_resolved(self.loss), type):
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
        arguments = dict(self.arguments) if learner is None else {}
        call = learner if learner is not None else _resolved(self.loss)
        try:
            found = call(student, teacher, batch, **arguments)
        except EdgewiseError:
            raise
        except Exception as cause:  # it is the user's code: anything may come
            raise ModelError(
                f"the call failed: {type(cause).__name__}: {cause}",
                where=self.loss,
                hint="it is called with (student: Outputs, teacher: Outputs, batch: Batch) and your arguments",
            ) from cause
        if not isinstance(found, torch.Tensor) or found.dim() != 0:
            got = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise ModelError(f"expected a scalar tensor, got {got}", where=self.loss, hint="end it with .mean()")
        if student.logits.requires_grad and not found.requires_grad:
            raise ModelError(
                "the student can't learn from it: no gradient reaches the student",
                where=self.loss,
                hint="compute it from student.logits or student.features, without detach",
            )
        return found
