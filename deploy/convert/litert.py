"""The file for LiteRT: torch -> litert-torch -> AI Edge Quantizer. It starts from torch, not from ONNX.

INT8 is static, per channel, with float input and output. CNNs are quantized whole; a transformer only in its
fully-connected and convolution layers, because LiteRT's quantized softmax, GELU and normalisation are slower than float
and cost accuracy.

Ranges are measured on the calibration samples: minimum and maximum over all of them (the quantizer's own default is a
moving average that depends on their order). What a fake-quantized model has learned takes their place wherever a tensor
of the file is one that a quantizer was given in torch: found not by its name, which the conversion mangles, but by its
values on one sample.
"""

from __future__ import annotations

import copy
import os
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgewise.compress.quantization.strip import Learned, learned_ranges, strip_quantizers
from edgewise.config import Precision
from edgewise.deploy import tflite
from edgewise.deploy.contracts import litert as litert_contract
from edgewise.deploy.convert.base import Source, named, need, refuse, write_report
from edgewise.deploy.convert.executed import arithmetic
from edgewise.deploy.convert.litert_plan import check_file, ops_of, weights_of
from edgewise.deploy.convert.litert_rewrites import rewrite_int8, say_per_channel
from edgewise.errors import ContractError, ModelError

SIGNATURE = "serving_default"
QUIET = {"LITERT_TORCH_SHOW_PROGRESS": "n", "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
TRANSFORMER_OPS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
WEIGHT_OPS = (*TRANSFORMER_OPS, "CONV_2D_TRANSPOSE")
TRANSFORMER_MARKS = frozenset(("SOFTMAX", "GELU", "BATCH_MATMUL"))
INT8_BITS = 8
INT8_STEPS = 127
MATCH = 1e-4  # of the largest value: float32 sums in another order

Range = dict[str, NDArray[np.float32]]


class Named(nn.Module):
    """Gives the file's tensors the names that the ONNX files have."""

    def __init__(self, net: nn.Module) -> None:
        """Hold ``net``."""
        super().__init__()
        self.net = net

    def forward(self, input: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, C, H, W) -> logits (N, K)."""
        return {"logits": self.net(input)}


def convert(source: Source, precision: Precision, out: Path) -> Path:
    """Write ``<out>.tflite`` and ``<out>.report.json``.

    Raises:
        ModelError: no saved torch model, no calibration samples for int8, or a model that litert-torch can't convert.
        ContractError: an int8 file whose arithmetic stayed in float, or a plan that it doesn't obey.
    """
    from edgewise.compress.saved import load_model

    refuse("litert", precision)

    model, _ = load_model(need(source.model_folder, "a saved torch model"))
    calibration = _read_calibration(source) if precision == "int8" else None
    return convert_module(
        model,
        precision,
        out,
        input_shape=source.input_shape,
        calibration=calibration,
        float_layers=source.float_layers if precision == "int8" else (),
    )


def convert_module(
    model: nn.Module,
    precision: Precision,
    out: Path,
    *,
    input_shape: tuple[int, int, int],
    calibration: NDArray[np.float32] | None = None,
    float_layers: Collection[str] = (),
) -> Path:
    """``convert`` for a module in memory, which may carry NNCF's quantizers; it is changed in place.

    Args:
        model: (N, C, H, W) -> (N, K).
        precision: of the file.
        out: the file's name without suffix.
        input_shape: (C, H, W).
        calibration: (N, C, H, W), for int8.
        float_layers: torch modules that an int8 file computes in float.

    Raises:
        ModelError: int8 without calibration samples, or a model that litert-torch can't convert.
        ContractError: an int8 file whose arithmetic stayed in float, or in which one of ``float_layers`` isn't in
            float, or isn't to be found.
    """
    if precision == "int8" and calibration is None:
        raise ModelError("int8 for LiteRT needs calibration samples (N, C, H, W)", where="calibration")
    learned = [] if calibration is None else learned_ranges(model, calibration[:1])
    plain = strip_quantizers(model, input_shape)
    weights = weights_of(plain, float_layers)
    floating = content = _to_float(plain, input_shape)
    notes: dict[str, int] = {}
    if precision == "float16":
        content = _to_float16(content)
    elif calibration is not None and precision == "int8":
        ranges = match_ranges(content, calibration[:1], learned)
        notes = {"quantizers": len(learned), "tensors_with_learned_ranges": len(ranges)}
        left = [op.name for ops in ops_of(content, weights).values() for op in ops]
        content = _to_int8(content, calibration, ranges, left)
        check_file(floating, content, weights, float_layers, out.name)
    elif precision in ("int8_dynamic", "int8_weights"):
        content = say_per_channel(_to_int8_weights(content, dynamic=precision == "int8_dynamic"))
    path = named(out, ".tflite")
    path.write_bytes(content)
    ops = tflite.read(content)
    layers = tflite.layers(ops)
    computed = arithmetic(
        {name: op.macs for name, op in layers.items()}, [name for name, op in layers.items() if op.integer]
    )
    if precision in ("int8", "int8_dynamic") and not computed["integer_ops"]:
        raise ContractError(f"all {len(layers)} arithmetic ops of the LiteRT file stayed in float", where=str(path))
    write_report(
        out,
        {
            "runtime": "litert",
            "precision": precision,
            "size_bytes": path.stat().st_size,
            "ops": dict(sorted(Counter(f"{op.kind} {op.outputs[0].kind}" for op in ops).items())),
            "xnnpack": delegated(content),
            "contract": [asdict(finding) for finding in litert_contract.check(content, float_layers)],
            **computed,
            **notes,
        },
    )
    return path


def _read_calibration(source: Source) -> NDArray[np.float32]:
    path = need(source.calibration, "calibration samples")
    samples: NDArray[np.float32] = np.load(path, allow_pickle=False)
    if samples.shape[1:] != source.input_shape or samples.dtype != np.float32 or not len(samples):
        raise ModelError(
            f"expected calibration samples float32 (N, {', '.join(map(str, source.input_shape))}), "
            f"got {samples.dtype} {samples.shape}",
            where=str(path),
        )
    return samples


def _to_float(model: nn.Module, input_shape: tuple[int, int, int]) -> bytes:
    os.environ.update(QUIET)  # read when the libraries are imported
    import litert_torch

    sample = torch.zeros(1, *input_shape)
    try:
        converted = litert_torch.convert(Named(model.float().eval()).eval(), sample_kwargs={"input": sample})
    except Exception as error:  # its layers raise whatever they like
        text = str(error).strip().splitlines()
        raise ModelError(
            f"litert-torch can't convert the model: {type(error).__name__}: {text[0] if text else ''}", where="litert"
        ) from error
    content = shorten_names(converted.model_content())
    freed = free_batch(content)
    return freed if takes_batches(freed, input_shape) else content


def free_batch(content: bytes) -> bytes:
    """The same file with reshapes that infer their first dimension, where litert-torch wrote a batch of 1.

    The order of values in memory is kept, so this is right wherever the batch is the outermost dimension; whether it is
    everywhere, ``takes_batches`` tells.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    for graph in model.subgraphs:
        for op in graph.operators:
            code = model.operatorCodes[op.opcodeIndex]
            if max(code.builtinCode, code.deprecatedBuiltinCode) != schema.BuiltinOperator.RESHAPE:
                continue
            old = graph.tensors[op.inputs[1]]
            data = model.buffers[old.buffer].data
            if data is None or not len(data):
                continue  # a computed shape
            shape = np.frombuffer(bytes(data), np.int32).copy()
            if not shape.size or (shape < 1).any():
                continue
            shape[0] = -1
            # A constant of its own: others may read the old one, and nothing but reshapes may read this.
            buffer, tensor = schema.BufferT(), copy.copy(old)
            buffer.data = np.frombuffer(shape.tobytes(), np.uint8)
            tensor.buffer, tensor.name = len(model.buffers), old.name + b"/any_batch"
            model.buffers.append(buffer)
            op.inputs = np.array([op.inputs[0], len(graph.tensors)], np.int32)
            graph.tensors.append(tensor)
            if op.builtinOptions is not None:
                op.builtinOptions.newShape = shape
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def takes_batches(content: bytes, input_shape: tuple[int, int, int]) -> bool:
    """Whether a float file answers three samples at once as it answers them one by one."""
    from ai_edge_litert.interpreter import Interpreter

    samples = np.random.default_rng(0).standard_normal((3, *input_shape), dtype=np.float32)

    def answer(images: NDArray[np.float32]) -> NDArray[np.float32]:
        interpreter = Interpreter(model_content=content, num_threads=1)
        place = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(place, images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(place, images)
        interpreter.invoke()
        logits: NDArray[np.float32] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        return logits

    alone = np.concatenate([answer(sample[None]) for sample in samples])
    try:
        together = answer(samples)
    except (RuntimeError, ValueError):
        return False
    return alone.shape == together.shape and np.allclose(alone, together, rtol=0, atol=MATCH * np.abs(alone).max())


def shorten_names(content: bytes) -> bytes:
    """The same file with tensors called ``layer1/0/conv1`` instead of a list of classes, some hundred bytes each."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    for graph in model.subgraphs:
        seen: Counter[str] = Counter()
        for tensor in graph.tensors:
            # "pkg.Net_net/pkg.Conv2d_conv1;;pkg.Net_net;": the last place that made it, each step a class and a name.
            place = tensor.name.decode().split(";;")[-1].split(";")[0]
            name = "/".join(step.rsplit(".", 1)[-1].partition("_")[2] for step in place.split("/")[1:]) or place
            name = name.removeprefix("net/")
            seen[name] += 1
            tensor.name = (name if seen[name] == 1 else f"{name}:{seen[name]}").encode()
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _to_float16(content: bytes) -> bytes:
    from ai_edge_quantizer import qtyping, quantizer

    worker = quantizer.Quantizer(bytearray(content))
    worker.update_quantization_recipe(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        ),
        algorithm_key="float_casting",
    )
    return bytes(worker.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model)


def match_ranges(content: bytes, sample: NDArray[np.float32], learned: list[Learned]) -> dict[str, Range]:
    """{tensor name: {"min", "max"}} for the tensors of a float file that quantizers were given in torch.

    The same values are the same tensor, whatever its layout: both sides are compared sorted.

    Args:
        content: the float file.
        sample: (1, C, H, W), the input that ``learned`` was read with.
        learned: see ``edgewise.compress.quantization.strip``.
    """
    if not learned:
        return {}
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    # Without XNNPACK: its fused ops leave the tensors between them empty.
    interpreter = Interpreter(
        model_content=content,
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample)
    interpreter.invoke()
    by_size: dict[int, list[tuple[NDArray[np.float32], Learned]]] = {}
    for entry in learned:
        by_size.setdefault(entry.values.size, []).append((np.sort(entry.values, axis=None), entry))
    found: dict[str, Range] = {}
    for detail in interpreter.get_tensor_details():
        if detail["dtype"] != np.float32 or not by_size.get(int(np.prod(detail["shape"]))):
            continue
        values = interpreter.get_tensor(detail["index"])
        for expected, entry in by_size[values.size]:
            if np.allclose(np.sort(values, axis=None), expected, rtol=0, atol=MATCH * np.abs(expected).max()):
                found[detail["name"]] = _range(entry, values.shape)
                break
    return found


def _range(entry: Learned, shape: tuple[int, ...]) -> Range:
    """What the quantizer must be told to arrive at the learned step."""
    if not entry.weight:
        return {"min": entry.low.astype(np.float32), "max": entry.high.astype(np.float32)}
    # Weights are symmetric in LiteRT, 127 steps each way. Depthwise ones have their channels last.
    flat = (INT8_STEPS * entry.step.reshape(-1)).astype(np.float32)
    axis = 0 if shape[0] == flat.size else len(shape) - 1
    bound = flat.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return {"min": -bound, "max": bound}


def _to_int8_weights(content: bytes, *, dynamic: bool) -> bytes:
    """int8 weights, one scale a channel; activations quantized anew at every run, or not at all."""
    from ai_edge_quantizer import qtyping, quantizer

    worker = quantizer.Quantizer(bytearray(content))
    add = worker.add_dynamic_config if dynamic else worker.add_weight_only_config
    for name in WEIGHT_OPS:
        add(".*", qtyping.TFLOperationName(name), num_bits=INT8_BITS)
    return bytes(worker.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model)


def _to_int8(
    content: bytes, calibration: NDArray[np.float32], ranges: dict[str, Range], left: Collection[str]
) -> bytes:
    """Static INT8; ``left`` names the ops, by their first outputs, that stay in float."""
    from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    names = qtyping.TFLOperationName
    whole = not TRANSFORMER_MARKS & {op.kind for op in tflite.read(content)}
    worker = quantizer.Quantizer(bytearray(content))
    for operation in (names.ALL_SUPPORTED,) if whole else [names(name) for name in TRANSFORMER_OPS]:
        worker.add_static_config(".*", operation, activation_num_bits=INT8_BITS, weight_num_bits=INT8_BITS)
    for operation in (names.INPUT, names.OUTPUT):
        worker.update_quantization_recipe(".*", operation, algorithm_key="no_quantize")
    for name in left:  # the quantizer matches the names of an op's outputs, each with a semicolon behind it
        worker.update_quantization_recipe(f"^{re.escape(name)};", names.ALL_SUPPORTED, algorithm_key="no_quantize")
    recipe = recipe_manager.RecipeManager()
    recipe.load_quantization_recipe(worker.get_quantization_recipe())
    measured = calibrator.Calibrator(bytes(content), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    # A list: a generator would be used up by the calibrator's count of its length.
    measured.calibrate({SIGNATURE: [{"input": sample[None]} for sample in calibration]}, recipe)
    known = dict(measured.get_model_qsvs())
    for name, value in ranges.items():
        if name in known:
            known[name] = {key: value[key].reshape(np.shape(known[name][key])) for key in ("min", "max")}
    result = worker.quantize(known, enable_progress_bar=False, enable_progress_report=False)
    return rewrite_int8(bytes(result.quantized_model))


def delegated(content: bytes) -> dict[str, Any]:
    """What XNNPACK takes of the file on this machine: into how many partitions it cuts the graph, and the ops it leaves
    to LiteRT's built-in kernels, by kind."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    nodes = interpreter._get_ops_details()  # the one place that tells
    partitions = [node for node in nodes if node["op_name"] == "DELEGATE"]
    left = {place: node for place, node in enumerate(nodes) if node["op_name"] != "DELEGATE"}
    maker = {int(tensor): place for place, node in left.items() for tensor in node["outputs"]}
    for part in partitions:
        given = set(part["inputs"].tolist())
        waiting = part["outputs"].tolist()
        while waiting:
            tensor = waiting.pop()
            node = left.pop(maker.get(tensor, -1), None)
            if node is not None:
                waiting.extend(name for name in node["inputs"].tolist() if name not in given)
    return {
        "partitions": len(partitions),
        "outside": dict(sorted(Counter(node["op_name"] for node in left.values()).items())),
    }
