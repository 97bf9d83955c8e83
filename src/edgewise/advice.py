"""What to try first, from where a model's time goes: plain rules over measured rows, each with what it can save."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from edgewise.bench.profile import Bound
from edgewise.profiles import DEFAULT_ROUND_TO

MUCH = 0.3  # of the time: from here on a kind of cost is worth an advice of its own
FAR_DB = 12.0  # so far under the median layer's SQNR, a layer is one to keep in float
LITTLE_PP = 1.0  # accuracy lost by half of a layer's channels, without training: training wins that back
LEFT = {"int8": 0.5, "prune": 0.5, "depth": 0.5, "other": 0.7, "round": 0.8, "weights": 0.4}
"""What is left of the time it touches, roughly, where we measured it (docs/results)."""


@dataclass(frozen=True)
class Layer:
    """One layer as ONNX Runtime executes it at batch 1.

    Args:
        name: of the torch module, or of the node where it comes from none.
        op: what is executed.
        ms: time; ``share`` of the whole.
        macs: multiply-accumulates.
        bytes: read and written, of which ``weight_bytes`` are weights.
        bound: what it waits for.
        channels: of its output; 0 where it has none.
        int8_sqnr_db: of the logits with this layer alone in INT8; None where not measured, as the next two.
        int8_flips: part of the answers that change by it.
        pruned_drop_pp: accuracy lost when the less important half of its channels is silent.
    """

    name: str
    op: str
    ms: float
    share: float
    macs: int
    bytes: int
    weight_bytes: int
    bound: Bound
    channels: int = 0
    int8_sqnr_db: float | None = None
    int8_flips: float | None = None
    pruned_drop_pp: float | None = None

    @property
    def intensity(self) -> float:
        """MACs for each byte moved."""
        return self.macs / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class Advice:
    """Something to try: ``saves`` is the part of the time it may save at best, ``recipe`` the lines that do it."""

    title: str
    why: str
    recipe: str
    saves: float


def first_three(layers: Sequence[Layer], *, transformer: bool) -> tuple[Advice, ...]:
    """The three advices that may save most, best first."""
    found = [
        *_integers(layers),
        *_fewer_layers(layers),
        *_thinner(layers),
        *_other_work(layers, transformer),
        *_channel_counts(layers),
        *_weights(layers),
        _student(),
    ]
    return tuple(sorted(found, key=lambda advice: -advice.saves)[:3])


def _share(layers: Sequence[Layer]) -> float:
    return sum(layer.share for layer in layers)


def _named(layers: Sequence[Layer], most: int = 4) -> str:
    names = [layer.name for layer in layers]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _integers(layers: Sequence[Layer]) -> list[Advice]:
    work = [layer for layer in layers if layer.macs and layer.bound != "overhead"]
    if not work:
        return []
    keep = fragile(layers)
    why = f"{_share(work):.0%} of the time is in {len(work)} layers that multiply, which INT8 does 2 to 4 times as fast"
    recipe = "stages:\n  - kind: quantize"
    if keep:
        why += f"; {_named(keep)} cost by far the most accuracy: try without them first"
        recipe += f"\n    float_layers: [{', '.join(layer.name for layer in keep)}]"
    return [Advice("Quantize to INT8", why, recipe, (1 - LEFT["int8"]) * _share(work))]


def fragile(layers: Sequence[Layer]) -> list[Layer]:
    """Layers that alone in INT8 disturb the answer far more than the others do, the worst first."""
    measured = sorted((layer.int8_sqnr_db, layer.name, layer) for layer in layers if layer.int8_sqnr_db is not None)
    if not measured:
        return []
    median = measured[len(measured) // 2][0]
    return [layer for sqnr_db, _, layer in measured if sqnr_db < median - FAR_DB][:3]


def _fewer_layers(layers: Sequence[Layer]) -> list[Advice]:
    small = [layer for layer in layers if layer.bound == "overhead"]
    if _share(small) < MUCH:
        return []
    why = (
        f"{_share(small):.0%} of the time goes to {len(small)} of {len(layers)} nodes that cost little but their call: "
        "fewer channels or bits don't make them faster, fewer layers do"
    )
    recipe = (
        "stages:                 # of a net without residual blocks: a shallower student instead\n"
        "  - kind: drop_blocks\n    macs_ratio: 0.7\n  - kind: distill"
    )
    return [Advice("Take layers away", why, recipe, (1 - LEFT["depth"]) * _share(small))]


def _thinner(layers: Sequence[Layer]) -> list[Advice]:
    busy = [layer for layer in layers if layer.macs and layer.bound == "compute"]
    cheap = [layer for layer in busy if layer.pruned_drop_pp is None or layer.pruned_drop_pp <= LITTLE_PP]
    if not cheap:
        return []
    dear = sorted((layer for layer in busy if layer not in cheap), key=lambda layer: -(layer.pruned_drop_pp or 0.0))
    why = f"{_share(busy):.0%} of the time waits for arithmetic"
    recipe = "stages:\n  - kind: prune\n    macs_ratio: 0.5"
    if any(layer.pruned_drop_pp is not None for layer in cheap):
        why += (
            f", and {len(cheap)} of these {len(busy)} layers lose at most {LITTLE_PP:g} pp without half their channels"
        )
    if dear:
        why += f"; spare {_named(dear)}"
        recipe += f"\n    ignore: [{', '.join(layer.name for layer in dear[:3])}]"
    return [Advice("Prune channels", why, recipe + "\n  - kind: distill", (1 - LEFT["prune"]) * _share(cheap))]


def _other_work(layers: Sequence[Layer], transformer: bool) -> list[Advice]:
    other = [layer for layer in layers if not layer.macs]
    if _share(other) < MUCH:
        return []
    by_op: dict[str, float] = defaultdict(float)
    for layer in other:
        by_op[layer.op] += layer.share
    worst = sorted(by_op.items(), key=lambda item: -item[1])[:3]
    told = ", ".join(f"{op} {share:.0%}" for op, share in worst)
    why = f"{_share(other):.0%} of the time multiplies nothing ({told}); OpenVINO and LiteRT fuse more of it"
    if transformer:
        why += ", and fewer blocks have fewer of them"
    recipe = "deploy:\n  targets:\n    - {runtime: openvino, precisions: [int8]}"
    return [Advice("Try another runtime", why, recipe, (1 - LEFT["other"]) * _share(other))]


def _channel_counts(layers: Sequence[Layer]) -> list[Advice]:
    odd = [layer for layer in layers if layer.macs and layer.channels > 16 and layer.channels % DEFAULT_ROUND_TO]
    if _share(odd) < MUCH / 3:
        return []
    counts = ", ".join(f"{layer.name} has {layer.channels}" for layer in odd[:3])
    why = (
        f"{_share(odd):.0%} of the time is in layers whose channels are no multiple of {DEFAULT_ROUND_TO} ({counts}): "
        "kernels fill their registers with what isn't there"
    )
    recipe = f"stages:\n  - kind: prune\n    macs_ratio: 0.9\n    round_to: {DEFAULT_ROUND_TO}"
    return [Advice("Round channel counts", why, recipe, (1 - LEFT["round"]) * _share(odd))]


def _weights(layers: Sequence[Layer]) -> list[Advice]:
    waiting = [
        layer for layer in layers if layer.bound == "memory" and layer.macs and layer.weight_bytes > layer.bytes / 2
    ]
    if _share(waiting) < MUCH / 3:
        return []
    why = (
        f"{_share(waiting):.0%} of the time waits for memory, in {_named(waiting)}: at batch 1 weights in INT8 are a "
        "quarter of the bytes"
    )
    recipe = "deploy:\n  targets:\n    - {runtime: onnxruntime, precisions: [int8_dynamic]}"
    return [Advice("Store weights as INT8", why, recipe, (1 - LEFT["weights"]) * _share(waiting))]


def _student() -> Advice:
    why = "whatever the time goes to, a net of half the depth and width has less of it, and a teacher to learn from"
    return Advice("Distil into a smaller student", why, "student:\n  model: …\nstages:\n  - kind: distill", 0.05)
