"""Mend where NNCF puts activation quantizers: what integer kernels need beside what it knows of.

NNCF takes a convolution and the activation behind it for one fused operation. OpenVINO fuses any of them; ONNX Runtime
and LiteRT only those that clip, so that a leaky ReLU would keep the convolution before it in float.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.compress.fold import LAYERS
from edgewise.compress.quantization.places import HOOKS

# Activations that no integer convolution takes in: as torch functions, and as modules.
CALLS = frozenset(("leaky_relu", "elu", "elu_", "celu", "selu", "silu", "gelu", "mish", "hardswish", "leaky_relu_"))
UNEVEN = (nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish)

FLOOR = 2.0**-16  # of a range: a tensor that is zero throughout has none


def is_uneven(model: nn.Module) -> bool:
    """Whether an activation gives much more above zero than below: a symmetric range would waste half its levels."""
    return any(isinstance(module, UNEVEN) for module in model.modules())


def share_inputs(model: nn.Module, sample: Tensor) -> int:
    """Let activation quantizers of one kind that are given the very same tensor be one quantizer, in place.

    The queries, keys and values of an attention are such: NNCF gives each projection a quantizer of its own. Trained
    apart, they would be three tensors to quantize and to store. How many went.

    Args:
        model: with quantizers.
        sample: (1, C, H, W).
    """
    storage: Any = getattr(model, HOOKS)
    hooks = dict(storage.named_hooks(remove_duplicate=False))
    seen: dict[nn.Module, tuple[Tensor, int]] = {}

    def remember(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        # What is held lives on, so no id is used twice; a version tells what was changed in place.
        seen[module] = (args[0], args[0]._version)

    handles = [module.register_forward_pre_hook(remember) for module in dict.fromkeys(hooks.values())]
    try:
        with torch.no_grad():
            model(sample)
    finally:
        for handle in handles:
            handle.remove()
    first: dict[tuple[Any, ...], nn.Module] = {}
    gone = 0
    for name, quantizer in hooks.items():
        if quantizer not in seen or _narrow(quantizer):
            continue
        tensor, version = seen[quantizer]
        kept = first.setdefault((id(tensor), version, type(quantizer), *_spec(quantizer)), quantizer)
        if kept is not quantizer:
            _put(storage, name, kept)
            gone += 1
    return gone


def quantize_before_activations(model: nn.Module, sample: Tensor, batches: Iterable[Tensor]) -> int:
    """Quantize what goes into every uneven activation whose output is quantized, or that a quantized layer alone feeds
    (where a plan's next layer is in float), in place; how many were added.

    Ranges are asymmetric, from the mean of each sample's smallest and largest value.

    Args:
        model: with quantizers.
        sample: (1, C, H, W), to see what feeds what.
        batches: calibration samples (N, C, H, W).
    """
    from nncf.torch.function_hook import register_pre_function_hook
    from nncf.torch.function_hook.nncf_graph.nncf_graph_builder import build_nncf_graph
    from nncf.torch.quantization.layers import AsymmetricQuantizer

    storage: Any = getattr(model, HOOKS)
    names = {name.rpartition(".")[0]: hook for name, hook in storage.named_hooks(remove_duplicate=False)}
    quantizer = next((hook for name, hook in names.items() if name.startswith("post_hooks.")), None)
    if quantizer is None:
        return 0
    graph = build_nncf_graph(model, sample)
    layers = {name.replace(".", "/") for name, module in model.named_modules() if isinstance(module, LAYERS)}
    added: list[_Extremes] = []
    for node in graph.get_all_nodes():
        call = node.node_name
        if node.node_type not in CALLS or f"pre_hooks.{call}__0" in names:
            continue
        sources = [source.node_name for source in graph.get_previous_nodes(node)]
        behind_layer = any(source.rpartition("/")[0].rpartition("/")[0] in layers for source in sources)
        behind_quantized = any(f"pre_hooks.{source}__1" in names for source in sources)
        if behind_quantized if behind_layer else f"post_hooks.{call}__0" in names:
            before = AsymmetricQuantizer(_asymmetric(quantizer)).to(next(model.parameters()).device)
            before.get_buffer("enabled").zero_()  # until its range is known
            register_pre_function_hook(model, call.replace(":", "."), 0, before)
            added.append(_Extremes(before))
    with torch.no_grad():
        for batch in batches if added else ():
            model(batch)
    for extremes in added:
        extremes.set_range()
    return len(added)


class _Extremes:
    """The mean of the samples' smallest and largest values of what a quantizer is given."""

    def __init__(self, quantizer: Any) -> None:
        self.quantizer, self.sums, self.count = quantizer, torch.zeros(2, dtype=torch.float64), 0
        self.handle = quantizer.register_forward_pre_hook(self.add)

    def add(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """One batch."""
        flat = args[0].detach().flatten(1).double().cpu()
        self.sums += torch.stack([flat.amin(1).clamp_max(0).sum(), flat.amax(1).clamp_min(0).sum()])
        self.count += len(flat)

    def set_range(self) -> None:
        """Give it to the quantizer, and switch that on."""
        self.handle.remove()
        low, high = (self.sums / max(1, self.count)).tolist()
        with torch.no_grad():
            self.quantizer.input_low.fill_(low)
            self.quantizer._input_range_param_storage.fill_(max(high - low, FLOOR))
            self.quantizer.get_buffer("enabled").fill_(1)


def _asymmetric(quantizer: Any) -> Any:
    from nncf.common.quantization.structs import QuantizationScheme
    from nncf.torch.quantization.layers import PTQuantizerSpec

    state = {**quantizer._qspec.get_state(), "mode": QuantizationScheme.ASYMMETRIC, "signedness_to_force": None}
    return PTQuantizerSpec.from_state(state)


def _narrow(quantizer: Any) -> bool:
    return bool(quantizer._narrow_range)


def _spec(quantizer: Any) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in sorted(quantizer._qspec.get_state().items()))


def _put(storage: Any, name: str, quantizer: nn.Module) -> None:
    kind, key, number = name.split(".")
    getattr(storage, kind)[key][number] = quantizer


__all__ = ["is_uneven", "quantize_before_activations", "share_inputs"]
