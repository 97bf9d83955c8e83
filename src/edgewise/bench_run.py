"""``edgewise bench RUN``: the files of a finished run measured again, with its inputs, on this or another device."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from edgewise.bench.config import Bench
from edgewise.bench.devices.base import open_device, require_runtimes
from edgewise.bench.measure import measure
from edgewise.bench.record import Results
from edgewise.bench.slices import keep
from edgewise.bench_files import measure_files, no_score, results_folder
from edgewise.errors import DataError, MeasureError, RecipeError
from edgewise.measured import Measured, check_there, open_measured
from edgewise.progress import Tick, silent
from edgewise.reported import bench_context, write_about
from edgewise.stages.ship import sliced

Score = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]


def bench_any(
    paths: Sequence[Path], inputs: Path | None, asked: Mapping[str, Any], out: Path | None, tick: Tick = silent
) -> Results:
    """Measure files, or those of one run; ``asked``: keys of ``bench``, None for what was not given.

    Raises:
        MeasureError: folders and files mixed, or inputs for a run.
        EdgewiseError: as ``measure_files`` and ``measure_run``.
    """
    changes = {key: value for key, value in asked.items() if value is not None}
    folders = [path for path in paths if path.is_dir()]
    if not folders:
        return measure_files(paths, inputs, configured(Bench(), changes), out, tick)
    if len(paths) > 1:
        raise MeasureError("expected files, or one run", where=str(folders[0]), hint="measure runs one by one")
    if inputs is not None:
        raise MeasureError("a run is measured with its own test samples", where="--inputs", hint="leave it out")
    return measure_run(folders[0], changes, out, tick)


def configured(config: Bench, changes: Mapping[str, Any]) -> Bench:
    """``config`` with ``changes``, checked again.

    Raises:
        RecipeError: they don't go together.
    """
    try:
        return Bench.model_validate({**config.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecipeError(str(first["msg"]).removeprefix("Value error, "), where=where) from error


def measure_run(folder: Path, changes: Mapping[str, Any], out: Path | None, tick: Tick = silent) -> Results:
    """Measure what was measured in ``folder`` again; accuracy is scored here, from the device's answers.

    Args:
        folder: of a finished run, or one that ``edgewise bench --out`` wrote.
        changes: keys of ``bench`` that are other than they were, such as ``device``.
        out: a folder for the results, which ``gate``, ``report`` and ``compare`` take like a run; a temporary one by
            default.
        tick: told of the progress.

    Raises:
        ArtifactError: nothing was measured there, or its files are gone.
        DataError: its answers were scored with samples that aren't there.
        DeviceError: the device can't be used, or has no runtime for any of the files.
    """
    measured = open_measured(folder)
    for file in measured.results.files:
        check_there(measured, file)
    if measured.samples is None and bench_context(measured.folder).metric is not None:
        raise DataError(
            "its answers were scored, and the samples that they belong to are not here",
            where=str(folder),
            hint="name the run that it was measured from",
        )
    config = configured(_config(measured), changes)
    asked = _asked(measured)
    with results_folder(out) as to, open_device(config.device) as device:
        if to.resolve() == measured.folder.resolve():
            raise DataError("this folder has what is to be measured again", where=str(to), hint="give another --out")
        # Files whose runtime isn't there fail alone; with no runtime at all there is nothing to do.
        require_runtimes(device, [file.runtime for file in measured.results.files], all_of=False)
        inputs = to / "inputs.npy"
        if out is not None:
            _copy(measured.inputs, inputs)  # for who measures this folder's files again
        results = measure(
            measured.results.files,
            inputs if out is not None else measured.inputs,
            asked.targets,
            asked.ids,
            config,
            to,
            score=asked.score,
            padding=measured.padding,
            tick=tick,
            device=device,
        )
        if measured.samples is not None:
            keep(results, sliced(measured.samples, np.load(to / "index.npy")))
        write_about(to, metric=asked.metric, padding=measured.padding)
        return results


@dataclass(frozen=True)
class _Asked:
    """What the inputs are of: (N,) targets, N ids, how an answer is scored, and what that is called."""

    targets: NDArray[np.int64]
    ids: list[str]
    score: Score
    metric: str | None


def _asked(measured: Measured) -> _Asked:
    if measured.samples is None or measured.recipe is None:  # a folder of files: there is nothing to be right about
        count = len(np.load(measured.inputs, mmap_mode="r", allow_pickle=False))
        return _Asked(np.zeros(count, np.int64), [str(place) for place in range(count)], no_score, None)
    from edgewise.models.tasks.load import load_task

    about = json.loads((measured.samples / "samples.json").read_text())
    targets = np.load(measured.samples / "targets.npy")
    score = load_task(measured.recipe.task).score
    return _Asked(targets, about["ids"], score, about["metric"])


def _config(measured: Measured) -> Bench:
    return measured.recipe.bench if measured.recipe is not None else Bench.model_validate(measured.results.config)


def _copy(source: Path, to: Path) -> None:
    """The same file under a second name, or a copy where the file system has no such thing."""
    with contextlib.suppress(FileNotFoundError):
        to.unlink()
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)
