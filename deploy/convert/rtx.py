"""What TensorRT-RTX makes of a graph. Its parser and builder need no GPU, so any machine can ask them.

It is asked for an Ampere GPU (compute capability 8.6), and answers with a log: which layers the engine has, what they
were made of and what they compute in. Nothing here says how fast an engine is, and these engines run on no Jetson.

``python -m edgewise.deploy.convert.rtx GRAPH SHAPE RESULT`` is one question, in a process of its own: a crash of the
builder, or a build without end, stops nobody else.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edgewise.deploy.convert.executed import read_back
from edgewise.deploy.convert.trt_build import build
from edgewise.errors import ContractError, EdgewiseError

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
        shape: of its one input, (N, C, H, W).
        timeout_s: seconds that it may take.

    Returns:
        dict: ``layers`` with their types; the shares that every conversion's report has; ``error`` where its process
        crashed or took too long, which says nothing about the graph.

    Raises:
        ContractError: it refuses the graph.
    """
    if module_name() is None:
        return None
    with tempfile.TemporaryDirectory(prefix="edgewise-rtx-") as folder:
        answer = Path(folder) / "answer.json"
        size = "x".join(map(str, shape))
        command = [sys.executable, "-m", "edgewise.deploy.convert.rtx", str(graph), size, str(answer)]
        try:
            done = subprocess.run(
                command, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout_s, check=False, text=True
            )
        except subprocess.TimeoutExpired:
            return {"error": f"TensorRT-RTX took longer than {timeout_s:g} s"}
        if not answer.exists():
            return {"error": f"TensorRT-RTX {_ended(done.returncode)}: {done.stderr.strip().splitlines()[-1:]}"}
        told: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "refused" in told:
        raise ContractError(f"TensorRT-RTX: {told['refused']}", where=graph.name)
    layers = parse_layers(told["log"])
    computing = [layer for layer in layers if layer.kind.lower() in COMPUTING]
    model = onnx.load(graph)
    return {
        "tool": f"TensorRT-RTX {told['version']}",
        "compute_capability": "8.6",
        "layers": [" ".join((layer.kind, *layer.inputs)) for layer in layers],
        **read_back(model, ((layer.nodes, layer.integer) for layer in computing)),
    }


def _ended(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with code {code}"


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
    if len(arguments) != 3:
        print("usage: python -m edgewise.deploy.convert.rtx GRAPH.onnx 1x3x224x224 RESULT.json", file=sys.stderr)
        return 2
    graph, size, answer = arguments
    told = ask(Path(graph), tuple(int(part) for part in size.split("x")))
    Path(answer).write_text(json.dumps(told), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
