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
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from edgewise.compress import fake_quantize
from edgewise.compress.fold import fold_batchnorm
from edgewise.errors import ArtifactError, ModelError

HOOKS = "__nncf_hooks"  # where NNCF keeps its quantizers; part of its names in a state dict
QUANTIZER_CLASSES = ("SymmetricQuantizer", "AsymmetricQuantizer")
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
ATTENTION = (nn.LayerNorm, nn.MultiheadAttention, nn.TransformerEncoderLayer)


class Whole(nn.Module):
    """Holds a model whose children are its program (``nn.Sequential``): NNCF's hooks would become one step of it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As ``net``: (N, C, H, W) -> (N, K)."""
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
    """Whether to quantize as a transformer (asymmetric activations): it has attention or LayerNorm."""
    return any(isinstance(module, ATTENTION) for module in model.modules())


def _holdable(model: nn.Module) -> nn.Module:
    return Whole(model) if isinstance(model, CONTAINERS) else model


def insert_quantizers(model: nn.Module, calibration: np.ndarray) -> nn.Module:
    """Fold BatchNorm, insert INT8 fake quantizers and set their ranges (min-max statistics, fast bias correction).

    CNNs get NNCF's PERFORMANCE preset (symmetric activations), models with attention or LayerNorm the MIXED one
    (asymmetric activations). The result trains with any loop: weights and ranges are its parameters.

    Args:
        model: float model; it stays as it is.
        calibration: (N, C, H, W) float32 samples, taken from the training data.

    Returns:
        The quantized copy, in eval mode. A model that is an ``nn.Sequential`` comes back inside :class:`Whole`.

    Raises:
        ModelError: no samples, values that aren't finite, or a model that NNCF can't trace.
    """
    if calibration.ndim < 2 or len(calibration) == 0:
        raise ModelError(f"expected calibration samples (N, C, H, W), got shape {calibration.shape}", where="quantize")
    if not np.isfinite(calibration).all():
        raise ModelError("the calibration samples hold NaN or infinity", where="quantize")
    nncf = _nncf()
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        QuantizationParameters,
    )
    from nncf.torch.function_hook.wrapper import is_wrapped

    if is_wrapped(model):
        raise ModelError("the model is quantized already", where="quantize", hint="give the float model")
    model = copy.deepcopy(model).eval()
    fold_batchnorm(model, calibration.shape[1:])
    transformer = is_transformer(model)
    device = next(model.parameters()).device
    samples = [torch.from_numpy(np.ascontiguousarray(sample[None])).to(device) for sample in calibration]
    with _quiet():
        quantized: nn.Module = nncf.quantize(
            _holdable(model),
            nncf.Dataset(samples),
            preset=nncf.QuantizationPreset.MIXED if transformer else nncf.QuantizationPreset.PERFORMANCE,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            subset_size=len(samples),
            advanced_parameters=AdvancedQuantizationParameters(
                activations_quantization_params=QuantizationParameters(per_channel=False),
                # SmoothQuant adds a multiplication that torch.export loses together with quantizers behind it.
                smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
            ),
        )
    return quantized.eval()


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


__all__ = ["insert_quantizers", "is_transformer", "quantizer_config", "quantizers", "restore_quantizers"]
