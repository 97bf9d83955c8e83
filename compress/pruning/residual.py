"""Which blocks of a net could be left out: those that add something to what they are given.

Nothing is known by the name of a class. A block is a residual one if it gives back its input once its weights are zero:
``x + f(x)`` with or without a ReLU or a LayerNorm behind it, whatever ``f`` is. That and whether the rest runs without
it are *tried*.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.compress.macs import evaluating, shown
from edgewise.compress.pruning.identity import Dropped, put_identities
from edgewise.errors import ModelError
from edgewise.models.inputs import dims_in_words, drawn

FAILURES = (RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError, AssertionError)


@dataclass
class _Call:
    """How a module was called in the dry run: how often, with what, and what it gave."""

    times: int = 0
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    output: Any = None


def find_blocks(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[list[str], dict[str, str]]:
    """The blocks that can be dropped, in order of execution, and why others can't: name -> reason, for each
    module with two or more weight layers in a row of such (``nn.Sequential``, ``nn.ModuleList``).

    Where residual blocks lie inside one another, those in a row are taken: the layers of an encoder, not the encoder,
    and not the attention in them.

    Raises:
        ModelError: the model can't take an input of this shape.
    """
    modules = dict(model.named_modules())
    calls = _dry_run(model, input_shape)
    reasons = {name: _why_not(modules[name], calls.get(name)) for name in modules if _weighted(modules[name])}
    inner = _innermost({name for name, reason in reasons.items() if not reason}, modules)
    blocks = [name for name in calls if name in inner]
    for name in list(blocks):
        if reason := _needed(model, name, input_shape):
            blocks.remove(name)
            reasons[name] = reason
    inside = [f"{name}." for name in inner]
    skipped = {
        name: reason
        for name, reason in reasons.items()
        if reason
        and (name in inner or (_in_row(name, modules) and _weighted(modules[name]) > 1))
        and not any(name.startswith(block) for block in inside)
        and not any(block.startswith(f"{name}.") for block in inner)
    }
    return blocks, skipped


@contextmanager
def without(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """``model`` with identities at these places, for a while."""
    kept = {name: model.get_submodule(name) for name in names}
    put_identities(model, kept)
    try:
        yield
    finally:
        for name, block in kept.items():
            model.set_submodule(name, block)


def _dry_run(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, _Call]:
    """One pass of noise, two samples; modules in the order in which they are done."""
    calls: dict[str, _Call] = {}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, module in model.named_modules():

            def note(
                _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, name: str = name
            ) -> None:
                call = calls.pop(name, _Call())
                calls[name] = _Call(call.times + 1, args, kwargs, output)

            stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        _noise(model, input_shape)
    return calls


def _noise(model: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    try:
        logits: Tensor = model(shown(model, drawn(input_shape, 2, seed=0)))
    except FAILURES as error:
        raise ModelError(
            f"the model can't take an input of shape {dims_in_words(input_shape)}: {error}",
            hint="check the task's input shape against the model",
        ) from error
    return logits


def _weighted(module: nn.Module) -> int:
    """Layers with weight matrices inside; none for a plain row of others."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict | Dropped):
        return 0
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return 0
    return sum(any(p.dim() > 1 for p in inner.parameters(recurse=False)) for inner in module.modules())


def _in_row(name: str, modules: Mapping[str, nn.Module]) -> bool:
    row = nn.Sequential | nn.ModuleList | nn.ModuleDict
    return bool(name) and isinstance(modules[name.rpartition(".")[0]], row)


def _why_not(module: nn.Module, call: _Call | None) -> str:
    """Empty where the module is a residual block."""
    if call is None:
        return "it does not run"
    if call.times != 1:
        return f"it runs {call.times} times in one pass"
    if not call.args or not isinstance(call.args[0], Tensor) or not isinstance(call.output, Tensor):
        return f"it gives {type(call.output).__name__}: an identity can stand only where one tensor comes and goes"
    taken, given = tuple(call.args[0].shape[1:]), tuple(call.output.shape[1:])
    if taken != given:
        return f"its input {taken} and its output {given} differ in shape"
    if not _passes(module, call):
        return "it adds nothing to its input: with its weights at zero, the input doesn't come out"
    return ""


def _passes(module: nn.Module, call: _Call) -> bool:
    """Whether the input comes out of a copy whose layers are silent: matrices and biases zero, norms plain."""
    silent = copy.deepcopy(module)
    for name, tensor in [*silent.named_parameters(), *silent.named_buffers()]:
        last = name.rpartition(".")[2]
        if tensor.dim() > 1 or last.endswith(("bias", "running_mean")):
            tensor.data.zero_()
        elif tensor.dim() == 1 and last in ("weight", "running_var"):
            tensor.data.fill_(1)
    shape = call.args[0].shape
    generator = torch.Generator().manual_seed(0)
    # What a ReLU lets through, and what a LayerNorm leaves alone.
    positive = torch.rand(shape, generator=generator)
    standard = nn.functional.layer_norm(torch.randn(shape, generator=generator), shape[-1:], eps=0)
    for probe in (positive.to(call.args[0]), standard.to(call.args[0])):
        try:
            with evaluating(silent):
                out = silent(probe.clone(), *call.args[1:], **(call.kwargs or {}))
        except FAILURES:
            continue
        if isinstance(out, Tensor) and out.shape == shape and torch.allclose(out, probe, rtol=1e-3, atol=1e-3):
            return True
    return False


def _innermost(residual: set[str], modules: Mapping[str, nn.Module]) -> set[str]:
    """One of each nest of residual modules: rather those in a row, and among these the inner ones."""
    kept: set[str] = set()
    for name in sorted(residual, key=lambda name: name.count("."), reverse=True):
        inside = {other for other in kept if other.startswith(f"{name}.") or not name}
        rows = {other for other in inside if _in_row(other, modules)}
        own = _in_row(name, modules)
        if not inside or (own and len(rows) < 2) or (not own and not rows and len(inside) < 2):
            kept = (kept - inside) | {name}
    return kept


def _needed(model: nn.Module, name: str, input_shape: tuple[int, ...]) -> str:
    """Why the rest doesn't run without this block; empty where it does."""
    try:
        with evaluating(model), without(model, [name]):
            _noise(model, input_shape)
    except ModelError as error:
        return f"the rest doesn't run without it ({str(error.__cause__).splitlines()[0]})"
    return ""
