"""Post-training quantization on ImageNet samples, and how much faster INT8 is than float, in three runtimes.

    python benchmarks/imagenet/run.py accuracy --data FOLDER --out runs/imagenet --nets mobilenet_v1 squeezenet
    python benchmarks/imagenet/run.py speed --data FOLDER --out runs/imagenet
    python benchmarks/imagenet/run.py own --data FOLDER --out runs/imagenet
    python benchmarks/imagenet/run.py tables --out runs/imagenet > tables.md

FOLDER holds imagenet1k_samples_jpeg.npz and the .pth files. From the repository root. What is there already stays: a
run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: one thread, as it is measured
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the nets are named from the repository root

import numpy as np
from files import Place, make, task_of
from options import NETS, options
from own import ROW as OWN
from own import make_own
from tables import tables

from edgewise.bench.config import Bench
from edgewise.bench.measure import measure
from edgewise.bench.record import FileUnderTest, load_results

SPEED_ROW = {"mobilenet_v1": "narrow_in_float"}  # the policy that is fastest in all runtimes; else the defaults


def inputs(place: Place, name: str, count: int | None = None) -> tuple[Path, np.ndarray, tuple[str, ...]]:
    """Test inputs as a file, their targets and their ids."""
    split = task_of(place, name).splits["test"]
    count = min(count or len(split.ids), len(split.ids))
    path = place.out / name / f"inputs-{count}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.concatenate([split.read(np.array([index])) for index in range(count)]))
    return path, split.targets[:count], split.ids[:count]


def answer(place: Place, name: str, row: str, files: Sequence[FileUnderTest]) -> None:
    """Let files answer all test images in their runtimes; times are not taken seriously here."""
    out = place.files(name, row) / "answers"
    if (out / "measurements.json").exists() or not files:
        return
    path, targets, ids = inputs(place, name)
    quick = Bench(launches=1, blocks=2, block_ms=1.0, warmup_s=0.0)
    measure(files, path, targets, ids, quick, out, score=task_of(place, name).score)


def accuracy(place: Place, names: Sequence[str], rows: Sequence[str] | None) -> None:
    """Every option of every net that has labels, made, converted and asked."""
    for name in names:
        if not NETS[name].weights:
            print(f"{name}: its weights are random, so its answers mean nothing", file=sys.stderr)
            continue
        answer(place, name, "float", make(place, name, "float", None))
        for row, settings in options(name).items():
            if rows is None or row in rows:
                start = time.perf_counter()
                answer(place, name, row, make(place, name, row, settings))
                print(f"{name} {row}: {time.perf_counter() - start:.0f} s", flush=True)


def speed(place: Place, names: Sequence[str], rows: Sequence[str] | None, launches: int) -> None:
    """INT8 beside float, taking turns, each runtime in a measurement of its own."""
    for name in names:
        for row in rows or [SPEED_ROW.get(name, "mse")]:
            pair = [*make(place, name, "float", None), *make(place, name, row, options(name)[row])]
            clock(place, name, row, pair, launches)


def clock(place: Place, name: str, row: str, files: Sequence[FileUnderTest], launches: int) -> None:
    """Files of one net taking turns, each runtime in a measurement of its own, kept below ``row``."""
    path, targets, ids = inputs(place, name, 32)
    for runtime in dict.fromkeys(file.runtime for file in files):
        out = place.files(name, row) / f"speed-{runtime}"
        if (out / "measurements.json").exists():
            continue
        config = Bench(launches=launches, blocks=20, accuracy_samples=1)
        same = [file for file in files if file.runtime == runtime]
        measure(same, path, targets, ids, config, out, score=task_of(place, name).score)
        flags = {flag for found in load_results(out).measurements.values() for flag in found.flags}
        print(f"{name} {row} {runtime}: {', '.join(sorted(flags)) or 'quiet'}", flush=True)


def own(place: Place, names: Sequence[str], launches: int) -> None:
    """The product's INT8 files beside those of the runtimes' own tools: times, and answers where labels are."""
    for name in names:
        files = {"float": make(place, name, "float", None), "mse": make(place, name, "mse", options(name)["mse"])}
        files[OWN] = make_own(place, name)
        for row, made in files.items() if NETS[name].weights else ():
            answer(place, name, row, made)
        clock(place, name, OWN, [file for made in files.values() for file in made], launches)


def main(arguments: Sequence[str] | None = None) -> int:
    """One of the four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("accuracy", "speed", "own", "tables"))
    parser.add_argument("--data", type=Path, default=Path(), help="the folder with images and weights")
    parser.add_argument("--out", type=Path, default=Path("runs/imagenet"))
    parser.add_argument("--nets", nargs="+", choices=NETS, default=None)
    parser.add_argument("--rows", nargs="+", default=None, help="of options.py; all by default")
    parser.add_argument("--launches", type=int, default=5, help="fresh processes a file, for speed")
    given = parser.parse_args(arguments)
    place = Place(given.data.resolve(), given.out.resolve())
    if given.what == "tables":
        print(tables(place.out))
    elif given.what == "accuracy":
        accuracy(place, given.nets or [name for name, net in NETS.items() if net.weights], given.rows)
    elif given.what == "own":
        own(place, given.nets or list(NETS), given.launches)
    else:
        speed(place, given.nets or list(NETS), given.rows, given.launches)
    return 0


if __name__ == "__main__":
    sys.exit(main())
