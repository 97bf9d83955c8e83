"""One method, one small file. Adding a loss is one file here, one line below and one test file.

A loss file defines a pure function and its config; the config is callable on
``(student: Outputs, teacher: Outputs, batch: Batch)`` and picks the tensors. Torch is imported for types only, or
inside the function, so that a recipe is validated without it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from edgewise.compress.losses.attention_transfer import AttentionTransfer
from edgewise.compress.losses.kd import KD

LossConfig = Annotated[KD | AttentionTransfer, Field(discriminator="kind")]

__all__ = ["KD", "AttentionTransfer", "LossConfig"]
