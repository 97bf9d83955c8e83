"""Two forms of one model on the same inputs: how closely each layer follows, and where they first part.

Values are walked batch by batch: of each layer only sums of squares are kept.

**The first bad layer.** A layer is *bad* when its SQNR is under the floor of the coarser arithmetic of the two nets,
when it fell steeply (12 dB: four times the error) to less than 10 dB over that floor, or when it holds NaN or infinity
where the other net has numbers. An error spreads to everything behind it, and rounding adds up on the way, so the first
bad layer in order is not always to blame: named is the first one that itself *fell*, by at least 6 dB (its error at
least doubled) under the worst layer that it reads. Where no bad layer fell the error has grown little by little; then
it is the first, and ``why`` says so.

The floors: float32 in another order of sums keeps 115 dB and more, so 60 dB is a mistake; float16 has 66 dB for one
rounding, bfloat16 48 dB. Healthy INT8 nets keep 14 dB in their worst layer, trained ones 20 dB, and fall by 12 dB only
from high above (a layer whose signal cancels); at 10 dB the error is a third of the signal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from edgewise.deploy.inspect.align import align
from edgewise.deploy.inspect.base import Probe
from edgewise.deploy.inspect.open import open_probe
from edgewise.deploy.inspect.points import Point
from edgewise.deploy.inspect.sums import Layer, Sum
from edgewise.errors import DataError
from edgewise.models.inputs import form_of
from edgewise.progress import Tick, silent

if TYPE_CHECKING:
    from torch import nn

FLOOR_DB = {"float32": 60.0, "float16": 40.0, "bfloat16": 20.0, "int8": 10.0}
FALL_DB = 6.0
STEEP_DB = 12.0
NEAR_DB = 10.0  # over the floor: where a steep fall counts
BATCH = 8
NAMELESS = "no layer of one has the name of a layer of the other: only the answers are compared"
STRANGERS = "these don't look like two forms of one model: they have no layer in common, and their answers differ"


@dataclass(frozen=True)
class Comparison:
    """What ``compare_layers`` found.

    Args:
        one: what the first net is.
        other: what the second is.
        n: samples.
        rows: the layers that both have, in order of execution.
        output: the answers of the files as they are shipped.
        first_bad: the name of the first bad layer, None where there is none; see the module.
        why: the reason for naming it.
        floor_db: what counts as bad.
        flips: samples whose largest answer is another; None where the answers aren't (N, K) with K > 1, or not finite.
        unmatched: layers that only the first, and that only the second has: fusing swallowed them, or they are written
            otherwise there.
        note: what keeps this from being a comparison by layers.
    """

    one: str
    other: str
    n: int
    rows: tuple[Layer, ...]
    output: Layer
    first_bad: str | None
    why: str
    floor_db: float
    flips: int | None
    unmatched: tuple[tuple[str, ...], tuple[str, ...]]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data; JSON has no infinity, so equal layers are ``exact`` and broken ones not ``finite``."""
        plain = asdict(self)
        for row in (*plain["rows"], plain["output"]):
            row["exact"] = row["sqnr_db"] == math.inf
            row["finite"] = row["sqnr_db"] != -math.inf
            for key in ("sqnr_db", "fall_db", "max_abs"):
                row[key] = row[key] if row[key] is not None and math.isfinite(row[key]) else None
        return plain


def compare_layers(
    one: Path | nn.Module | Probe,
    other: Path | nn.Module | Probe,
    inputs: NDArray[Any],
    *,
    batch: int = BATCH,
    tick: Tick = silent,
) -> Comparison:
    """Run both nets on ``inputs`` and compare every layer that they share.

    Args:
        one: the net that is right: a saved model's folder, a file, a module; see ``edgewise.deploy.inspect.open``.
        other: the net to judge.
        inputs: (N, C, H, W) float32, or token ids (N, L) int64.
        batch: samples at a time.
        tick: told of the samples.

    Raises:
        MeasureError: a file that can't be run, or of a kind that isn't known.
        RuntimeMissing: a file's runtime isn't installed.
        DataError: no inputs, or of another shape than a file takes.
    """
    shape = form_of(inputs)
    # A probe is taken as it is, and torch isn't loaded to tell it from a module.
    probes: list[Probe] = [
        cast("Probe", source) if hasattr(source, "expose") else open_probe(source, shape) for source in (one, other)
    ]
    try:
        return _compare(probes[0], probes[1], inputs, batch, tick)
    finally:
        for probe in probes:
            probe.close()


def _compare(one: Probe, other: Probe, inputs: NDArray[Any], batch: int, tick: Tick) -> Comparison:
    _check_inputs(inputs, (one, other))
    pairs = align(one.points, other.points)
    matched = _comparable(one.points, other.points, pairs)
    one.expose(set(matched.values()))
    other.expose(set(matched))
    sums = {index: Sum() for index in matched}
    answers, flips, judged = Sum(), 0, True
    step = min([batch, *(size for probe in (one, other) if (size := getattr(probe, "batch", None)))])
    done = 0
    for part in _batches(inputs, step):
        left, mine = one.run(part)
        right, theirs = other.run(part)
        answers.add(left, right)
        judged = judged and left.ndim == 2 and left.shape == right.shape and left.shape[1] > 1
        judged = judged and bool(np.isfinite(left).all() and np.isfinite(right).all())
        flips += int((left.argmax(1) != right.argmax(1)).sum()) if judged else 0
        for index, place in matched.items():
            if index in theirs and place in mine:
                sums[index].add(mine[place], theirs[index])
        done += len(part)
        tick(done, len(inputs), "samples")
    kept = {index: place for index, place in matched.items() if sums[index].fits}
    rows = _rows(one.points, kept, sums)
    output = answers.layer("output", "output")
    floor = min(FLOOR_DB[one.precision], FLOOR_DB[other.precision])
    # Without a common layer, answers that differ say that these are two models, not which layer is to blame.
    strangers = not rows and output.sqnr_db < floor
    bad, why = (None, "") if strangers else first_bad(rows, output, floor)
    return Comparison(
        one=one.label,
        other=other.label,
        n=len(inputs),
        rows=rows,
        output=output,
        first_bad=bad,
        why=why,
        floor_db=floor,
        flips=flips if judged else None,
        unmatched=(_left(one.points, set(kept.values())), _left(other.points, set(kept))),
        note=STRANGERS if strangers else "" if pairs else NAMELESS,
    )


def first_bad(rows: Sequence[Layer], output: Layer, floor_db: float) -> tuple[str | None, str]:
    """(the first bad layer, why it is); (None, "") where all is well. The rule is the module's."""
    broken = next((row for row in (*rows, output) if row.sqnr_db == -math.inf), None)
    low = [row for row in rows if row.sqnr_db < floor_db or _steep(row, floor_db)]
    fell = next((row for row in low if row.fall_db is None or row.fall_db >= FALL_DB), None)
    if broken is not None and (fell is None or broken is not output):
        return broken.name, "NaN, infinity or nothing but zeros in one of the two"
    if fell is not None and fell.fall_db is None:
        return fell.name, f"{fell.sqnr_db:.1f} dB, and nothing before it can be to blame"
    if fell is not None:
        return (
            fell.name,
            f"{fell.sqnr_db:.1f} dB; what it reads still had {fell.sqnr_db + (fell.fall_db or 0.0):.1f} dB",
        )
    if low:
        return low[0].name, (
            f"{low[0].sqnr_db:.1f} dB, the first under {floor_db:.0f} dB; the error grew little by little, "
            "no layer stands out"
        )
    if output.sqnr_db < floor_db:
        return output.name, f"{output.sqnr_db:.1f} dB, under {floor_db:.0f} dB, while the layers that are seen are fine"
    return None, ""


def _steep(row: Layer, floor_db: float) -> bool:
    return row.sqnr_db < floor_db + NEAR_DB and (row.fall_db is None or row.fall_db >= STEEP_DB)


def _comparable(one: Sequence[Point], other: Sequence[Point], pairs: dict[int, int]) -> dict[int, int]:
    """The pairs with a value on both sides."""
    taken_over = {other[index].clips for index in pairs} - {None}
    taken_over |= {index for index, place in pairs.items() for clipped in pairs.values() if one[clipped].clips == place}
    return {
        index: place
        for index, place in pairs.items()
        if other[index].tensor and one[place].tensor and index not in taken_over
    }


def _rows(one: Sequence[Point], kept: dict[int, int], sums: dict[int, Sum]) -> tuple[Layer, ...]:
    by_place = {place: sums[index] for index, place in kept.items()}
    rows = []
    for place, total in sorted(by_place.items()):
        point = one[place]
        before = [by_place[source].sqnr_db for source in _compared(one, point.inputs, by_place)]
        # The input is right on both sides; a layer that reads nothing compared has nobody to blame.
        fall = min(before) - total.sqnr_db if before and math.isfinite(min(before)) else None
        if point.kind == "input" and total.error == 0:
            continue
        rows.append(total.layer(point.name, point.kind, fall))
    return tuple(rows)


def _compared(points: Sequence[Point], inputs: Sequence[int], known: dict[int, Sum]) -> list[int]:
    """The nearest points before that are compared."""
    found: dict[int, None] = {}
    waiting = list(inputs)
    seen: set[int] = set()
    while waiting:
        index = waiting.pop()
        if index in seen:
            continue
        seen.add(index)
        if index in known:
            found[index] = None
        else:
            waiting.extend(points[index].inputs)
    return list(found)


def _left(points: Sequence[Point], kept: set[int]) -> tuple[str, ...]:
    return tuple(
        point.name
        for index, point in enumerate(points)
        if index not in kept and point.kind != "input" and point.clips is None
    )


def _batches(inputs: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    for start in range(0, len(inputs), size):
        part = inputs[start : start + size]
        yield np.ascontiguousarray(part, np.int64 if part.dtype.kind in "iu" else np.float32)


def _check_inputs(inputs: NDArray[Any], probes: Sequence[Probe]) -> None:
    if inputs.ndim < 2 or not len(inputs):
        raise DataError(f"expected inputs (N, C, H, W), got {inputs.shape}", where="inputs")
    for probe in probes:
        whole = inputs.dtype.kind in "iu"
        if whole != probe.token_ids:
            wanted = "token ids" if probe.token_ids else "numbers"
            raise DataError(f"expected {wanted}, got {inputs.dtype} {inputs.shape}", where=probe.label)
        told = probe.input_shape
        fits = len(told) == inputs.ndim - 1 and all(
            want is None or want == have for want, have in zip(told, inputs.shape[1:], strict=True)
        )
        if not fits:
            words = ", ".join("any" if size is None else str(size) for size in told)
            raise DataError(
                f"expected inputs (N, {words}), got {inputs.shape}",
                where=probe.label,
                hint="both nets must take the same inputs; a file with channels last isn't one of them",
            )


__all__ = ["Comparison", "Layer", "compare_layers", "first_bad"]
