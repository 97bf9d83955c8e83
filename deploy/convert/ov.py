"""The files for OpenVINO: ``.xml`` (the graph) and ``.bin`` (the weights). A model's size is that of both together."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx

from edgewise.config import Precision
from edgewise.deploy.convert.base import Source, named, need, refuse, write_report
from edgewise.deploy.convert.executed import arithmetic, integer_layers, layer_macs, plain
from edgewise.deploy.convert.planned import check_plan
from edgewise.deploy.onnx_graph import to_bytes
from edgewise.deploy.rewrites import free_activations, lift_dequantize
from edgewise.deploy.runtimes.base import reason
from edgewise.deploy.runtimes.ov import load_openvino
from edgewise.deploy.weight_only import store_tables, store_weights
from edgewise.errors import ContractError, ModelError
from edgewise.models.inputs import Shape, drawn

ARITHMETIC = frozenset(("Convolution", "GroupConvolution", "FullyConnected", "MatMul", "Deconvolution"))
INTEGER = frozenset(("i8", "u8"))
NAMELESS = frozenset(("Const", "Convert", "FakeQuantize", "Multiply"))  # their consumers keep the layers' names
DEFAULTS = frozenset((("auto_broadcast", "numpy"), ("auto_pad", "explicit")))
EXACT = {"INFERENCE_NUM_THREADS": 1}
GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
GROUPS: dict[Precision, str] = {"int8_weights": "0", "int8_dynamic": "32"}  # 32 is OpenVINO's own
COUNTED = re.compile(r"_\d+$")  # OpenVINO numbers what has no name of its own


def convert(source: Source, precision: Precision, out: Path) -> Path:
    """Write ``<out>.xml``, ``<out>.bin`` and ``<out>.report.json``; the ``.xml`` is returned.

    float16 halves the stored weights; the arithmetic is OpenVINO's choice when it runs. bfloat16 is stored as float16,
    which has more digits, and computes in bfloat16. With int8_weights and int8_dynamic the file says whether the inputs
    of its matrix products may be quantized as it runs: OpenVINO does that unasked wherever weights are int8.

    Raises:
        ModelError: no exported graph, or OpenVINO refuses it.
        ContractError: an int8 graph that OpenVINO would run in float, a plan that it doesn't obey, or bfloat16 or
            dynamic quantization on a CPU that has no instructions for it.
    """
    refuse("openvino", precision)
    openvino = load_openvino()
    int8 = precision == "int8"
    graph = need(source.unsigned_onnx if int8 else source.float_onnx, "an ONNX graph " + ("with Q/DQ" if int8 else ""))
    xml, weights = named(out, ".xml"), named(out, ".bin")
    given = onnx.load(graph)
    if int8:
        free_activations(given.graph)
        lift_dequantize(given.graph)
    if precision in GROUPS:
        store_weights(given)
    if int8 or precision in GROUPS:
        store_tables(given)
    half = precision in ("float16", "bfloat16")
    try:
        model = _read(openvino, given)
        model.set_friendly_name("edgewise")
        openvino.save_model(model, xml, compress_to_fp16=half)
        xml.write_text(slim(xml.read_text(encoding="utf-8"), GROUPS.get(precision)), encoding="utf-8")
        layers = executed_layers(openvino, xml, openvino.Type.bf16 if precision == "bfloat16" else openvino.Type.f32)
        quantizes = precision == "int8_dynamic" and _quantizes_inputs(openvino, xml, source.input_shape)
    except Exception as error:  # its frontends' errors share no base with its other ones
        raise ModelError(f"OpenVINO refuses the graph: {reason(error)}", where=str(graph)) from error
    # Weights alone in int8 are told as "i8", too, whatever is computed with them.
    whole = int8 or quantizes
    integer = integer_layers(given, ((names, whole and kind in INTEGER) for _, kind, names in layers))
    macs = layer_macs(given, source.length)
    computed = arithmetic(macs, integer)
    if int8:
        check_plan(source.float_layers, {plain(name): name in integer for name in macs}, graph.name)
    if precision == "int8_dynamic" and not (quantizes and integer):
        raise ContractError(
            "OpenVINO would compute in float all the same: it quantizes the inputs of matrix products of more than one "
            "row, on a CPU with instructions for it (AVX512-VNNI), and nothing here is both",
            where=graph.name,
            hint="take int8, or int8_weights for size alone",
        )
    if precision == "bfloat16" and not any(kind == "bf16" for _, kind, _ in layers):
        raise ContractError(
            "OpenVINO would compute in float32: this CPU has no instructions for bfloat16 (avx512_bf16, amx_bf16)",
            where=graph.name,
            hint="take float32 or int8",
        )
    if int8 and not computed["integer_ops"]:
        raise ContractError(
            f"OpenVINO would run all {computed['float_ops']} arithmetic layers in float",
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
            **computed,
        },
    )
    return xml


def _read(openvino: Any, graph: onnx.ModelProto) -> Any:
    """OpenVINO's model of a graph in memory, which it reads from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(to_bytes(graph))
        return openvino.convert_model(path)


def _quantizes_inputs(openvino: Any, xml: Path, input_shape: Shape) -> bool:
    """Whether the answer to one sample changes where the quantization of inputs is switched off: no property and no
    executed layer tells, and it depends on the number of rows."""
    sample = drawn(input_shape, 1, seed=0)
    answers = []
    for group in ("0", GROUPS["int8_dynamic"]):
        settings = {**EXACT, "INFERENCE_PRECISION_HINT": openvino.Type.f32, GROUP: int(group)}
        model = openvino.Core().read_model(xml)
        model.reshape(list(sample.shape))
        request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        answers.append(next(iter(request.infer({0: sample}).values())).copy())
    return not np.array_equal(*answers)


def slim(xml: str, group: str | None = None) -> str:
    """The same graph in fewer bytes, the same in every process: for a small int8 net the text is much of its size.

    Gone are the conversion's notes (versions, paths), indentation, what OpenVINO infers again when it reads (shapes
    and types of inner ports, default attributes), names of constants and quantizers, and constants that one layer is
    given twice. Equal constants of *different* layers stay apart: shared, they keep OpenVINO from fusing quantizers.

    ``group``: how many inputs share a scale where OpenVINO quantizes them as it runs, "0" for none; written into the
    file, where OpenVINO looks for it.
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
    if group is not None:
        options = ElementTree.SubElement(ElementTree.SubElement(net, "rt_info"), "runtime_options")
        ElementTree.SubElement(options, GROUP, value=group)
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


def executed_layers(openvino: Any, xml: Path, hint: Any = None) -> list[tuple[str, str, tuple[str, ...]]]:
    """(layer type, precision it runs in, names of the layers it was made of) of the computing layers in the graph this
    CPU really executes; ``hint`` is what float layers may run in, float32 where left out."""
    wanted = {**EXACT, "INFERENCE_PRECISION_HINT": openvino.Type.f32 if hint is None else hint}
    compiled = openvino.Core().compile_model(xml, "CPU", wanted)
    layers = []
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        layer = _text(info, "layerType")
        if layer in ARITHMETIC:
            names = (op.get_friendly_name(), *_text(info, "originalLayersNames").split(","))
            layers.append((layer, _text(info, "runtimePrecision"), names))
    return layers


def _text(info: Any, key: str) -> str:
    value = info[key] if key in info else ""  # noqa: SIM401 - its map has no get()
    return str(getattr(value, "value", value))
