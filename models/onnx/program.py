"""An ONNX file as a torch module: layers with names, and a short program of plain torch functions that calls them.

The program is data. It is saved beside a model's tensors, and running it runs nothing but what is listed here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.errors import ModelError
from edgewise.models.onnx.functions import DTYPES, FUNCTIONS, LAYERS

CONSTANTS = "constants"
BATCH = "N"  # in a shape: this many times the batch, as "N" or "3N"

# A tensor's name, or a number that needs no tensor.
Input = str | float | int | bool


@dataclass(frozen=True)
class Step:
    """One call. ``op`` is a key of :data:`FUNCTIONS`, or "layer": the module called ``name``. A function's ``name`` is
    the place in the net where it was called."""

    name: str
    op: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Constant:
    """A tensor that no layer holds; small ones with their values, large ones with the model's weights."""

    dtype: str
    shape: tuple[int, ...]
    values: tuple[float | str, ...] | None  # "-inf" as text: JSON has no such number


@dataclass(frozen=True)
class Program:
    """``input_shape`` and ``output_shape`` are without the batch; ``layers`` are classes of :data:`LAYERS` and their
    arguments, by the module's name."""

    input: str
    output: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    layers: Mapping[str, Mapping[str, Any]]
    constants: Mapping[str, Constant]
    steps: tuple[Step, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples as lists
        return plain

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> Program:
        """The program that ``to_json`` wrote.

        Raises:
            ModelError: it isn't one.
        """
        try:
            steps = tuple(
                Step(step["name"], step["op"], tuple(step["inputs"]), tuple(step["outputs"]), step["settings"])
                for step in plain["steps"]
            )
            constants = {
                name: Constant(c["dtype"], tuple(c["shape"]), None if c["values"] is None else tuple(c["values"]))
                for name, c in plain["constants"].items()
            }
            return Program(
                plain["input"],
                plain["output"],
                tuple(plain["input_shape"]),
                tuple(plain["output_shape"]),
                dict(plain["layers"]),
                constants,
                steps,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"not the program of a saved ONNX model: {error!r}", where="onnx_graph") from error


class Scope(nn.Module):
    """A place in a module's name: ``layer1.0.conv1`` is called through ``layer1`` and ``layer1.0``, as in a net written
    by hand, so that whoever follows the calls finds the names."""

    def forward(self, steps: tuple[str, ...], function: Callable[..., Any] | None, given: Any, settings: Any) -> Any:
        """Go down the modules of ``steps``; call the last one, or ``function`` inside it."""
        return _call(self, steps, function, given, settings)


class OnnxNet(nn.Module):
    """The net of a program, with fresh weights; large constants are drawn small and normal."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        for step in program.steps:  # the order of calls, whatever the order in which the file has them
            if step.op == "layer":
                _place(self, step.name, _layer(step.name, program.layers[step.name]))
        held = Scope()
        for name, constant in sorted(program.constants.items()):
            held.register_buffer(name, _constant(constant))
        self.add_module(CONSTANTS, held)
        self._ways = [_way(self, step) for step in program.steps]
        last = {name: place for place, step in enumerate(program.steps) for name in step.inputs}
        # Tensors that nothing reads any more are let go at once.
        self._done = [
            [name for name in dict.fromkeys(step.inputs) if isinstance(name, str) and last[name] == place]
            for place, step in enumerate(program.steps)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """(N, *input_shape) -> (N, *output_shape), both float32."""
        return self.run(x, None)

    def run(self, x: Tensor, keep: Callable[[Step, Tensor], None] | None) -> Tensor:
        """As ``forward``; ``keep`` is told of the first output of every step."""
        batch = x.shape[0]
        values: dict[str, Any] = {self.program.input: x}
        constants = self._modules[CONSTANTS]
        assert constants is not None
        for step, way, done in zip(self.program.steps, self._ways, self._done, strict=True):
            given = [
                (values[name] if name in values else getattr(constants, name)) if isinstance(name, str) else name
                for name in step.inputs
            ]
            settings = {key: _filled(value, batch) for key, value in step.settings.items()}
            made: Any = _call(self, way, FUNCTIONS.get(step.op), given, settings)
            values.update(zip(step.outputs, made if len(step.outputs) > 1 else (made,), strict=True))
            if keep is not None:
                keep(step, values[step.outputs[0]])
            for name in done:
                if name != self.program.output:
                    values.pop(name, None)
        result: Tensor = values[self.program.output]
        return result


def _call(module: nn.Module, steps: tuple[str, ...], function: Callable[..., Any] | None, given: Any, more: Any) -> Any:
    if not steps:
        assert function is not None
        return function(*given, **more)
    inner = module._modules[steps[0]]
    assert inner is not None
    return inner(steps[1:], function, given, more) if isinstance(inner, Scope) else inner(*given)


def _way(net: nn.Module, step: Step) -> tuple[str, ...]:
    """The steps down to where it happens: to the layer, or to the innermost scope of a function's name."""
    steps = tuple(step.name.split("."))
    if step.op == "layer":
        return steps
    for count, name in enumerate(steps):
        inner = net._modules.get(name)
        if not isinstance(inner, Scope):
            return steps[:count]
        net = inner
    return steps


def _place(root: nn.Module, name: str, layer: nn.Module) -> None:
    *scopes, last = name.split(".")
    for scope in scopes:
        inner = root._modules.get(scope)
        if inner is None:
            inner = Scope()
            root.add_module(scope, inner)
        root = inner
    root.add_module(last, layer)


def _layer(name: str, about: Mapping[str, Any]) -> nn.Module:
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in about.items()}
    kind = settings.pop("kind", None)
    if kind not in LAYERS:
        raise ModelError(f"no layer of kind {kind!r}; there are {', '.join(LAYERS)}", where=name)
    return LAYERS[kind](**settings)


def _constant(constant: Constant) -> Tensor:
    dtype = DTYPES[constant.dtype]
    if constant.values is None:
        return torch.randn(constant.shape) * 0.02
    numbers = [float(value) if isinstance(value, str) else value for value in constant.values]
    return torch.tensor(numbers, dtype=dtype).reshape(constant.shape)


def _filled(value: Any, batch: Any) -> Any:
    """A setting with "N" and "3N" as numbers."""
    if isinstance(value, list | tuple):
        return [_filled(item, batch) for item in value]
    if isinstance(value, str) and value.endswith(BATCH) and (value[:-1].isdigit() or value == BATCH):
        return int(value[:-1] or 1) * batch
    return value


def size(shape: Sequence[int]) -> int:
    """How many numbers a tensor of this shape has."""
    return math.prod(shape)


__all__ = ["BATCH", "Constant", "Input", "OnnxNet", "Program", "Scope", "Step", "size"]
