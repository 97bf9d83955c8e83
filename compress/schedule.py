"""A number that may change while training goes on: a weight, a temperature. Torch-free.

Time is counted in epochs, with their fraction: 2.5 is the middle of the third epoch.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from edgewise.config import Config

# Infinity and NaN would also not survive being written to a recipe.
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Warmup(Config):
    """From 0 in a straight line to ``value`` after ``epochs``, then constant."""

    kind: Literal["warmup"]
    value: Finite = Field(ge=0)
    epochs: Finite = Field(gt=0)


class Linear(Config):
    """From ``start`` to ``end`` in a straight line over the whole run."""

    kind: Literal["linear"]
    start: Finite = Field(ge=0)
    end: Finite = Field(ge=0)


class Cosine(Config):
    """From ``start`` to ``end`` along half a cosine over the whole run: slow at both ends."""

    kind: Literal["cosine"]
    start: Finite = Field(ge=0)
    end: Finite = Field(ge=0)


class Piecewise(Config):
    """Constant between the given epochs."""

    kind: Literal["piecewise"]
    points: tuple[tuple[Finite, Finite], ...] = Field(
        min_length=1, description="[epoch, value], the first at epoch 0, in order"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Piecewise:
        epochs = [epoch for epoch, _ in self.points]
        if epochs[0] != 0 or any(later <= earlier for earlier, later in pairwise(epochs)):
            raise ValueError("points: the first must be at epoch 0, and each later than the one before")
        if any(value < 0 for _, value in self.points):
            raise ValueError("points: values must be 0 or more")
        return self


def _kind(value: Any) -> str | None:
    if isinstance(value, dict):
        return str(value.get("kind"))
    return getattr(value, "kind", "number")


Value = Annotated[
    Annotated[Annotated[Finite, Field(ge=0)], Tag("number")]
    | Annotated[Warmup, Tag("warmup")]
    | Annotated[Linear, Tag("linear")]
    | Annotated[Cosine, Tag("cosine")]
    | Annotated[Piecewise, Tag("piecewise")],
    Discriminator(_kind),
]
"""A constant, or a schedule over the epochs."""


def numbers(value: Value) -> list[float]:
    """Every number that ``value`` is made of; it stays between the smallest and the largest."""
    if isinstance(value, Warmup):
        return [0.0, value.value]
    if isinstance(value, Piecewise):
        return [number for _, number in value.points]
    return [value.start, value.end] if isinstance(value, Linear | Cosine) else [value]


def last_change(value: object) -> float:
    """The epoch at which a schedule with epochs of its own comes to rest; 0 for anything else."""
    if isinstance(value, Piecewise):
        return value.points[-1][0]
    return value.epochs if isinstance(value, Warmup) else 0.0


def _positive(value: Value) -> Value:
    least = min(numbers(value))
    if least <= 0:
        where = f"a {value.kind} that reaches {least:g}" if isinstance(value, Config) else f"{least:g}"
        raise ValueError(f"a temperature must stay above 0, got {where}")
    return value


Temperature = Annotated[Value, AfterValidator(_positive)]
"""A value that never reaches 0."""


def value_at(value: Value, epoch: float, epochs: float) -> float:
    """The number at ``epoch`` (0 to ``epochs``, with its fraction) of a run of ``epochs``."""
    if isinstance(value, Warmup):
        return value.value * min(epoch / value.epochs, 1.0)
    if isinstance(value, Piecewise):
        return [number for start, number in value.points if start <= epoch][-1]
    if isinstance(value, Linear | Cosine):
        part = min(max(epoch / epochs, 0.0), 1.0)
        if isinstance(value, Cosine):
            part = 0.5 * (1 - math.cos(math.pi * part))
        return value.start + (value.end - value.start) * part
    return float(value)
