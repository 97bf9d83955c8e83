"""A clock for what is not trained yet: export a candidate, convert it, time it in turns with a reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgewise.artifact import sha256_file, sha256_json
from edgewise.bench.config import Bench
from edgewise.compress.config import Latency
from edgewise.config import Precision
from edgewise.errors import MeasureError
from edgewise.stages.ship import padding
from edgewise.stages.work import Work, edited, spread

if TYPE_CHECKING:
    from torch import nn

    from edgewise.bench.record import FileUnderTest, Results
    from edgewise.compress.pruning.goals import Clock, Timed
    from edgewise.compress.saved import Description

REFERENCE, CANDIDATE = "reference", "candidate"
SAMPLES = 32  # inputs that take turns: enough that caches don't learn them
LAUNCHES, BLOCKS, BLOCK_MS, WARMUP_S = 3, 12, 30.0, 0.3


def latency_clock(
    work: Work,
    goal: Latency,
    reference: nn.Module,
    describe: Callable[[nn.Module], Description],
    *,
    quantize: Callable[[nn.Module], nn.Module] | None = None,
) -> Clock:
    """A clock that compares candidates with ``reference``.

    What was measured is kept in the stage's scratch: a run that was killed goes on with the same numbers.

    Args:
        work: the stage.
        goal: runtime, precision, threads and batch.
        reference: the model before; a float one, or one with quantizers.
        describe: how a candidate is built again from the recipe's model; LiteRT starts from a saved model.
        quantize: puts quantizers into the reference and into every candidate.
    """
    return _Stopwatch(work, goal, reference, describe, quantize).time


class _Stopwatch:
    def __init__(
        self,
        work: Work,
        goal: Latency,
        reference: nn.Module,
        describe: Callable[[nn.Module], Description],
        quantize: Callable[[nn.Module], nn.Module] | None,
    ) -> None:
        self.work, self.goal, self.describe, self.quantize = work, goal, describe, quantize
        self.folder = work.scratch / "clock"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.inputs = self.folder / "inputs.npy"
        split = work.task().splits["train"]
        np.save(self.inputs, split.read(spread(len(split.ids), SAMPLES)))
        self.log = self.folder / "timed.json"
        self.told = json.loads(self.log.read_text()) if self.log.exists() else []
        self.asked = 0
        self.reference = reference

    def time(self, model: nn.Module) -> Timed:
        """One measurement, in turns with the reference; the answer of a killed run where it asked for the same."""
        from edgewise.compress.pruning.goals import Timed

        mark = _mark(model)
        self.asked += 1
        if self.asked <= len(self.told) and self.told[self.asked - 1]["mark"] == mark:
            return Timed(**self.told[self.asked - 1]["timed"])
        files = [self._file(REFERENCE, self.reference, "reference"), self._file(CANDIDATE, model, mark)]
        timed = self._measured(files)
        self.told = [*self.told[: self.asked - 1], {"mark": mark, "timed": asdict(timed)}]
        beside = self.log.with_suffix(".part")
        beside.write_text(json.dumps(self.told))
        beside.replace(self.log)
        return timed

    def _measured(self, files: list[FileUnderTest]) -> Timed:
        from edgewise.bench.measure import measure

        config = Bench(
            threads=self.goal.threads,
            batch=self.goal.batch,
            launches=LAUNCHES,
            max_launches=LAUNCHES,
            blocks=BLOCKS,
            block_ms=BLOCK_MS,
            warmup_s=WARMUP_S,
            accuracy_samples=1,
            seed=self.asked,
        )
        count = len(np.load(self.inputs, mmap_mode="r"))
        results = measure(
            files,
            self.inputs,
            np.zeros(count, np.int64),
            [str(place) for place in range(count)],
            config,
            self.folder / "measured",
            score=lambda outputs, targets: np.zeros(len(targets), np.float32),
            padding=padding(self.work.task()),
        )
        return timed_from(results)

    def _file(self, name: str, model: nn.Module, mark: str) -> FileUnderTest:
        from edgewise.bench.record import FileUnderTest

        folder = self.folder / mark[:20]
        main = folder / "main.txt"
        if not main.exists():
            path = self._converted(model, folder)
            beside = main.with_suffix(".part")
            beside.write_text(path.name)
            beside.replace(main)
        path = folder / main.read_text()
        return FileUnderTest(
            name=name,
            runtime=self.goal.runtime,
            precision=self.goal.precision,
            role="candidate",
            path=str(path),
            size_bytes=path.stat().st_size,
            sha256=sha256_file(path),
        )

    def _converted(self, model: nn.Module, folder: Path) -> Path:
        from edgewise.compress.quantization.insert import quantizer_config
        from edgewise.compress.quantization.places import HOOKS
        from edgewise.compress.saved import FakeQuantized, planned_floats, save_model
        from edgewise.deploy.convert.base import Job, Source
        from edgewise.deploy.convert.run import convert_in_process
        from edgewise.deploy.export import export_float, export_qdq

        folder.mkdir(parents=True, exist_ok=True)
        task = self.work.task()
        description = self.describe(model)
        if self.quantize is not None:
            model = self.quantize(model)
            description = edited(description, FakeQuantized(nncf=quantizer_config(model)))
        quantized, floats = hasattr(model, HOOKS), planned_floats(description)
        floating, unsigned, saved = folder / "float.onnx", folder / "unsigned.onnx", folder / "saved"
        if self.goal.runtime == "litert":
            save_model(model, description, saved)
        elif quantized:
            export_qdq(model, task.input_shape, unsigned, signed=False, float_layers=floats)
        else:
            export_float(model, task.input_shape, floating)
        source = Source(
            input_shape=task.input_shape,
            classes=len(task.classes),
            float_onnx=floating if floating.exists() else None,
            unsigned_onnx=unsigned if unsigned.exists() else None,
            model_folder=saved if saved.exists() else None,
            calibration=self.inputs,
            float_layers=floats,
            padding=padding(task),
        )
        precision: Precision = "int8" if quantized else "float32"
        limit = self.work.recipe.deploy.timeout_s
        return convert_in_process(Job(self.goal.runtime, precision, source, folder / "model", limit))


def timed_from(results: Results) -> Timed:
    """What a measurement of ``reference`` and ``candidate`` says.

    Raises:
        MeasureError: one of them could not be run.
    """
    from edgewise.bench.numbers import clock_of, cpu_times_of, samples_of, speedup
    from edgewise.compress.pruning.goals import Timed

    # A busy machine's wall clock favours the smaller file, and tells nothing of a quiet one; CPU time does, of one
    # thread. With several threads there is no other clock.
    clock = clock_of(results, REFERENCE, CANDIDATE) or "wall"
    times = cpu_times_of if clock == "cpu" else samples_of
    medians = []
    for name in (CANDIDATE, REFERENCE):
        measurement = results.measurements[name]
        blocks = [block for launch in times(measurement) for block in launch if len(block)]
        if not blocks:
            raise MeasureError(f"the {name} could not be timed: {measurement.error or 'no runs'}", where="latency")
        medians.append(float(np.median(np.concatenate(blocks))) / 1e6)
    faster = speedup(results, REFERENCE, CANDIDATE, clock=clock)
    if faster is None:
        raise MeasureError("the reference and the candidate were not timed side by side", where="latency")
    return Timed(medians[0], medians[1], 1 / faster.value, 1 / faster.high, 1 / faster.low)


def _mark(model: nn.Module) -> str:
    """The same for models of the same shape: their weights don't change their time."""
    return sha256_json({name: list(tensor.shape) for name, tensor in model.state_dict().items()})
