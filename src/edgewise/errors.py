"""Every error a user can cause, in one small tree.

    EdgewiseError            exit code 2
    ├── RecipeError          the recipe, or a file it names, is not usable
    ├── DataError            the task's data
    ├── WeightsError         a weights file: unreadable, unsafe, of another architecture, not finite
    ├── ModelError           a model that can't be built, pruned, quantized or exported as asked
    ├── ArtifactError        a run folder or a stage in it
    ├── ContractError        a graph that a runtime would refuse, or silently run in float
    ├── RuntimeMissing       an optional runtime isn't installed here
    ├── MeasureError         a measurement that could not be made
    │   └── NothingMeasured  exit code 3
    └── DeviceError          exit code 5

This file is the one leaf that every room may import; it runs on Python 3.8, because the device agent carries it.
"""

from __future__ import annotations


class EdgewiseError(Exception):
    """A user's mistake or an impossible wish: what was expected, what came, where, and the next step.

    Args:
        message: what was expected and what came.
        where: recipe path, file, tensor or layer name.
        hint: the next step.
    """

    exit_code = 2

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  next: {self.hint}" if self.hint else text


class RecipeError(EdgewiseError):
    """The recipe, or a file it names, is not usable."""


class DataError(EdgewiseError):
    """The task's data is empty, of the wrong shape, or labelled out of range."""


class WeightsError(EdgewiseError):
    """A weights file is unreadable, unsafe, of another architecture, or holds NaN."""


class ModelError(EdgewiseError):
    """A model can't be built, pruned, quantized or exported as asked."""


class ArtifactError(EdgewiseError):
    """A run folder, or a stage in it, can't be read or written."""


class ContractError(EdgewiseError):
    """A graph that a runtime would refuse, or would silently run in float."""


class RuntimeMissing(EdgewiseError):
    """An optional runtime isn't installed here."""


class MeasureError(EdgewiseError):
    """A measurement could not be made, or a file can't run."""


class NothingMeasured(MeasureError):
    """Not one file could be measured: each one's process died, hung or refused."""

    exit_code = 3


class DeviceError(EdgewiseError):
    """The device to measure on can't be used: no answer, a broken link, in use, full, or without what it needs."""

    exit_code = 5


class AddressError(DeviceError):
    """No device can be called so: trying again won't help."""

    exit_code = 2
