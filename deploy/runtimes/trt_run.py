"""Run a TensorRT engine on images: logits out, and how long each run took. Python >= 3.8, numpy only.

    python3 run.py ENGINE IMAGES.npy LOGITS.npy [--batch N]

IMAGES is float32 (M, C, H, W), LOGITS becomes float32 (M, K). The batch is the one the engine was built for; the last
run is filled up with its last image. Times are of whole runs, both transfers included, after ten that don't count.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import List, Optional, Tuple

import numpy as np

from edgewise.deploy.runtimes import trt
from edgewise.deploy.runtimes.base import Options, Session, check_feeds
from edgewise.errors import EdgewiseError, MeasureError

WARM_UP = 10


def loop(session: Session, images: np.ndarray) -> Tuple[np.ndarray, List[float]]:
    """Run all images, a batch at a time.

    Args:
        session: with one input (N, C, H, W), N fixed, and one output (N, K).
        images: (M, C, H, W).

    Returns:
        logits (M, K), and the time of each run in ms.

    Raises:
        MeasureError: no images, or of another shape or type than the engine takes.
    """
    spec = session.inputs[0]
    size = spec.shape[0] or 1
    if images.ndim == 0 or not len(images):
        raise MeasureError("expected images (M, C, H, W), got %s" % (images.shape,), where="images")
    filled = np.concatenate([images, np.repeat(images[-1:], -len(images) % size, axis=0)])
    feeds = [{spec.name: np.ascontiguousarray(filled[i : i + size])} for i in range(0, len(filled), size)]
    check_feeds(session.inputs, feeds[0])
    for _ in range(WARM_UP):
        session.run(feeds[0])
    found, times_ms = [], []
    for feed in feeds:
        start = time.perf_counter()
        outputs = session.run(feed)
        times_ms.append(1000 * (time.perf_counter() - start))
        found.append(outputs[session.outputs[0].name])
    return np.concatenate(found)[: len(images)], times_ms


def main(arguments: Optional[List[str]] = None) -> int:
    """Open, run, write, and print the times; the exit code."""
    parser = argparse.ArgumentParser(description="Run a TensorRT engine on images.")
    parser.add_argument("engine", help="built on this device by build.sh")
    parser.add_argument("images", help=".npy, float32 (M, C, H, W)")
    parser.add_argument("logits", help=".npy, written")
    parser.add_argument("--batch", type=int, default=1, help="the engine's batch (default: 1)")
    asked = parser.parse_args(arguments)
    try:
        session = trt.open(asked.engine, Options(precision="default", batch=asked.batch))
        try:
            logits, times_ms = loop(session, np.load(asked.images, allow_pickle=False))
        finally:
            session.close()
        np.save(asked.logits, logits)
    except (EdgewiseError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return error.exit_code if isinstance(error, EdgewiseError) else 2
    low, middle, high = np.percentile(times_ms, [10, 50, 90])
    print(
        "%d images, %d runs of %d: median %.3f ms (10 %% %.3f, 90 %% %.3f), transfers included"
        % (len(logits), len(times_ms), asked.batch, middle, low, high)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
