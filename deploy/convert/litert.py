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
from itertools import count, takewhile
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
from edgewise.deploy.runtimes.litert import OF_LENGTH
from edgewise.errors import ContractError, ModelError
from edgewise.models.inputs import Shape, blank, dims_in_words, drawn, is_text

SIGNATURE = "serving_default"
SHORTEST = 16  # tokens: under it a signature saves little
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
        """(N, C, H, W) or token ids (N, L) -> logits."""
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
        padding=source.padding,
        calibration=calibration,
        float_layers=source.float_layers if precision == "int8" else (),
    )


def convert_module(
    model: nn.Module,
    precision: Precision,
    out: Path,
    *,
    input_shape: Shape,
    padding: int | None = None,
    calibration: NDArray[Any] | None = None,
    float_layers: Collection[str] = (),
) -> Path:
    """``convert`` for a module in memory, which may carry NNCF's quantizers; it is changed in place.

    Args:
        model: (N, C, H, W) or token ids (N, L) -> logits.
        precision: of the file.
        out: the file's name without suffix.
        input_shape: (C, H, W), or (L, V).
        padding: the id that short texts are filled up with; of texts, needed.
        calibration: (N, C, H, W) or (N, L), for int8.
        float_layers: torch modules that an int8 file computes in float.

    Raises:
        ModelError: int8 without calibration samples, or a model that litert-torch can't convert.
        ContractError: an int8 file whose arithmetic stayed in float, or in which one of ``float_layers`` isn't in
            float, or isn't to be found.
    """
    if precision == "int8" and calibration is None:
        raise ModelError(f"int8 for LiteRT needs calibration samples {dims_in_words(input_shape)}", where="calibration")
    learned = [] if calibration is None else learned_ranges(model, calibration[:1])
    plain = strip_quantizers(model, input_shape)
    weights = weights_of(plain, float_layers)
    floating = content = _to_float(plain, input_shape, padding)
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
    ops = tflite.read(content, 0)
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
    samples: NDArray[Any] = np.load(path, allow_pickle=False)
    wanted = blank(source.input_shape, 1)
    if samples.shape[1:] != wanted.shape[1:] or samples.dtype != wanted.dtype or not len(samples):
        raise ModelError(
            f"expected calibration samples {wanted.dtype} {dims_in_words(source.input_shape)}, "
            f"got {samples.dtype} {samples.shape}",
            where=str(path),
        )
    return samples


def lengths(longest: int) -> list[int]:
    """The lengths that a file for texts has signatures for, ``longest`` first: 16, 32, 64 … XNNPACK packs the weights
    for each of them anew when the file is opened, so they are few."""
    shorter = takewhile(lambda length: length < longest, (SHORTEST << step for step in count()))
    return [longest, *reversed(list(shorter))]


def _signatures(input_shape: Shape, padding: int | None) -> dict[str, torch.Tensor]:
    """{signature: an input for it}: one, or of texts one a length.

    Raises:
        ModelError: a text without its padding's id.
    """
    sample = torch.from_numpy(blank(input_shape, 1))
    if not is_text(input_shape):
        return {SIGNATURE: sample}
    if padding is None:
        raise ModelError("a LiteRT file for texts needs the id of their padding", where="padding")
    return {f"length_{length}_padding_{padding}": sample[:, :length] for length in lengths(input_shape[0])}


def _to_float(model: nn.Module, input_shape: Shape, padding: int | None) -> bytes:
    os.environ.update(QUIET)  # read when the libraries are imported
    import litert_torch

    net, converter = Named(model.float().eval()).eval(), litert_torch
    for name, sample in _signatures(input_shape, padding).items():
        converter = converter.signature(name, net, sample_kwargs={"input": sample})
    try:
        converted = converter.convert(enable_x64=is_text(input_shape))
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


def takes_batches(content: bytes, input_shape: Shape) -> bool:
    """Whether a float file answers three samples at once as it answers them one by one, in each of its signatures."""
    from ai_edge_litert.interpreter import Interpreter

    samples = drawn(input_shape, 3, seed=0)
    interpreter = Interpreter(model_content=content, num_threads=1)
    for name in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(name)
        shape = runner.get_input_details()["input"]["shape"]
        fed = np.ascontiguousarray(samples[:, : shape[1]])
        alone = np.concatenate([runner(input=sample[None])["logits"] for sample in fed])
        try:
            together = runner(input=fed)["logits"]
        except (RuntimeError, ValueError):
            return False
        if alone.shape != together.shape or not np.allclose(alone, together, rtol=0, atol=MATCH * np.abs(alone).max()):
            return False
    return True


def shorten_names(content: bytes) -> bytes:
    """The same file with tensors called ``layer1/0/conv1`` instead of a list of classes, some hundred bytes each.

    No two tensors of a file may have one name for the quantizer: those of a second graph end in ``@1``, and so on, and
    graphs that differ in nothing but a length have the same names before that.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    for number, graph in enumerate(model.subgraphs):
        seen: Counter[str] = Counter()
        for tensor in graph.tensors:
            # "pkg.Net_net/pkg.Conv2d_conv1;;pkg.Net_net;": the last place that made it, each step a class and a name.
            place = tensor.name.decode().split(";;")[-1].split(";")[0]
            name = "/".join(step.rsplit(".", 1)[-1].partition("_")[2] for step in place.split("/")[1:]) or place
            name = re.sub(f"^{OF_LENGTH.pattern}", SIGNATURE, name.removeprefix("net/"))
            seen[name] += 1
            name = name if seen[name] == 1 else f"{name}:{seen[name]}"
            tensor.name = (f"{name}@{number}" if number else name).encode()
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
    _add_tables(worker)
    return bytes(worker.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model)


def _add_tables(worker: Any) -> None:
    """Tables of words in int8, one scale a row; what is looked up is float. Weight-only would make the whole table
    float before each look-up."""
    from ai_edge_quantizer import qtyping

    worker.add_dynamic_config(".*", qtyping.TFLOperationName.EMBEDDING_LOOKUP, num_bits=INT8_BITS)


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
    _add_tables(worker)
    for operation in (names.INPUT, names.OUTPUT):
        worker.update_quantization_recipe(".*", operation, algorithm_key="no_quantize")
    for name in left:  # the quantizer matches the names of an op's outputs, each with a semicolon behind it
        worker.update_quantization_recipe(f"^{re.escape(name)};", names.ALL_SUPPORTED, algorithm_key="no_quantize")
    recipe = recipe_manager.RecipeManager()
    recipe.load_quantization_recipe(worker.get_quantization_recipe())
    known: dict[str, Any] = {}
    for signature, samples in _fed(content, calibration).items():
        measured = calibrator.Calibrator(bytes(content), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
        # A list: a generator would be used up by the calibrator's count of its length.
        measured.calibrate({signature: [{"input": sample[None]} for sample in samples]}, recipe)
        known |= measured.get_model_qsvs()
    _share(known)
    for name in known:
        if (value := ranges.get(_unnumbered(name))) is not None:
            known[name] = {key: value[key].reshape(np.shape(known[name][key])) for key in ("min", "max")}
    result = worker.quantize(known, enable_progress_bar=False, enable_progress_report=False)
    return say_per_channel(rewrite_int8(bytes(result.quantized_model)))


def _fed(content: bytes, calibration: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """{signature: the samples it is calibrated with}: all of them, or each text where it leaves the least padding. A
    length that no text has gets the start of one: it must be calibrated, too."""
    from ai_edge_litert.interpreter import Interpreter

    names = Interpreter(model_content=content, num_threads=1).get_signature_list()
    found = [(int(told[1]), int(told[2]), name) for name in names if (told := OF_LENGTH.fullmatch(name))]
    if not found:
        return {next(iter(names)): calibration}
    fed, left = {}, calibration
    for length, padding, name in sorted(found):
        fits = (left[:, length:] == padding).all(axis=1)
        fed[name] = (left[fits] if fits.any() else calibration[:1])[:, :length].copy()
        left = left[~fits]
    return fed


def _share(known: dict[str, Any]) -> None:
    """Give tensors of graphs that differ in nothing but a length the range of them all."""
    same: dict[str, list[Any]] = {}
    for name, value in known.items():
        same.setdefault(_unnumbered(name), []).append(value)
    for values in same.values():
        shared = {"min": np.minimum.reduce, "max": np.maximum.reduce}
        whole = {key: reduce([value[key] for value in values]) for key, reduce in shared.items() if key in values[0]}
        for value in values:
            value.update(whole)


def _unnumbered(name: str) -> str:
    return re.sub(r"@\d+$", "", name)


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
