"""What OpenVINO needs to run a Q/DQ graph in integers. It takes int8 and uint8 alike and folds BatchNorm itself."""

from __future__ import annotations

from collections.abc import Collection

from onnx import ModelProto

from edgewise.deploy.contracts import base, file, layers, quantizers
from edgewise.deploy.contracts.base import Facts, Finding

OPSETS = range(7, 24)
FORMATS = range(3, 14)
DOMAINS = ("com.microsoft", "ai.onnx.ml")
# Sequences and strings have no place in its graphs.
UNSUPPORTED = frozenset(
    [
        "ConcatFromSequence",
        "ImageDecoder",
        "MaxUnpool",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "RegexFullMatch",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SplitToSequence",
        "StringConcat",
        "StringNormalizer",
        "StringSplit",
        "TfIdfVectorizer",
    ]
)
DYNAMIC = frozenset(("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "ConvInteger", "MatMulInteger"))


def static_form(known: Facts) -> list[Finding]:
    """No dynamic quantization: such a file of ONNX Runtime's runs at 1.45 times float's latency here."""
    mend = "quantize statically, or convert the float graph"
    return [
        Finding("static-form", node.name, f"expected static quantization, got {node.op_type}", mend)
        for node in known.model.graph.node
        if node.op_type in DYNAMIC
    ]


def check(model: ModelProto, float_layers: Collection[str] = ()) -> list[Finding]:
    """Every place where OpenVINO would refuse ``model`` or run it in float.

    A float graph is checked as a file only.

    Args:
        model: the graph.
        float_layers: torch modules, or globs of their names, that a plan leaves in float.
    """
    known = base.facts(model)
    found = [
        *file.versions(known, OPSETS, FORMATS),
        *file.operators(known, UNSUPPORTED, DOMAINS),
        *file.common(known),
        *static_form(known),
    ]
    if base.quantizes_anything(known):
        found += [
            *quantizers.scales(known),
            *quantizers.types(known),
            *quantizers.pairing(known),
            *layers.weights(known),
            *layers.islands(known),
            *layers.shared_zero_points(known),
        ]
    return base.finish(known, found, float_layers)
