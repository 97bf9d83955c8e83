"""Features of named layers, read by forward hooks.

A name is a module's, for what comes out of it, or ``name:input``, for what goes into it. Hooks sit on the modules
themselves, so they also fire where the model is called through a wrapper such as DistributedDataParallel.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from edgewise.errors import ModelError

WHERE = "losses.layers"
PATTERN = re.compile(r"[*?]|\[[^]]*\]")  # what stands for other text in a glob
INPUT = ":input"


@contextmanager
def tapped(model: nn.Module, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Features called ``names``, filled anew at every forward pass while the block lasts; of a module that runs several
    times in a pass, the last. Where a module gives or takes several values, the first tensor of them.

    Raises:
        ModelError: a module doesn't exist; or, at the forward pass, it gives or takes no tensor.
    """
    modules = dict(model.named_modules())
    features: dict[str, Tensor] = {}

    def keep(name: str, value: object, verb: str) -> None:
        tensor = first_tensor(value)
        if tensor is None:
            raise ModelError(f"the layer {name!r} {verb} a {type(value).__name__}, not a tensor", where=WHERE)
        features[name] = tensor

    def after(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda _module, _inputs, output: keep(name, output, "gives")

    def before(name: str) -> Callable[[nn.Module, object], None]:
        return lambda _module, inputs: keep(name, inputs, "takes")

    wanted = dict.fromkeys(names)
    for name in wanted:
        if name.removesuffix(INPUT) not in modules:
            raise ModelError(f"the model has no layer {name!r}", where=WHERE, hint=near(name, modules))
    handles = [
        modules[name.removesuffix(INPUT)].register_forward_pre_hook(before(name))
        if name.endswith(INPUT)
        else modules[name].register_forward_hook(after(name))
        for name in wanted
    ]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def first_tensor(value: object) -> Tensor | None:
    """``value``, or the first tensor in it where it is a tuple or a list; None where there is none."""
    if isinstance(value, tuple | list):
        return next((item for item in value if isinstance(item, Tensor)), None)
    return value if isinstance(value, Tensor) else None


def near(name: str, names: Iterable[str]) -> str:
    """The hint that names what comes closest to ``name``. A pattern is held against as much of each name as it says
    something of: near to ``layr1.*`` is ``layer1.*``."""
    known = [known for known in names if known]
    name = name.removesuffix(INPUT)
    if PATTERN.search(name):
        while name.endswith(".*"):
            name = name.removesuffix(".*")
        parts = name.count(".") + 1
        cut = {one: ".".join(one.split(".")[:parts]) for one in known}
        known = list(dict.fromkeys(part if part == one else f"{part}.*" for one, part in cut.items()))
        name = PATTERN.sub("", name)
    close = difflib.get_close_matches(name, known, n=3) or known[:3]
    return f"near: {', '.join(close)}"
