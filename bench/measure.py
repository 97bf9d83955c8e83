"""Measure files side by side: times, memory, load, energy, answers. What is finished survives whatever comes after.

Times come from fresh processes in turns (``launches``), as many as the precision that was asked for takes; accuracy
from one more process a file, through the same runtime (``answers``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgewise.bench.answers import Score, answer_all
from edgewise.bench.ask import There, arithmetic, open_and_warm, sent
from edgewise.bench.config import Bench
from edgewise.bench.devices.base import Device
from edgewise.bench.devices.local import LOCAL_DEVICE
from edgewise.bench.energy import measure_energy, require_meter
from edgewise.bench.kept import TELEMETRY, Kept
from edgewise.bench.launches import Progress, Unfinished, imprecise, launch_all
from edgewise.bench.record import (
    Energy,
    FileUnderTest,
    Measurement,
    Results,
    ScenarioResult,
    save_results,
    scenario_from_json,
)
from edgewise.bench.scenarios import Loaded, check_scenarios, run_scenarios
from edgewise.bench.validity import flags_of, seen_meanwhile
from edgewise.errors import DataError, MeasureError, NothingMeasured
from edgewise.progress import Tick, silent


def measure(
    files: Sequence[FileUnderTest],
    inputs: Path,
    targets: NDArray[np.int64],
    ids: Sequence[str],
    config: Bench,
    out: Path,
    *,
    score: Score,
    padding: int | None = None,
    tick: Tick = silent,
    device: Device = LOCAL_DEVICE,
    unfinished: Unfinished | None = None,
) -> Results:
    """Measure ``files`` and let each answer the samples; write it all below ``out``.

    A call that was cut short goes on where it was, if all that matters is the same: see ``edgewise.bench.kept``.

    Args:
        files: what to measure; names must differ.
        inputs: ``.npy``, float32 (N, C, H, W) preprocessed, or token ids int64 (N, L).
        targets: (N,), or (N, L) where each token is answered.
        ids: N names of samples.
        config: threads, batch, launches, blocks, warm-up, precision, scenarios, energy, samples to answer.
        out: folder for ``measurements.json``, ``answers/``, ``ids.txt`` and ``telemetry.jsonl``.
        score: ``(outputs (n, K), targets (n,)) -> (n,)``, one value a sample.
        padding: the id that texts are filled up with: each is then run at its own length, where a file takes any.
        tick: told after each step.
        device: where to measure; open. ``config.device`` is what the caller has opened.
        unfinished: which files need more launches than ``config.launches``; by default those whose p50 is not known to
            ``config.precision``.

    Raises:
        DataError: inputs, targets and ids don't fit each other.
        MeasureError: more threads than CPUs, two files of one name, no energy to be had, or not one file could be
            measured.
        DeviceError: the device can't be used, or not any more.
    """
    _check(files, inputs, targets, ids, config, device)
    index = _chosen(len(targets), config)
    out.mkdir(parents=True, exist_ok=True)
    index_path = out / "index.npy"
    np.save(index_path, index)
    (out / "ids.txt").write_text("".join(f"{ids[i]}\n" for i in index), encoding="utf-8")
    before = device.probe()
    kept = Kept(out, inputs, config, device.name, before)
    there, unsent = sent(files, inputs, index_path, device, padding)
    progress = Progress(tick, len(files) * (config.launches * (1 + config.blocks) + len(config.scenarios) + 1))

    measured, failed = launch_all(
        files,
        there,
        config,
        device,
        kept=kept,
        unfinished=unfinished or imprecise(config),
        failed=unsent,
        progress=progress,
    )
    for file in files:
        if file.name in failed:
            progress.skip(len(config.scenarios))
        else:
            measured[file.name] = _further(file, measured[file.name], there, config, device, kept, progress)
    unable = {file.name: failed[file.name] for file in files if not measured[file.name].launches}
    if len(unable) == len(files):
        kept.done()  # a later call shall try again
        told = "\n  ".join(f"{name}: {why}" for name, why in failed.items())
        raise NothingMeasured(f"not one file could be measured:\n  {told}")
    answers = answer_all(
        files, there, targets[index], config, out, device, score=score, unable=unable, progress=progress
    )
    rows = kept.telemetry_to(out)
    results = Results(
        files=tuple(files),
        measurements={
            file.name: replace(one, flags=flags_of(one, file.runtime, rows, config, precision=arithmetic(file)))
            for file in files
            for one in [measured[file.name]]
        },
        answers=answers,
        ids="ids.txt",
        config=config.model_dump(mode="json"),
        provenance={**before, "state_after": device.probe()["state"], "measured_on": device.name},
        telemetry=TELEMETRY if rows else None,
        folder=out,
    )
    save_results(results)
    kept.done()
    return results


def _further(
    file: FileUnderTest,
    measurement: Measurement,
    there: There,
    config: Bench,
    device: Device,
    kept: Kept,
    progress: Progress,
) -> Measurement:
    """The measurement with the scenarios and the energy that were asked for, one file after another."""
    if config.scenarios:
        asked = there.asked(file, config)
        loaded = Loaded(file.name, file.runtime, asked, device, config.warmup_s)
        made = kept.once(
            file,
            "scenarios",
            config.model_dump(mode="json")["scenarios"],
            lambda: _scenarios(loaded, config, device, kept, progress),
            lambda results: [asdict(one) for one in results],
        )
        measurement = replace(measurement, scenarios=tuple(scenario_from_json(one) for one in made))
    if config.energy:
        plain = kept.once(
            file, "energy", True, lambda: _energy(file, there, config, device), lambda one: one and asdict(one)
        )
        measurement = replace(measurement, energy=None if plain is None else Energy(**plain))
    return measurement


def _scenarios(
    loaded: Loaded, config: Bench, device: Device, kept: Kept, progress: Progress
) -> tuple[ScenarioResult, ...]:
    """The file's scenarios with telemetry meanwhile; what it tells stands in the note of each."""
    with kept.telemetry(device, config.sample_hz) as rows:
        found = run_scenarios(loaded, config.scenarios, lambda done, total, note: progress.step(note))
    seen = seen_meanwhile(rows)
    if not seen:
        return found
    told = f"telemetry of this file's scenarios: {', '.join(seen)}"
    return tuple(replace(one, note="; ".join(filter(None, [one.note, told]))) for one in found)


def _energy(file: FileUnderTest, there: There, config: Bench, device: Device) -> Energy | None:
    """None where the file or the sensor failed on the way: its times stand all the same."""
    try:
        with contextlib.closing(device.worker(file.name, config.threads)) as worker:
            open_and_warm(worker, file.runtime, there.asked(file, config), config.warmup_s)
            return measure_energy(worker, device)
    except MeasureError:
        return None


def _check(
    files: Sequence[FileUnderTest],
    inputs: Path,
    targets: NDArray[np.int64],
    ids: Sequence[str],
    config: Bench,
    device: Device,
) -> None:
    names = [file.name for file in files]
    if not names:
        raise MeasureError("expected files to measure, got none")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise MeasureError(f"two files are called {', '.join(twice)}", hint="give each its own name")
    cpus = device.cpus()
    if config.threads > cpus:
        raise MeasureError(
            f"expected at most {cpus} threads, the CPUs that a process may use there, got {config.threads}",
            where="bench.threads",
            hint=f"ask for {cpus}; more would wait for each other and measure that",
        )
    check_scenarios(config.scenarios, [file.runtime for file in files], config.threads, config.batch, cpus)
    if config.energy:
        require_meter(device)
    try:
        samples = np.load(inputs, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"can't read the inputs: {error}", where=str(inputs)) from error
    if not len(samples) == len(targets) == len(ids) or len(samples) == 0:
        raise DataError(
            "expected inputs, and as many targets and ids, "
            f"got {len(samples)} inputs, {len(targets)} targets and {len(ids)} ids",
            where=str(inputs),
        )


def _chosen(samples: int, config: Bench) -> NDArray[np.int64]:
    """Which samples to answer, in order. Drawn, not the first ones: data often comes sorted by class."""
    wanted = config.accuracy_samples
    if wanted is None or wanted >= samples:
        return np.arange(samples)
    return np.sort(np.random.default_rng(config.seed).choice(samples, wanted, replace=False))
