"""torch -> ONNX: the float graph, and the quantized one in the form each runtime wants. Every file is checked.

Every file has input ``input`` (N, C, H, W) float32 and output ``logits`` (N, K) float32, a dynamic batch, opset 20,
no side files and nothing of the machine it was made on: the same model gives the same bytes.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto
from torch import Tensor, nn

from edgewise.compress.fold import fold_batchnorm
from edgewise.compress.quantize import HOOKS, quantizers
from edgewise.deploy import rewrites
from edgewise.deploy.contracts import ort as ort_contract
from edgewise.deploy.contracts import ov as ov_contract
from edgewise.deploy.contracts import trt as trt_contract
from edgewise.deploy.contracts.base import Finding
from edgewise.deploy.onnx_graph import drop_dead, rename, sort_nodes, strip, to_bytes
from edgewise.deploy.parity import sqnr_db
from edgewise.errors import ContractError, ModelError

OPSET = 20
MIN_SQNR_FLOAT = 60.0  # dB against torch, both in float32
MIN_SQNR_HALF = 30.0  # FP16 has 11 bits of mantissa: 66 dB for one rounding, less for a net of them
MIN_SQNR_QDQ = 25.0  # against the same fake-quantized arithmetic in torch; only ties may round elsewhere
SCALE_FLOOR = 2.0**-24  # the smallest FP16 number
CHANNEL_FLOOR = 2.0**-14  # of the largest channel's scale


class Half(nn.Module):
    """A float16 net between float32 ends."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.half()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32 -> (N, K) float32."""
        out: Tensor = self.net(x.half())
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

    def forward(self, x: Tensor) -> Tensor:
        """The values that integers of this scale can hold, nearest to ``x``; same shape."""
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


def _to_onnx(model: nn.Module, input_shape: tuple[int, ...]) -> ModelProto:
    """Export with a dynamic batch; names and notes still as the exporter made them.

    Raises:
        ModelError: torch.export can't follow the model.
    """
    # torch.export takes a batch of 1 for a constant.
    example = torch.zeros(2, *input_shape)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:400]
        raise ModelError(
            f"torch.export can't follow the model: {reason}",
            where="export",
            hint="the forward pass must work for any batch and must not branch on values",
        ) from error
    assert program is not None
    return program.model_proto


def _finish(model: ModelProto, half: bool) -> None:
    drop_dead(model.graph)
    rename(model, prefix="net." if half else "")
    sort_nodes(model.graph)
    strip(model)


def _check_structure(model: ModelProto) -> None:
    """ONNX's own checker, strict shape inference with data propagation, and our ends.

    Raises:
        ModelError: naming the first bad thing.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the exported graph isn't valid ONNX: {error}", where="export") from error
    for side, items, name in (("input", model.graph.input, "input"), ("output", model.graph.output, "logits")):
        found = [(item.name, item.type.tensor_type.elem_type) for item in items]
        if found != [(name, TensorProto.FLOAT)]:
            got = ", ".join(f"{n} {TensorProto.DataType.Name(t)}" for n, t in found)
            raise ModelError(f"expected one {side} {name!r} of float32, got {got}", where="export")
    for tensor in model.graph.initializer:
        if tensor.external_data or tensor.data_location == TensorProto.EXTERNAL:
            raise ModelError("expected all weights in the one file", where=tensor.name)


def _inputs(input_shape: tuple[int, ...], batch: int) -> np.ndarray:
    generator = np.random.default_rng(batch)
    return generator.standard_normal((batch, *input_shape), dtype=np.float32)


def _check_numbers(model: ModelProto, reference: nn.Module, shape: tuple[int, ...], floor: float, plain: bool) -> None:
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


def export_float(model: nn.Module, input_shape: tuple[int, ...], path: Path, *, half: bool = False) -> None:
    """Write the float graph, BatchNorm folded.

    Args:
        model: float model; it stays as it is.
        input_shape: (C, H, W).
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
    _finish(graph, half)
    _check_structure(graph)
    _check_numbers(graph, reference, input_shape, MIN_SQNR_HALF if half else MIN_SQNR_FLOAT, plain=False)
    path.write_bytes(to_bytes(graph))


def export_qdq(model: nn.Module, input_shape: tuple[int, ...], path: Path, *, signed: bool, half: bool = False) -> None:
    """Write the quantized graph with explicit QuantizeLinear and DequantizeLinear, weights stored as int8.

    Args:
        model: with quantizers (``insert_quantizers``); it stays as it is.
        input_shape: (C, H, W).
        path: the .onnx file.
        signed: activations int8 with zero-point 0, as TensorRT wants; else uint8, as ONNX Runtime runs fastest.
        half: what isn't quantized in float16, scales too; input and logits still float32.

    Raises:
        ModelError: no quantizers, a model that can't be exported, or a file that doesn't follow it.
        ContractError: quantizers got lost, or the runtimes would run a part in float.
    """
    reference = _with_pairs(model, signed, half)
    count = len(quantizers(reference))
    graph = _to_onnx(Half(copy.deepcopy(reference)).eval() if half else reference, input_shape)
    folded = rewrites.fold_weights(graph.graph)
    _check_quantized(graph, count, folded)
    rewrites.fold_weight_transposes(graph.graph)
    rewrites.merge_slices(graph.graph)
    rewrites.global_average_pool(graph.graph)
    if signed:
        rewrites.requantize_moved(graph.graph)
    else:
        rewrites.sink_dequantize(graph.graph)
        rewrites.integer_gemm_bias(graph.graph)
    _finish(graph, half)
    _check_structure(graph)
    if signed:
        _raise(trt_contract.check(graph), "TensorRT")
    else:
        _raise(ort_contract.check(graph), "ONNX Runtime")
        _raise(ov_contract.check(graph), "OpenVINO")
    _check_numbers(graph, reference, input_shape, MIN_SQNR_QDQ, plain=True)
    path.write_bytes(to_bytes(graph))


__all__ = ["export_float", "export_qdq"]
