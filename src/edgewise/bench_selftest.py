"""``edgewise bench --selftest FILE``: a file against itself, and the smallest slowdown that this device would find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgewise.bench import format as say
from edgewise.bench.config import Bench
from edgewise.bench.selftest import selftest
from edgewise.bench_files import prepared
from edgewise.errors import RecipeError
from edgewise.progress import Tick, silent


def refuse(given: Mapping[str, Any]) -> None:
    """Refuse options that a self-test can't honour; ``given``: by name, None or empty where they were not given.

    Raises:
        RecipeError: naming them.
    """
    wrong = [name for name, value in given.items() if value]
    if wrong:
        raise RecipeError(
            f"--selftest times a file against itself, without {', '.join(wrong)}",
            where="--selftest",
            hint="leave that out, or ask for it in a call of its own",
        )


def against_itself(
    paths: Sequence[Path], inputs: Path | None, config: Bench, out: Path | None, tick: Tick = silent
) -> dict[str, Any]:
    """Measure one file against itself; the finding as JSON.

    Raises:
        RecipeError: not exactly one file.
        MeasureError, RuntimeMissing, DataError, DeviceError: see ``bench_files.measure_files``.
    """
    if len(paths) != 1:
        raise RecipeError(f"expected one file to measure against itself, got {len(paths)}", where="--selftest")
    with prepared(paths, inputs, config, out) as (files, source, folder, device):
        found = selftest(files[0], source, config, folder, device=device, tick=tick)
    return {
        "file": files[0].name,
        "ratio": found.comparison.ratio and vars(found.comparison.ratio),
        "clock": found.comparison.clock,
        "launches": found.comparison.launches,
        "pairs": found.comparison.pairs,
        "clean": found.clean,
        "smallest_slowdown": found.slowdown,
        "flags": list(found.flags),
        "config": config.model_dump(mode="json"),
    }


def show(found: dict[str, Any]) -> None:
    """Print it for a person."""
    ratio = found["ratio"]
    print(
        f"{found['file']} against itself: {ratio['value']:.4f} (95 %: {ratio['low']:.4f} to {ratio['high']:.4f}), "
        f"{found['launches']} launches, {found['pairs']} block pairs, on {CLOCKS[found['clock']]}"
    )
    print(f"the smallest slowdown found in 90 % of cases: {say.percent(found['smallest_slowdown'])}")
    if not found["clean"]:
        print("note: the same file differs from itself, which chance does in 5 % of cases: test again")
    for flag in found["flags"]:
        print(f"note: {say.flag_words(flag)}")


CLOCKS = {"wall": "the wall clock", "cpu": "CPU time"}
