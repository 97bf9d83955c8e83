"""Features of named layers, read by forward hooks."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from edgewise.errors import ModelError

WHERE = "losses.layers"


@contextmanager
def tapped(model: nn.Module, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Outputs of the modules called ``names``, filled anew at every forward pass while the block lasts.

    Raises:
        ModelError: a module doesn't exist.
    """
    modules = dict(model.named_modules())
    features: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise ModelError(f"the layer {name!r} gives a {type(output).__name__}, not a tensor", where=WHERE)
            features[name] = output

        return hook

    for name in names:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=3)
            raise ModelError(f"the model has no layer {name!r}", where=WHERE, hint=f"near: {', '.join(near)}")
    handles = [modules[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()
