"""Fake-quantize a model to INT8 with NNCF: trainable ranges in torch, the same arithmetic as the integer runtimes.

Weights are symmetric per output channel; activations have one scale a tensor, because runtimes run per-channel
activations in float. NNCF keeps its quantizers outside the module tree, as hooks on torch functions of the root module.
"""

from __future__ import annotations

import copy
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from edgewise.compress.config import Quantize
from edgewise.compress.fold import fold_batchnorm
from edgewise.compress.macs import evaluating, shown
from edgewise.compress.quantization import fake_quantize
from edgewise.compress.quantization.batchnorm import NO_BATCHNORM, reestimate_on
from edgewise.compress.quantization.config import AdaRound
from edgewise.compress.quantization.equalize import equalize
from edgewise.compress.quantization.float_layers import ignored_scope, resolve_float_layers
from edgewise.compress.quantization.observe import BATCH, observe, set_activation_ranges
from edgewise.compress.quantization.placement import (
    is_uneven,
    quantize_before_activations,
    quantize_constant_sides,
    share_inputs,
)
from edgewise.compress.quantization.places import HOOKS
from edgewise.compress.quantization.reconstruct import reconstruct
from edgewise.compress.quantization.weights import set_weight_grid
from edgewise.errors import ArtifactError, ModelError
from edgewise.models.inputs import form_of, is_text
from edgewise.models.text.encoder import HuggingFaceEncoder
from edgewise.progress import Tick, silent

QUANTIZER_CLASSES = ("SymmetricQuantizer", "AsymmetricQuantizer")
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
DEFAULT_PERCENTILE = 99.99
ATTENTION = (nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention, nn.TransformerEncoderLayer, HuggingFaceEncoder)


class Whole(nn.Module):
    """Holds a model whose children are its program (``nn.Sequential``): NNCF's hooks would become one step of it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As ``net``: (N, C, H, W) or (N, L) -> (N, K)."""
        out: torch.Tensor = self.net(x)
        return out


def _nncf() -> ModuleType:
    """NNCF without its log, its compiled extensions, and its usage telemetry (which calls home unless declined)."""
    os.environ.setdefault("NNCF_CI", "1")
    # NNCF imports OpenVINO where that is installed, and OpenVINO sends usage home at its import.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import nncf

    module: ModuleType = nncf
    nncf.set_log_level(logging.ERROR)
    fake_quantize.install()
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """Swallow NNCF's progress bars, which go to stdout."""
    with redirect_stdout(io.StringIO()):
        yield


def is_transformer(model: nn.Module) -> bool:
    """Whether to quantize as a transformer (asymmetric activations, and its masks in float): it has attention or the
    norms that go with it, or is an encoder of transformers (MobileBERT has neither as a module of torch's)."""
    return any(isinstance(module, ATTENTION) for module in model.modules())


def _holdable(model: nn.Module) -> nn.Module:
    return Whole(model) if isinstance(model, CONTAINERS) else model


def insert_quantizers(
    model: nn.Module,
    calibration: np.ndarray,
    config: Quantize | None = None,
    *,
    correct_biases: bool = True,
    padding: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
    tick: Tick = silent,
) -> nn.Module:
    """Fold BatchNorm, insert INT8 fake quantizers, set their ranges, and correct biases.

    CNNs get NNCF's PERFORMANCE preset (symmetric activations); models with attention, LayerNorm or activations such as
    a leaky ReLU the MIXED one (asymmetric activations). The result trains with any loop: weights and ranges are its
    parameters. The order: BatchNorm measured again, folded, layers evened out, quantizers put in, ranges of weights and
    activations, rounding and biases. Memory hangs on the net, not on the number of samples.

    Args:
        model: float model; it stays as it is.
        calibration: (N, C, H, W) float32 samples, or token ids (N, L) int64, taken from the training data.
        config: how; without it, every layer with the defaults.
        correct_biases: false leaves biases as they are, and rounds to the nearest: with its quantizers switched off
            such a model is the float one.
        padding: the id of texts' padding, which ranges and biases leave out; None: every token counts.
        tell: told in words of what could not be done for single layers.
        tick: told of the progress.

    Returns:
        The quantized copy, in eval mode. A model that is an ``nn.Sequential`` comes back inside :class:`Whole`.

    Raises:
        ModelError: no samples, samples of another shape, values that aren't finite or are all the same, a model that
            NNCF can't trace, a float layer that isn't there, nothing to equalize, or no BatchNorm to measure.
    """
    config = config or Quantize(kind="quantize")
    nncf = _nncf()
    from nncf.torch.function_hook.wrapper import is_wrapped

    if is_wrapped(model):
        raise ModelError("the model is quantized already", where="quantize", hint="give the float model")
    check_calibration(model, calibration)
    shape = form_of(calibration)
    model = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # a net that was a teacher once is frozen
    floats = resolve_float_layers(model, config.float_layers, shape)
    device = next(model.parameters()).device
    if config.reestimate_batchnorm and not reestimate_on(model, _spread(calibration, device)):
        raise ModelError(NO_BATCHNORM, where="quantize.reestimate_batchnorm")
    fold_batchnorm(model, shape)
    if config.equalize:
        _equalize(model, shape, tell)
    # A look-up computes nothing: what it costs is room, which weights in the file decide and not ranges.
    tables = is_text(shape) and any(isinstance(module, nn.Embedding) for module in model.modules())
    scope = ignored_scope(nncf, floats, "net" if isinstance(model, CONTAINERS) else "", tables=tables)
    reference = _holdable(copy.deepcopy(model))
    quantized = _with_quantizers(nncf, model, calibration[:1], scope)
    set_weight_grid(quantized, shape, bits=config.weight_bits, method=config.weight_ranges)
    seen = observe(quantized, calibration, tick, singly=config.ranges == "mean_min_max", padding=padding)
    set_activation_ranges(quantized, seen, config.ranges, config.percentile or DEFAULT_PERCENTILE)
    if correct_biases:
        rounding = (config.adaround or AdaRound()) if config.rounding == "adaround" else None
        left = reconstruct(quantized, reference, calibration, rounding, tick, padding=padding)
        if left:
            tell(f"rounded to the nearest all the same, as their calls can't be reconstructed: {', '.join(left)}")
    return quantized.eval()


def _spread(samples: np.ndarray, device: torch.device) -> Iterator[torch.Tensor]:
    """Batches of every so-many-th sample: neighbours may be of one class, and BatchNorm normalises by its batch."""
    parts = -(-len(samples) // BATCH)
    for part in range(parts):
        yield torch.from_numpy(np.ascontiguousarray(samples[part::parts])).to(device)


def check_calibration(model: nn.Module, calibration: np.ndarray) -> None:
    """Tell of samples that no range can be taken from.

    Raises:
        ModelError: none of them, another shape than the model takes, another type than float32 (or int64 of texts),
            values that aren't finite or are all the same.
    """
    got = f"got {calibration.dtype} {calibration.shape}"
    if calibration.ndim < 2 or len(calibration) == 0:
        raise ModelError(f"expected calibration samples (N, C, H, W), {got}", where="quantize")
    texts = calibration.dtype == np.int64 and calibration.ndim == 2
    if calibration.dtype != np.float32 and not texts:
        raise ModelError(
            f"expected calibration samples of float32, {got}",
            where="quantize",
            hint="preprocess them as for training; token ids (N, L) are int64",
        )
    if not np.isfinite(calibration).all():
        raise ModelError("the calibration samples hold NaN or infinity", where="quantize")
    if calibration.min() == calibration.max():
        raise ModelError(
            f"every value of the {len(calibration)} calibration samples is {calibration.flat[0]:g}",
            where="quantize",
            hint="ranges are measured on them: give real samples",
        )
    try:
        with evaluating(model):
            model(shown(model, calibration[:1].copy()))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ModelError(
            f"the model can't take calibration samples of shape {calibration.shape[1:]}: {str(error).splitlines()[0]}",
            where="quantize",
            hint="expected (N, C, H, W), as the model takes them",
        ) from error


def _equalize(model: nn.Module, shape: tuple[int, ...], tell: Callable[[str], None]) -> None:
    done = equalize(model, shape)
    if not done.pairs:
        raise ModelError(
            f"no two layers can be evened out: {'; '.join(done.skipped[:3]) or 'no layer follows another'}",
            where="quantize.equalize",
            hint="leave equalize out",
        )
    tell(f"evened out {len(done.pairs)} pairs of layers")
    for line in done.skipped:
        tell(f"not evened out: {line}")


def _with_quantizers(nncf: ModuleType, model: nn.Module, calibration: np.ndarray, scope: Any) -> nn.Module:
    """NNCF's part: where quantizers go. What it would measure itself grows with the samples: it is shown one."""
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        QuantizationParameters,
    )

    transformer = is_transformer(model)
    device = next(model.parameters()).device
    samples = [torch.from_numpy(np.ascontiguousarray(sample[None])).to(device) for sample in calibration]
    with _quiet():
        quantized: nn.Module = nncf.quantize(
            _holdable(model),
            nncf.Dataset(samples),
            ignored_scope=scope,
            preset=nncf.QuantizationPreset.MIXED
            if transformer or is_uneven(model)
            else nncf.QuantizationPreset.PERFORMANCE,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            subset_size=len(samples),
            advanced_parameters=AdvancedQuantizationParameters(
                activations_quantization_params=QuantizationParameters(per_channel=False),
                # SmoothQuant adds a multiplication that torch.export loses together with quantizers behind it.
                smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
                disable_bias_correction=True,
            ),
        )
    share_inputs(quantized.eval(), samples[0])
    if transformer:
        quantize_constant_sides(quantized, samples[0])
    else:  # a transformer's layers before a GELU give float, which MatMul may
        quantize_before_activations(quantized, samples[0])
    return quantized


def quantizers(model: nn.Module) -> dict[str, nn.Module]:
    """NNCF's quantizers by hook name; weights first (``pre_hooks.layer/conv2d/0__1.0``: port 1 of the call).

    Raises:
        ModelError: the model has none.
    """
    storage = getattr(model, HOOKS, None)
    found = {} if storage is None else dict(storage.named_hooks(remove_duplicate=False))
    if not found:
        raise ModelError("the model has no quantizers", where="quantize", hint="run insert_quantizers first")
    return found


def quantizer_config(model: nn.Module) -> dict[str, Any]:
    """Where each quantizer sits and of which kind, as plain JSON data; their values are in the state dict."""
    _nncf()
    quantizers(model)
    from nncf.torch import get_config

    state = get_config(model)["compression_state"]
    entries = []
    for entry in state:
        own = dict(entry["module_config"])
        own["mode"] = str(own["mode"].value)
        own["scale_shape"] = list(own["scale_shape"])
        entries.append({"hooks": list(entry["hook_names_in_model"]), "kind": entry["module_cls_name"], "spec": own})
    return {"quantizers": entries}


def restore_quantizers(model: nn.Module, config: dict[str, Any], input_shape: tuple[int, ...]) -> nn.Module:
    """Put the quantizers of ``config`` into a fresh float model (folded here if it isn't yet), in place.

    Their ranges are not set: load the state dict afterwards.

    Returns:
        The model, inside :class:`Whole` if it is an ``nn.Sequential``.

    Raises:
        ArtifactError: ``config`` isn't what :func:`quantizer_config` gives.
    """
    _nncf()
    from nncf.common.quantization.structs import QuantizationScheme
    from nncf.torch import load_from_config

    fold_batchnorm(model, input_shape)
    entries = []
    try:
        for entry in config["quantizers"]:
            if entry["kind"] not in QUANTIZER_CLASSES:
                raise ArtifactError(f"expected one of {', '.join(QUANTIZER_CLASSES)}, got {entry['kind']!r}")
            spec = {
                **entry["spec"],
                "mode": QuantizationScheme(entry["spec"]["mode"]),
                "scale_shape": tuple(entry["spec"]["scale_shape"]),
            }
            entries.append(
                {
                    "hook_names_in_model": entry["hooks"],
                    "module_path": "nncf.torch.quantization.layers",
                    "module_cls_name": entry["kind"],
                    "module_config": spec,
                }
            )
        restored: nn.Module = load_from_config(_holdable(model), {"compression_state": entries})
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"not a quantizer config: {error}", where="quantizers", hint="quantize the model again"
        ) from error
    return restored.eval()


__all__ = [
    "HOOKS",
    "check_calibration",
    "insert_quantizers",
    "is_transformer",
    "quantizer_config",
    "quantizers",
    "restore_quantizers",
]
