"""What TensorRT-RTX makes of a graph. Its parser and builder need no GPU, so any machine can ask them.

It is asked for an Ampere GPU (compute capability 8.6), and answers with a log: which layers the engine has, what they
were made of and what they compute in. Nothing here says how fast an engine is, and these engines run on no Jetson.

Each question is a process of its own: a crash of the builder, or a build without end, stops nobody else.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edgewise.deploy import child
from edgewise.deploy.convert.executed import read_back
from edgewise.deploy.convert.trt_build import build
from edgewise.errors import ContractError, EdgewiseError, ModelError

# The wheels install the bindings under a name of their own; NVIDIA's archive has them as tensorrt_rtx.
MODULES = ("tensorrt_rtx_bindings", "tensorrt_rtx")
COMPUTING = frozenset(("correlation", "gemm", "matmul", "conv", "convolution", "caskconvolution", "deconvolution"))
TIMEOUT_S = 300.0
LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), Inputs: \[(?P<inputs>.*?)\]"
    r"(?:, Constants: \[(?P<constants>.*?)\])?, Outputs: "
)


@dataclass(frozen=True)
class EngineLayer:
    """One layer of a built engine: its type, those of its inputs and constants, and the ONNX nodes it was made of."""

    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def integer(self) -> bool:
        """Whether it multiplies integers: with stored ones, or with one another."""
        return self.inputs.count("Int8") > ("Int8" not in self.constants)


def module_name() -> str | None:
    """The module that TensorRT-RTX is imported as; None where it isn't installed."""
    return next((name for name in MODULES if importlib.util.find_spec(name) is not None), None)


def conformance(graph: Path, shape: tuple[int, ...], timeout_s: float = TIMEOUT_S) -> dict[str, Any] | None:
    """What TensorRT-RTX makes of the graph, for an Ampere GPU; None where it isn't installed. No GPU is needed.

    Args:
        graph: the .onnx file.
        shape: of its one input, (N, C, H, W) or (N, L).
        timeout_s: seconds that it may take.

    Returns:
        dict: ``layers`` with their types; the shares that every conversion's report has; ``error`` where its process
        crashed or took too long, which says nothing about the graph.

    Raises:
        ContractError: it refuses the graph.
    """
    if module_name() is None:
        return None
    question = json.dumps({"graph": str(graph), "shape": shape})
    try:
        told = child.ask(
            "edgewise.deploy.convert.rtx", question, what="TensorRT-RTX", where=graph.name, timeout_s=timeout_s
        )
    except ModelError as error:
        return {"error": str(error)}
    if "refused" in told:
        raise ContractError(f"TensorRT-RTX: {told['refused']}", where=graph.name)
    layers = parse_layers(told["log"])
    computing = [layer for layer in layers if layer.kind.lower() in COMPUTING]
    model = onnx.load(graph)
    return {
        "tool": f"TensorRT-RTX {told['version']}",
        "compute_capability": "8.6",
        "layers": [" ".join((layer.kind, *layer.inputs)) for layer in layers],
        **read_back(model, ((layer.nodes, layer.integer) for layer in computing), shape[1] if len(shape) == 2 else 1),
    }


def parse_layers(log: str) -> list[EngineLayer]:
    """The engine's layers, in order, from a builder's detailed log."""
    layers = []
    for line in log.splitlines():
        found = LINE.match(line)
        if found:
            inputs, constants = (tuple(re.findall(r"Datatype: (\w+)", found[part] or "")) for part in (3, 4))
            nodes = tuple(re.findall(r"\[ONNX Layer: ([^\]]+)\]", line))
            layers.append(EngineLayer(found["kind"], inputs, constants, nodes))
    return layers


def ask(graph: Path, shape: tuple[int, ...]) -> dict[str, str]:
    """Build the graph in this process: ``version`` and ``log``, or ``refused``."""
    name = module_name()
    assert name is not None
    api = importlib.import_module(name)
    messages: list[str] = []

    class Collector(api.ILogger):  # type: ignore[misc, name-defined]
        """Keeps the log: it is where the layers of an engine are told without a GPU."""

        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            messages.append(message)

    try:
        build(api, graph, shape, Collector(), api.ComputeCapability.SM86)
    except EdgewiseError as error:
        errors = [text for text in messages if "rror" in text][-1:]
        return {"refused": " ".join((error.message, *errors))[:2000]}
    return {"version": str(api.__version__), "log": "\n".join(text for text in messages if "LayerType" in text)}


def main(arguments: list[str]) -> int:
    """Answer one question; the exit code."""
    if len(arguments) != 2:
        print("usage: python -m edgewise.deploy.convert.rtx QUESTION.json ANSWER.json", file=sys.stderr)
        return 2
    asked = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    return child.answer(Path(arguments[1]), lambda: ask(Path(asked["graph"]), tuple(asked["shape"])))


if __name__ == "__main__":
    child.die_with_parent()
    sys.exit(main(sys.argv[1:]))
