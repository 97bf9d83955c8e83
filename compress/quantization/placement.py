"""Mend where NNCF puts activation quantizers: what integer kernels need beside what it knows of.

NNCF takes a convolution and the activation behind it for one fused operation. OpenVINO fuses any of them; ONNX Runtime
and LiteRT only those that clip, so that a leaky ReLU would keep the convolution before it in float.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgewise.compress.fold import LAYERS
from edgewise.compress.quantization.observe import is_weight
from edgewise.compress.quantization.places import HOOKS

# Activations that no integer convolution takes in: as torch functions, and as modules.
CALLS = frozenset(("leaky_relu", "elu", "elu_", "celu", "selu", "silu", "gelu", "mish", "hardswish", "leaky_relu_"))
UNEVEN = (nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish)

PRODUCTS = frozenset(("bmm", "matmul", "__matmul__"))  # as NNCF names them
VIEWS = frozenset(
    (
        *("view", "reshape", "transpose", "permute", "expand", "repeat", "unsqueeze", "squeeze", "flatten"),
        *("contiguous", "chunk", "split", "__getitem__"),
    )
)


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
        if quantizer not in seen or is_weight(quantizer):
            continue
        tensor, version = seen[quantizer]
        kept = first.setdefault((id(tensor), version, type(quantizer), *_spec(quantizer)), quantizer)
        if kept is not quantizer:
            _put(storage, name, kept)
            gone += 1
    return gone


def quantize_before_activations(model: nn.Module, sample: Tensor) -> int:
    """Quantize what goes into every uneven activation whose output is quantized, or that a quantized layer alone feeds
    (where a plan's next layer is in float), in place; how many were added. Their ranges are still to be found.

    Args:
        model: with quantizers.
        sample: (1, C, H, W), to see what feeds what.
    """
    names = _names(model)
    like = next((quantizer for name, quantizer in names.items() if name.startswith("post_hooks.")), None)
    if like is None:
        return 0
    graph = _graph(model, sample)
    layers = {name.replace(".", "/") for name, module in model.named_modules() if isinstance(module, LAYERS)}
    added = 0
    for node in graph.get_all_nodes():
        call = node.node_name
        if node.node_type not in CALLS or f"pre_hooks.{call}__0" in names:
            continue
        sources = [source.node_name for source in graph.get_previous_nodes(node)]
        behind_layer = any(source.rpartition("/")[0].rpartition("/")[0] in layers for source in sources)
        behind_quantized = any(f"pre_hooks.{source}__1" in names for source in sources)
        if behind_quantized if behind_layer else f"post_hooks.{call}__0" in names:
            _quantize_before(model, call, 0, like, asymmetric=True)
            added += 1
    return added


def quantize_constant_sides(model: nn.Module, sample: Tensor) -> int:
    """Quantize the side of a product that hangs on no input where the other side is quantized, in place; how many were
    added. DeBERTa multiplies queries by projected positions: NNCF sees a constant there, and no integer kernel takes a
    product with one side in float. Their ranges are still to be found.

    Args:
        model: with quantizers.
        sample: (1, L), to see what feeds what.
    """
    graph = _graph(model, sample)
    alive, waiting = set(), [node for node in graph.get_all_nodes() if node.node_type == "nncf_model_input"]
    while waiting:
        node = waiting.pop()
        if node.node_id not in alive:
            alive.add(node.node_id)
            waiting += graph.get_next_nodes(node)
    like = next((hook for hook in _names(model).values() if not is_weight(hook)), None)
    added = 0
    for node in graph.get_all_nodes() if like is not None else ():
        sides = graph.get_input_edges(node) if node.node_type in PRODUCTS else []
        quantized = [_quantized(graph, side.from_node) for side in sides]
        for side, done in zip(sides, quantized, strict=True):
            if any(quantized) and not done and side.from_node.node_id not in alive:
                _quantize_before(model, node.node_name, side.input_port_id, like, asymmetric=False)
                added += 1
    return added


def _graph(model: nn.Module, sample: Tensor) -> Any:
    """NNCF's graph of the calls that a run makes, quantizers among them."""
    from nncf.torch.function_hook.nncf_graph.nncf_graph_builder import build_nncf_graph

    return build_nncf_graph(model, sample)


def _names(model: nn.Module) -> dict[str, nn.Module]:
    """{hook: quantizer}; a hook is such as ``pre_hooks.conv1/conv2d/0__1``: what port 1 of that call is given."""
    storage: Any = getattr(model, HOOKS)
    return {name.rpartition(".")[0]: hook for name, hook in storage.named_hooks(remove_duplicate=False)}


def _quantized(graph: Any, node: Any) -> bool:
    """Whether a quantizer gave what ``node`` gives, looking past operators that only move values."""
    while node.node_type in VIEWS and graph.get_previous_nodes(node):
        node = graph.get_previous_nodes(node)[0]
    return node.node_type in ("symmetric_quantize", "asymmetric_quantize")


def _quantize_before(model: nn.Module, call: str, port: int, like: Any, *, asymmetric: bool) -> None:
    """Put a quantizer before a port of a call, of as many levels as ``like``."""
    from nncf.common.quantization.structs import QuantizationScheme
    from nncf.torch.function_hook import register_pre_function_hook
    from nncf.torch.quantization.layers import AsymmetricQuantizer, PTQuantizerSpec, SymmetricQuantizer

    mode = QuantizationScheme.ASYMMETRIC if asymmetric else QuantizationScheme.SYMMETRIC
    spec = PTQuantizerSpec.from_state({**like._qspec.get_state(), "mode": mode, "signedness_to_force": None})
    quantizer = (AsymmetricQuantizer if asymmetric else SymmetricQuantizer)(spec)
    register_pre_function_hook(model, call.replace(":", "."), port, quantizer.to(next(model.parameters()).device))


def _spec(quantizer: Any) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in sorted(quantizer._qspec.get_state().items()))


def _put(storage: Any, name: str, quantizer: nn.Module) -> None:
    kind, key, number = name.split(".")
    getattr(storage, kind)[key][number] = quantizer


__all__ = ["is_uneven", "quantize_before_activations", "quantize_constant_sides", "share_inputs"]
