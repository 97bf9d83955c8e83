"""The files for OpenVINO: ``.xml`` (the graph) and ``.bin`` (the weights). A model's size is that of both together."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from edgewise.deploy.config import Precision
from edgewise.deploy.convert.base import Source, arithmetic, named, need, write_report
from edgewise.deploy.runtimes.base import reason
from edgewise.deploy.runtimes.ov import load_openvino
from edgewise.errors import ContractError, ModelError

ARITHMETIC = frozenset(("Convolution", "GroupConvolution", "FullyConnected", "MatMul", "Deconvolution"))
INTEGER = frozenset(("i8", "u8"))
NAMELESS = frozenset(("Const", "Convert", "FakeQuantize", "Multiply"))  # their consumers keep the layers' names
DEFAULTS = frozenset((("auto_broadcast", "numpy"), ("auto_pad", "explicit")))
COUNTED = re.compile(r"_\d+$")  # OpenVINO numbers what has no name of its own
BARE = "/WithoutBiases"  # what it adds to the name of a layer whose bias it takes apart


def convert(source: Source, precision: Precision, out: Path) -> Path:
    """Write ``<out>.xml``, ``<out>.bin`` and ``<out>.report.json``; the ``.xml`` is returned.

    float16 halves the stored weights; the arithmetic is OpenVINO's choice when it runs.

    Raises:
        ModelError: no exported graph, or OpenVINO refuses it.
        ContractError: an int8 graph that OpenVINO would run in float.
    """
    openvino = load_openvino()
    int8 = precision == "int8"
    graph = need(source.unsigned_onnx if int8 else source.float_onnx, "an ONNX graph " + ("with Q/DQ" if int8 else ""))
    xml, weights = named(out, ".xml"), named(out, ".bin")
    try:
        model = openvino.convert_model(graph)
        model.set_friendly_name("edgewise")
        openvino.save_model(model, xml, compress_to_fp16=precision == "float16")
        xml.write_text(slim(xml.read_text(encoding="utf-8")), encoding="utf-8")
        layers = executed_layers(openvino, xml)
    except Exception as error:  # its frontends' errors share no base with its other ones
        raise ModelError(f"OpenVINO refuses the graph: {reason(error)}", where=str(graph)) from error
    floating = [name for _, kind, name in layers if kind not in INTEGER]
    integer = len(layers) - len(floating)
    if int8 and not integer:
        raise ContractError(
            f"OpenVINO would run all {len(floating)} arithmetic layers in float",
            where=str(graph),
            hint="quantize activations per tensor and weights per channel",
        )
    write_report(
        out,
        {
            "runtime": "openvino",
            "precision": precision,
            "size_bytes": xml.stat().st_size + weights.stat().st_size,
            "layers": dict(sorted(Counter(f"{layer} {kind}" for layer, kind, _ in layers).items())),
            **arithmetic(integer, floating),
        },
    )
    return xml


def slim(xml: str) -> str:
    """The same graph in fewer bytes, the same in every process: for a small int8 net the text is much of its size.

    Gone are the conversion's notes (versions, paths), indentation, what OpenVINO infers again when it reads (shapes
    and types of inner ports, default attributes), names of constants and quantizers, and constants that one layer is
    given twice. Equal constants of *different* layers stay apart: shared, they keep OpenVINO from fusing quantizers.
    """
    net = ElementTree.fromstring(xml)  # OpenVINO wrote it a moment ago
    notes = net.find("rt_info")
    if notes is not None:
        net.remove(notes)
    layers = {layer.get("id", ""): layer for layer in net.iter("layer")}
    edges = list(net.iter("edge"))
    _merge_constants(net, layers, edges)
    ends = {number for number, layer in layers.items() if layer.get("type") == "Result"}
    # An output's name is that of the tensor that flows into it.
    outer = {(edge.get("from-layer"), edge.get("from-port")) for edge in edges if edge.get("to-layer") in ends}
    for number, layer in layers.items():
        inner = layer.get("type") not in ("Parameter", "Result")
        kind, name = layer.get("type", ""), layer.get("name", "")
        # Reports name arithmetic layers: a user's own ``conv_1`` stays.
        counted = name.startswith(f"{kind}_") or kind not in ARITHMETIC
        if kind in NAMELESS or (inner and counted and COUNTED.search(name)):
            layer.set("name", number)
        for port in layer.iter("port"):
            port[:] = []
            if inner and (number, port.get("id")) not in outer:
                port.attrib.pop("names", None)
        for port in layer.iterfind("input/port"):
            port.attrib.pop("precision", None)
        data = layer.find("data")
        if data is not None:
            for name, value in list(data.items()):
                if (name, value) in DEFAULTS:
                    del data.attrib[name]
                else:
                    data.set(name, value.replace(", ", ","))
            if not data.attrib:
                layer.remove(data)
    for element in net.iter():
        element.text = (element.text or "").strip() or None
        element.tail = None
    text = ElementTree.tostring(net, encoding="unicode").replace(" />", "/>")
    return '<?xml version="1.0"?>\n' + text + "\n"


def _merge_constants(
    net: ElementTree.Element, layers: dict[str, ElementTree.Element], edges: list[ElementTree.Element]
) -> None:
    """Let a layer that is given the same constant at two ports read it once."""
    users: dict[str, set[str]] = {}
    for edge in edges:
        users.setdefault(edge.get("from-layer", ""), set()).add(edge.get("to-layer", ""))
    parent = net.find("layers")
    first: dict[tuple[str, bytes], str] = {}
    for number, layer in list(layers.items()):
        data = layer.find("data")
        if layer.get("type") != "Const" or data is None or len(users.get(number, ())) != 1 or parent is None:
            continue
        kept = first.setdefault((min(users[number]), ElementTree.tostring(data)), number)
        if kept != number:
            parent.remove(layers.pop(number))
            for edge in edges:
                if edge.get("from-layer") == number:
                    edge.set("from-layer", kept)


def executed_layers(openvino: Any, xml: Path) -> list[tuple[str, str, str]]:
    """(layer type, precision it runs in, name) of the arithmetic layers in the graph this CPU really executes."""
    compiled = openvino.Core().compile_model(
        xml, "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": openvino.Type.f32}
    )
    layers = []
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        layer = _text(info, "layerType")
        if layer in ARITHMETIC:
            name = op.get_friendly_name().removesuffix(BARE)
            layers.append((layer, _text(info, "runtimePrecision"), name))
    return layers


def _text(info: Any, key: str) -> str:
    value = info[key] if key in info else ""  # noqa: SIM401 - its map has no get()
    return str(getattr(value, "value", value))
