"""Two releases measured side by side, on one device, in the same launches: never against a stored time.

The pair is looked at up to ``LOOKS`` times, after more launches each, and measuring ends as soon as every limit can be
told. Whoever looks three times has three chances to err, so each look has a third of the 5 % (Bonferroni).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgewise.bench.config import Bench
from edgewise.bench.devices.base import Device, open_device
from edgewise.bench.gate.against import Release, release_name
from edgewise.bench.gate.power import ALPHA
from edgewise.bench.measure import measure
from edgewise.bench.provenance import check_same_device
from edgewise.bench.record import FileUnderTest, Launch, Measurement, Results
from edgewise.bench.validity import flags_of
from edgewise.errors import MeasureError
from edgewise.measured import Measured, check_there
from edgewise.progress import Tick

SHARES = (1, 1, 2)  # launches of each look, as multiples of the config's: 1, 2 and 4 times as many in all
LOOKS = len(SHARES)

MENDED = frozenset({"precision_not_reached", "unstable", "single_launch"})
"""Flags of a part that more launches may take away; the others stay, whatever comes after."""

Decided = Callable[[Release], bool]


def compare(ours: Measured, theirs: Measured, names: Sequence[str], decided: Decided, tick: Tick) -> Release:
    """Measure the files ``names`` of both, until ``decided`` says that every limit can be told, or the looks are used.

    Raises:
        ArtifactError: a file or the inputs are not there any more.
        MeasureError: a result comes from another device than this one, or nothing could be measured.
        DeviceError: the device can't be used.
    """
    files = [ours.results.file(name) for name in names]
    then = [file for file in theirs.results.files if file.name in names]
    for measured, group in ((ours, files), (theirs, then)):
        for file in group:
            check_there(measured, file)
    renamed = [replace(file, name=release_name(file.name), reference=None, parent=None) for file in then]
    config = Bench.model_validate(ours.results.config)
    side: Results | None = None
    confidence = 1 - 2 * ALPHA / LOOKS
    with ExitStack() as stack:
        device = stack.enter_context(open_device(config.device))
        same_device(ours, device)
        same_device(theirs, device)
        for look, share in enumerate(SHARES):
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgewise-")))
            # Windows of energy can't be joined as launches are: the first look's are kept.
            asked = config if side is None else config.model_copy(update={"energy": False})
            launches = share * config.launches
            found = again([*files, *renamed], ours, asked, launches, look, temporary, device, tick)
            side = found if side is None else joined(side, found)
            release = Release(theirs.name, theirs.results, side, confidence)
            if decided(release):
                break
    return release


def same_device(measured: Measured, device: Device) -> None:
    """Whether this is the device that ``measured`` comes from.

    Raises:
        MeasureError: it isn't, and what differs.
    """
    try:
        check_same_device(measured.results.provenance, device.probe())
    except MeasureError as error:
        raise MeasureError(
            f"{measured.name} was measured on another device than this: {error.message}",
            where=str(measured.folder),
            hint=f"measure it here first: edgewise bench {measured.folder} --out DIR, and name DIR",
        ) from None


def again(
    files: Sequence[FileUnderTest],
    measured: Measured,
    config: Bench,
    launches: int,
    seed: int,
    out: Path,
    device: Device,
    tick: Tick,
    *,
    scenarios: bool = False,
) -> Results:
    """Measure ``files`` on the inputs of ``measured`` in exactly ``launches`` launches, and under load where
    ``scenarios`` of the config are wanted.

    Only one sample is answered, for answers don't change.
    """
    inputs = measured.inputs
    count = len(np.load(inputs, mmap_mode="r", allow_pickle=False))
    only = {"launches": launches, "max_launches": launches, "accuracy_samples": 1}
    loads = config.scenarios if scenarios else ()
    asked = config.model_copy(update={**only, "scenarios": loads, "seed": config.seed + 1 + seed})
    ids = [str(place) for place in range(count)]
    return measure(
        files,
        inputs,
        np.zeros(count, np.int64),
        ids,
        asked,
        out,
        score=_no_score,
        tick=tick,
        device=device,
        padding=measured.padding,
    )


def joined(one: Results, other: Results) -> Results:
    """The launches of both, counted on, with the flags of all of them; joules are those of ``one``."""
    config = Bench.model_validate(one.config)
    measurements = {}
    for file in one.files:
        first, second = one.measurements[file.name], other.measurements[file.name]
        start = 1 + max((launch.index for m in one.measurements.values() for launch in m.launches), default=-1)
        moved: tuple[Launch, ...] = tuple(replace(launch, index=launch.index + start) for launch in second.launches)
        whole = replace(first, launches=(*first.launches, *moved), error=first.error or second.error)
        measurements[file.name] = _flagged(whole, first, second, file.runtime, config)
    return replace(one, measurements=measurements)


def _flagged(whole: Measurement, first: Measurement, second: Measurement, runtime: str, config: Bench) -> Measurement:
    """With what its launches show, and what was wrong with either part: telemetry and settings are not seen here."""
    shown = flags_of(whole, runtime, None, config)
    of_parts = {*first.flags, *second.flags} - MENDED
    return replace(whole, flags=tuple(dict.fromkeys((*shown, *sorted(of_parts)))))


def _no_score(outputs: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.zeros(targets.shape, np.float32)
