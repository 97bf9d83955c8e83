"""An ONNX file as a torch net with its weights: everything downstream works on it that needs no training.

What comes out is a module tree like a net's written by hand (``layer1.0.conv1`` is an ``nn.Conv2d``), not a graph
object: quantizers, channel pruning and the converters treat it as any other net. Constants that no layer holds, such as
learned positions, are buffers: training leaves them as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.errors import ModelError
from edgewise.models.config import OnnxFile, OnnxGraph
from edgewise.models.onnx.program import OnnxNet, Program, Step

if TYPE_CHECKING:
    from edgewise.models.onnx.read import OnnxFileGraph

MIN_SQNR_DB = 60.0  # both compute in float32, in another order


def load_onnx(path: Path) -> OnnxNet:
    """The net of an ONNX file, in eval mode: (N, …) float32 -> (N, …) float32, for any N.

    Its answers to random inputs are compared with ONNX Runtime's, for two numbers of samples.

    Raises:
        ModelError: the file can't be read, is quantized already, has an operator that isn't translated, more than one
            input or output, or the net's answers differ; it names the node.
    """
    from edgewise.models.onnx.ops import translate
    from edgewise.models.onnx.patterns import simplify
    from edgewise.models.onnx.read import read

    graph = read(path)
    program, weights = translate(simplify(graph))
    net = OnnxNet(Program.from_json(program.to_json())).eval()  # as it will be saved
    state = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    state |= {name: value for name, value in net.state_dict().items() if name.endswith("num_batches_tracked")}
    net.load_state_dict(state)
    _check(net, graph)
    return net


def build_file(config: OnnxFile, input_shape: tuple[int, ...], classes: int) -> OnnxNet:
    """The net of ``config.path``, checked against the task's shapes.

    Raises:
        ModelError: see :func:`load_onnx`, or another input shape (C, H, W), or another number of classes.
    """
    net = load_onnx(config.path)
    _check_ends(net.program, input_shape, classes, str(config.path))
    return net


def build_graph(config: OnnxGraph, input_shape: tuple[int, ...], classes: int) -> OnnxNet:
    """The net of a saved program, with fresh weights.

    Raises:
        ModelError: it is no program, or one for other shapes.
    """
    net = OnnxNet(Program.from_json(config.program))
    _check_ends(net.program, input_shape, classes, "onnx_graph")
    return net


def without_file(config: OnnxFile, model: nn.Module) -> OnnxGraph:
    """What a saved model says instead of the path of a file: the program itself.

    Raises:
        ModelError: ``model`` was not made from a file.
    """
    for module in model.modules():
        if isinstance(module, OnnxNet):
            return OnnxGraph(program=module.program.to_json())
    raise ModelError("expected a net that was read from an ONNX file", where=str(config.path))


def _check_ends(program: Program, input_shape: tuple[int, ...], classes: int, where: str) -> None:
    if program.input_shape != tuple(input_shape):
        raise ModelError(
            f"expected inputs {tuple(input_shape)}, which is what the task has, the file takes {program.input_shape}",
            where=where,
            hint="let the task give inputs of the file's size",
        )
    if program.output_shape != (classes,):
        raise ModelError(
            f"expected logits (N, {classes}), one for each of the task's classes, "
            f"the file gives (N, {', '.join(map(str, program.output_shape))})",
            where=where,
        )


def sqnr_db(reference: np.ndarray, answer: np.ndarray) -> float:
    """How far the error lies below the signal, in dB; NaN where either isn't finite."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(reference.astype(np.float64) - answer).sum())
    if not np.isfinite(signal + noise):
        return float("nan")
    return float("inf") if noise == 0 else 10 * float(np.log10(max(signal, 1e-30) / noise))


def _check(net: OnnxNet, graph: OnnxFileGraph) -> None:
    """The net against ONNX Runtime.

    Raises:
        ModelError: naming the first node whose answer differs.
    """
    for known in graph.runs.values():
        samples = torch.from_numpy(known[graph.input])
        with torch.no_grad():
            answer = _run(net, samples, graph)
        found = _compare(known[graph.output], answer)
        if not found >= MIN_SQNR_DB:
            raise ModelError(
                f"expected at least {MIN_SQNR_DB:.0f} dB against ONNX Runtime, got {found:.1f} dB{_first(net, graph)}",
                where=graph.where,
                hint="report the node, and give the torch model instead",
            )


def _run(net: OnnxNet, samples: Tensor, graph: OnnxFileGraph) -> Tensor:
    at = [""]
    try:
        return net.run(samples, lambda step, _: at.__setitem__(0, step.name))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        text = str(error).splitlines()[0]
        after = f" after {at[0]}" if at[0] else ""
        raise ModelError(f"the translated net can't run{after}: {text}", where=graph.where) from error


def _compare(expected: np.ndarray, answer: Tensor) -> float:
    mine = answer.detach().numpy()
    return float("-inf") if mine.shape != expected.shape else sqnr_db(expected, mine.astype(np.float64))


def _first(net: OnnxNet, graph: OnnxFileGraph) -> str:
    """The first node that differs, in words; nothing where only the whole does."""
    known = next(iter(graph.runs.values()))
    found: list[str] = []

    def look(step: Step, value: Tensor) -> None:
        name = step.outputs[0]
        if not found and name in known and known[name].dtype == np.float32:
            db = _compare(known[name], value)
            if not db >= MIN_SQNR_DB:
                node = next(node for node in graph.nodes if name in node.output)
                found.append(f"; the first node that differs is {node.op_type} {node.name or name} ({db:.1f} dB)")

    with torch.no_grad():
        net.run(torch.from_numpy(known[graph.input]), look)
    return found[0] if found else ""


__all__ = ["build_file", "build_graph", "load_onnx", "without_file"]
