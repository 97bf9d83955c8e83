"""What a recipe can say about measuring, and what a budget can demand. Torch-free."""

from __future__ import annotations

from pydantic import Field

from edgewise.config import Config


class Bench(Config):
    """How the files are measured: fresh processes, interleaved blocks, accuracy on the test split."""

    threads: int = Field(1, ge=1)
    batch: int = Field(1, ge=1)
    launches: int = Field(3, ge=1, description="fresh processes a file")
    blocks: int = Field(12, ge=2, description="timed blocks a launch, files taking turns in random order")
    block_ms: float = Field(50.0, gt=0)
    warmup_s: float = Field(0.5, ge=0)
    accuracy_samples: int | None = Field(None, ge=1, description="test samples to answer; all by default")
    seed: int = Field(0, ge=0)


class Budget(Config):
    """What a file must hold to be released; a limit left out is not checked.

    Accuracy is judged on paired answers (Tango's score interval), times on the interval of the measurement; sizes, load
    time and memory are compared as they are.
    """

    files: tuple[str, ...] | None = Field(
        None, description="names of files to judge, as in the report; INT8 by default"
    )
    min_accuracy: float | None = Field(None, ge=0, le=1)
    max_accuracy_drop_pp: float | None = Field(None, ge=0, description="percentage points under the float reference")
    min_speedup: float | None = Field(
        None,
        gt=0,
        description="p50 of the reference / p50 of the file, same runtime; CPU time where the machine was busy",
    )
    min_size_ratio: float | None = Field(None, gt=0, description="bytes of the reference / bytes of the file")
    max_p50_ms: float | None = Field(None, gt=0)
    max_p99_ms: float | None = Field(None, gt=0)
    max_size_bytes: int | None = Field(None, gt=0)
    max_peak_memory_bytes: int | None = Field(None, gt=0, description="largest of the launches, from loading on")
    max_load_ms: float | None = Field(None, gt=0, description="median of the launches, without an interval")
    min_qps: float | None = Field(None, gt=0)
    max_flip_rate: float | None = Field(None, ge=0, le=1)
