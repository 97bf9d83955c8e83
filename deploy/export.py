"""torch -> ONNX: the float graph, and the quantized one in the form each runtime wants. Every file is checked.

Every file has input ``input`` (N, C, H, W) float32 or (N, L) int64, and output ``logits`` float32, a dynamic batch and
a dynamic length of texts, opset 20, no side files and nothing of the machine it was made on: the same model gives the
same bytes.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto
from torch import Tensor, nn

from edgewise.compress.fold import fold_batchnorm
from edgewise.compress.quantization.float_layers import unquantized_layers
from edgewise.compress.quantization.insert import Whole, quantizers
from edgewise.compress.quantization.places import HOOKS, bake_weights
from edgewise.deploy import rewrites
from edgewise.deploy.biases import integer_biases
from edgewise.deploy.contracts import ort as ort_contract
from edgewise.deploy.contracts import ov as ov_contract
from edgewise.deploy.contracts import trt as trt_contract
from edgewise.deploy.contracts.base import Finding
from edgewise.deploy.convert.planned import check_graph
from edgewise.deploy.onnx_graph import drop_dead, rename, sort_nodes, strip, to_bytes
from edgewise.deploy.parity import sqnr_db
from edgewise.errors import ContractError, ModelError
from edgewise.models.inputs import Shape, blank, drawn, dtype_of, is_text

OPSET = 20
MIN_SQNR_FLOAT = 60.0  # dB against torch, both in float32
MIN_SQNR_HALF = 30.0  # FP16 has 11 bits of mantissa: 66 dB for one rounding, less for a net of them
MIN_SQNR_QDQ = 25.0  # against the same fake-quantized arithmetic in torch; only ties may round elsewhere
TIES_DB = 12.0  # ... but where a tie turned over changes later roundings, they add up to what quantizing itself costs
LEAST_SQNR_QDQ = 10.0
SCALE_FLOOR = 2.0**-24  # the smallest FP16 number
CHANNEL_FLOOR = 2.0**-14  # of the largest channel's scale


class Half(nn.Module):
    """A float16 net between float32 ends."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.half()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32, or token ids (N, L) -> logits float32."""
        out: Tensor = self.net(x.half() if x.is_floating_point() else x)
        return out.float()


class QuantizePair(nn.Module):
    """Quantize and dequantize: an ONNX pair of nodes under export, torch's own fake quantization otherwise.

    ``axis`` None is per-tensor.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, axis: int | None) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.axis = axis
        self.off = False

    def forward(self, x: Tensor) -> Tensor:
        """The values that integers of this scale can hold, nearest to ``x``; same shape. ``x`` itself while ``off``."""
        if self.off:
            return x
        if torch.onnx.is_in_onnx_export():
            attributes: dict[str, Any] = {} if self.axis is None else {"axis": self.axis}
            integers = torch.onnx.ops.symbolic(
                "QuantizeLinear",
                (x, self.scale, self.zero_point),
                attributes,
                dtype=self.zero_point.dtype,
                shape=x.shape,
                version=OPSET,
            )
            return torch.onnx.ops.symbolic(
                "DequantizeLinear",
                (integers, self.scale, self.zero_point),
                attributes,
                dtype=x.dtype,
                shape=x.shape,
                version=OPSET,
            )
        info = torch.iinfo(self.zero_point.dtype)
        zero = self.zero_point.to(torch.int32)
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, self.scale, zero, info.min, info.max)
        return torch.fake_quantize_per_channel_affine(x, self.scale, zero, self.axis, info.min, info.max)


def _weight_pair(quantizer: Any) -> QuantizePair:
    """Per channel, int8, zero-point 0. No scale may be so small that a runtime's int32 bias overflows: a channel
    whose weights vanish beside the others' carries nothing that per-tensor activations could hold."""
    _, _, scale, _ = quantizer.get_parameters_for_torch_fq()
    floor = max(float(scale.max()) * CHANNEL_FLOOR, SCALE_FLOOR)
    scale = scale.detach().clone().clamp_(min=floor)
    return QuantizePair(scale, torch.zeros(scale.numel(), dtype=torch.int8), int(np.argmax(quantizer.scale_shape)))


def _activation_pair(quantizer: Any, signed: bool) -> QuantizePair:
    """Per tensor. Unsigned: uint8, where int8 moves up by 128 without loss. Signed: int8 with zero-point 0, where a
    range that isn't symmetric is widened until it is."""
    low, high, scale, zero = quantizer.get_parameters_for_torch_fq()
    scale, offset = max(float(scale.reshape(())), SCALE_FLOOR), int(zero.reshape(()))
    if not signed:
        point = torch.tensor(offset - low, dtype=torch.uint8)
    else:
        if low == 0 or offset != 0:
            scale *= max(abs(low - offset), abs(high - offset)) / 127
        point = torch.tensor(0, dtype=torch.int8)
    return QuantizePair(torch.tensor(scale, dtype=torch.float32), point, None)


def _with_pairs(model: nn.Module, signed: bool, half: bool) -> nn.Module:
    """A copy whose NNCF quantizers are :class:`QuantizePair`."""
    model = copy.deepcopy(model).cpu().eval()
    for name, quantizer in quantizers(model).items():
        # Weights alone leave out the lowest level (-128), so that their range is symmetric.
        weight = quantizer._narrow_range
        if weight != quantizer.per_channel:
            kind = "a weight with one scale for all channels" if weight else "an activation with a scale per channel"
            raise ModelError(f"expected per-channel weights and per-tensor activations, got {kind}", where=name)
        pair = _weight_pair(quantizer) if weight else _activation_pair(quantizer, signed)
        if half:
            pair.scale = pair.scale.half().clamp_(min=SCALE_FLOOR).float()
        kind, key, number = name.split(".")
        getattr(getattr(model, HOOKS), kind)[key][number] = pair
    return model


def _pairs_called(model: nn.Module, input_shape: Shape) -> int:
    """How many pairs the graph must have: one for all that quantize the same tensor alike, which the exporter joins."""
    pairs = dict.fromkeys(quantizers(model).values())
    seen: dict[nn.Module, tuple[Any, ...]] = {}
    kept = []

    def remember(module: Any, args: tuple[Tensor, ...]) -> None:
        kept.append(args[0])  # so that no id is used twice
        values = (module.scale.numpy().tobytes(), module.zero_point.numpy().tobytes(), module.axis)
        seen[module] = (id(args[0]), args[0]._version, *values)

    handles = [pair.register_forward_pre_hook(remember) for pair in pairs]
    try:
        with torch.no_grad():
            model(torch.from_numpy(blank(input_shape, 1)))
    finally:
        for handle in handles:
            handle.remove()
    return len(set(seen.values())) + sum(pair not in seen for pair in pairs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says of itself: that torchvision isn't there, and a deprecation inside torch."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(torch|onnxscript|onnx_ir)\.")
            yield
    finally:
        log.setLevel(level)


def _to_onnx(model: nn.Module, input_shape: Shape) -> ModelProto:
    """Export with a dynamic batch and length; names and notes still as the exporter made them.

    Raises:
        ModelError: torch.export can't follow the model.
    """
    # torch.export takes a batch of 1 for a constant.
    example = torch.from_numpy(blank(input_shape, 2))
    free = {0: torch.export.Dim("batch")}
    if is_text(input_shape) and input_shape[0] > 2:
        free[1] = torch.export.Dim("length", max=input_shape[0])
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["logits"],
                dynamic_shapes=(free,),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:400]
        raise ModelError(
            f"torch.export can't follow the model: {reason}",
            where="export",
            hint="the forward pass must work for any batch and length, and must not branch on values",
        ) from error
    except Exception as error:  # the exporter's optimizer and its translations of operators raise what they like
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise ModelError(
            f"the exporter of torch {torch.__version__} fails on the model: {reason}",
            where="export",
            hint="another version of torch or onnxscript may do it; or write the model's forward pass more plainly",
        ) from error
    assert program is not None
    return program.model_proto


def _finish(model: ModelProto, half: bool, held: bool) -> None:
    """``half`` and ``held``: whether a module called ``net`` is around the one whose names people know, put there for
    float16 or to hold quantizers."""
    drop_dead(model.graph)
    rename(model, prefix="net." * (half + held), held="net." * held)
    sort_nodes(model.graph)
    strip(model)


def _check_structure(model: ModelProto, input_shape: Shape) -> None:
    """ONNX's own checker, strict shape inference with data propagation, and our ends.

    Raises:
        ModelError: naming the first bad thing.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the exported graph isn't valid ONNX: {error}", where="export") from error
    for side, items, name, kind in (
        ("input", model.graph.input, "input", dtype_of(input_shape)),
        ("output", model.graph.output, "logits", "float32"),
    ):
        found = [(item.name, item.type.tensor_type.elem_type) for item in items]
        if found != [(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)))]:
            got = ", ".join(f"{n} {TensorProto.DataType.Name(t)}" for n, t in found)
            raise ModelError(f"expected one {side} {name!r} of {kind}, got {got}", where="export")
    for tensor in model.graph.initializer:
        if tensor.external_data or tensor.data_location == TensorProto.EXTERNAL:
            raise ModelError("expected all weights in the one file", where=tensor.name)


def _inputs(input_shape: Shape, batch: int) -> np.ndarray:
    """Noise; of texts all but the first end in a run of one id, the second in 0 and the third in 1, what nets pad with.
    A batch of one is a short one."""
    samples = drawn(input_shape, batch, seed=batch)
    if is_text(input_shape):
        length = input_shape[0] if batch > 1 else -(-input_shape[0] // 2)
        samples = np.ascontiguousarray(samples[:, :length])
        for place, row in enumerate(samples[1:]):
            row[length // 2 :] = min(place, input_shape[1] - 1)
    return samples


def _check_numbers(model: ModelProto, reference: nn.Module, shape: Shape, floor: float, plain: bool) -> None:
    """ONNX Runtime against torch on random inputs of batch 1 and 3; ``plain`` runs the graph as it is written, without
    the runtime's integer kernels.

    Raises:
        ModelError: a shape, a value that isn't finite, or less than ``floor`` dB.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_DISABLE_ALL if plain else level.ORT_ENABLE_ALL
    try:
        session = onnxruntime.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise ModelError(f"ONNX Runtime can't open the exported graph: {error}", where="export") from error
    for batch in (1, 3):
        feed = _inputs(shape, batch)
        with torch.no_grad():
            expected = reference(torch.from_numpy(feed)).numpy()
        got = session.run(None, {"input": feed})[0]
        if got.shape != expected.shape:
            raise ModelError(
                f"expected logits {expected.shape} for a batch of {batch}, got {got.shape}", where="export"
            )
        if not np.isfinite(got).all():
            raise ModelError("the exported graph gives NaN or infinity", where="export")
        found = sqnr_db(expected, got)
        if found < floor:
            raise ModelError(
                f"expected the exported graph within {floor:.0f} dB of torch at batch {batch}, got {found:.1f} dB",
                where="export",
                hint="torch.export reads some layer otherwise than torch runs it; export the model in parts",
            )


def _floor(reference: nn.Module, shape: Shape) -> float:
    """How closely a quantized graph must follow ``reference``: 25 dB, or, where quantizing costs about as much or more
    (a deep transformer), not much worse than ``reference`` follows its own float arithmetic."""
    pairs = list(dict.fromkeys(quantizers(reference).values()))
    costs = []
    for batch in (1, 3):
        inputs = torch.from_numpy(_inputs(shape, batch))
        with torch.no_grad():
            rounded = reference(inputs).numpy()
            for pair in pairs:
                pair.off = True  # type: ignore[assignment]
            costs.append(sqnr_db(reference(inputs).numpy(), rounded))
            for pair in pairs:
                pair.off = False  # type: ignore[assignment]
    return min(MIN_SQNR_QDQ, max(LEAST_SQNR_QDQ, min(costs) - TIES_DB))


def _check_quantized(model: ModelProto, expected: int, folded: int) -> None:
    """Every quantizer arrived: the exporter is known to lose some without a word.

    Raises:
        ContractError: how many are missing.
    """
    found = sum(node.op_type == "QuantizeLinear" for node in model.graph.node) + folded
    if found != expected:
        raise ContractError(
            f"expected {expected} quantizers in the graph as in the torch model, got {found}",
            where="export",
            hint="a quantized tensor that nothing reads, or a layer that torch.export rewrites",
        )


def _raise(findings: list[Finding], runtime: str) -> None:
    if findings:
        lines = "\n".join(f"  {f.node}: {f.message} [{f.rule}]" for f in findings[:10])
        more = f"\n  and {len(findings) - 10} more" if len(findings) > 10 else ""
        raise ContractError(f"{runtime} would not run this graph as meant:\n{lines}{more}", hint=findings[0].mend)


def export_float(model: nn.Module, input_shape: Shape, path: Path, *, half: bool = False) -> None:
    """Write the float graph, BatchNorm folded.

    Args:
        model: float model; it stays as it is.
        input_shape: (C, H, W), or (L, V) of token ids.
        path: the .onnx file.
        half: weights and arithmetic in float16, input and logits still float32.

    Raises:
        ModelError: the model can't be exported, or the file doesn't follow it.
    """
    if hasattr(model, HOOKS):
        raise ModelError("expected a float model, got a quantized one", where="export", hint="use export_qdq")
    reference = copy.deepcopy(model).cpu().eval()
    fold_batchnorm(reference, input_shape)
    graph = _to_onnx(Half(copy.deepcopy(reference)).eval() if half else reference, input_shape)
    rewrites.merge_slices(graph.graph)
    rewrites.global_average_pool(graph.graph)
    _finish(graph, half, held=False)
    _check_structure(graph, input_shape)
    _check_numbers(graph, reference, input_shape, MIN_SQNR_HALF if half else MIN_SQNR_FLOAT, plain=False)
    path.write_bytes(to_bytes(graph))


def export_qdq(
    model: nn.Module,
    input_shape: Shape,
    path: Path,
    *,
    signed: bool,
    half: bool = False,
    float_layers: Collection[str] = (),
) -> None:
    """Write the quantized graph with explicit QuantizeLinear and DequantizeLinear, weights stored as int8.

    Args:
        model: with quantizers (``insert_quantizers``); it stays as it is.
        input_shape: (C, H, W), or (L, V) of token ids.
        path: the .onnx file.
        signed: activations int8 with zero-point 0, as TensorRT wants; else uint8, as ONNX Runtime runs fastest.
        half: what isn't quantized in float16, scales too; input and logits still float32.
        float_layers: the layers that were left without quantizers on purpose, by their names in torch.

    Raises:
        ModelError: no quantizers, a model that can't be exported, or a file that doesn't follow it.
        ContractError: quantizers got lost, the runtimes would run a part in float that isn't in ``float_layers``, or a
            layer of those isn't in float.
    """
    model = copy.deepcopy(model).cpu().eval()
    # int8 has more levels than a quantizer of 4 bits: what left its range in training must be clipped here.
    bake_weights(model, input_shape)
    reference = _with_pairs(model, signed, half)
    count = _pairs_called(reference, input_shape)
    graph = _to_onnx(Half(copy.deepcopy(reference)).eval() if half else reference, input_shape)
    folded = rewrites.fold_weights(graph.graph)
    _check_quantized(graph, count, folded)
    rewrites.fold_weight_transposes(graph.graph)
    rewrites.merge_slices(graph.graph)
    rewrites.global_average_pool(graph.graph)
    if signed:
        rewrites.requantize_moved(graph.graph)
        rewrites.sink_below_concat(graph.graph, again=True)
    else:
        rewrites.sink_dequantize(graph.graph)
        while rewrites.sink_below_concat(graph.graph):
            rewrites.sink_dequantize(graph.graph)
        integer_biases(graph.graph)
    _finish(graph, half, held=isinstance(model, Whole))
    rewrites.own_zero_points(graph.graph)  # _finish made one of those that are equal
    _check_structure(graph, input_shape)
    check_graph(graph, float_layers, "export")
    # What the exporter lost is counted above: a layer that had no quantizer in torch is in float on purpose.
    held = "net." * isinstance(model, Whole)
    islands = (*float_layers, *(name.removeprefix(held) for name in unquantized_layers(model, input_shape)))
    if signed:
        _raise(trt_contract.check(graph, islands), "TensorRT")
    else:
        _raise(ort_contract.check(graph, islands), "ONNX Runtime")
        _raise(ov_contract.check(graph, islands), "OpenVINO")
    _check_numbers(graph, reference, input_shape, _floor(reference, input_shape), plain=True)
    path.write_bytes(to_bytes(graph))


__all__ = ["export_float", "export_qdq"]
