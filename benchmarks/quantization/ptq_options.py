"""Every option of post-training quantization on one saved net: what it gains and what it costs.

    python benchmarks/quantization/ptq_options.py FOLDER --data cifar10_jpeg.npz [--samples 512] [--images 2000]

One option at a time is changed from a base, and some that belong together. Answers are torch's with fake quantizers, on
the first so many test images; flips are answers that differ from the float net's. Intervals are 95 % (Wilson's).
Seconds are CPU seconds of one thread, so that neighbours don't count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgewise.bench.stats import wilson
from edgewise.compress.config import Quantize
from edgewise.compress.quantization.qad import quantize
from edgewise.compress.saved import load_model
from edgewise.compress.train import evaluate
from edgewise.deploy.parity import sqnr_db
from edgewise.errors import EdgewiseError
from edgewise.models.tasks.arrays import load_arrays
from edgewise.models.tasks.config import Arrays

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FOUR = {"weight_bits": 4}
OPTIONS: dict[str, dict[str, Any]] = {
    "ranges: mean_min_max": {"ranges": "mean_min_max"},
    "ranges: min_max": {"ranges": "min_max"},
    "ranges: percentile (99.99)": {"ranges": "percentile"},
    "ranges: percentile, percentile: 99.9": {"ranges": "percentile", "percentile": 99.9},
    "ranges: mse": {"ranges": "mse"},
    "ranges: entropy": {"ranges": "entropy"},
    "mse, weight_ranges: mse": {"ranges": "mse", "weight_ranges": "mse"},
    "mse, equalize": {"ranges": "mse", "equalize": True},
    "mse, reestimate_batchnorm": {"ranges": "mse", "reestimate_batchnorm": True},
    "mse, rounding: adaround": {"ranges": "mse", "rounding": "adaround"},
    "4 bits, mean_min_max": {**FOUR, "ranges": "mean_min_max"},
    "4 bits, min_max": {**FOUR, "ranges": "min_max"},
    "4 bits, mse": {**FOUR, "ranges": "mse"},
    "4 bits, mse, equalize": {**FOUR, "ranges": "mse", "equalize": True},
    "4 bits, mse, weight_ranges: mse": {**FOUR, "ranges": "mse", "weight_ranges": "mse"},
    "4 bits, mse, adaround": {**FOUR, "ranges": "mse", "rounding": "adaround"},
    "4 bits, mse, weight_ranges: mse, adaround": {
        **FOUR,
        "ranges": "mse",
        "weight_ranges": "mse",
        "rounding": "adaround",
    },
}
HEAD = (
    "| option | accuracy | 95 % | flipped | 95 % | SQNR dB | CPU s |",
    "|---|---:|---|---:|---|---:|---:|",
)


def _share(hits: NDArray[np.bool_]) -> tuple[str, str]:
    interval = wilson(float(hits.sum()), len(hits))
    return f"{hits.mean():.2%}", f"{interval.low:.2%} to {interval.high:.2%}"


def _row(name: str, answers: NDArray[np.float32], reference: NDArray[np.float32], truth: Any, seconds: float) -> str:
    accuracy, around = _share(answers.argmax(1) == truth)
    flipped, between = _share(answers.argmax(1) != reference.argmax(1))
    numbers = f"{sqnr_db(reference, answers):.1f} | {seconds:.0f}"
    return f"| {name} | {accuracy} | {around} | {flipped} | {between} | {numbers} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table as Markdown, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a saved model")
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as .npz")
    parser.add_argument("--samples", type=int, default=512, help="for calibration")
    parser.add_argument("--images", type=int, default=2000, help="of the test split")
    parser.add_argument("--only", default="", help="options with this in their name")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task = load_arrays(Arrays(path=given.data, mean=MEAN, std=STD, val_size=5000, test_limit=given.images))
    model, _ = load_model(given.folder)
    train, test = task.splits["train"], task.splits["test"]
    places = np.linspace(0, len(train.ids) - 1, given.samples).round().astype(np.int64)
    calibration, truth = train.read(places), test.targets
    reference = evaluate(model, test)
    print(f"{given.folder.name}: {len(calibration)} calibration samples, {len(truth)} test images\n")
    accuracy, around = _share(reference.argmax(1) == truth)
    print("\n".join((*HEAD, f"| float | {accuracy} | {around} | | | | |")), flush=True)
    for name, settings in OPTIONS.items():
        if given.only not in name:
            continue
        start = time.process_time()
        try:
            wanted = Quantize(kind="quantize", **settings)
            quantized, _ = quantize(model, train, wanted, calibration=calibration, seed=0)
        except EdgewiseError as error:
            print(f"| {name} | {error.message} | | | | | |", flush=True)
            continue
        seconds = time.process_time() - start
        print(_row(name, evaluate(quantized, test), reference, truth, seconds), flush=True)


if __name__ == "__main__":
    main()
