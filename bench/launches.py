"""Rounds of launches: a fresh process a file, all alive, only the one that is asked computes; blocks in turns.

Each round of blocks visits the files in a random order and the next one in the reverse: a slow spell of the machine
hits all files alike, a slow drift cancels (ABBA), and blocks of one round make pairs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgewise.bench.ask import LIMIT_S, There, open_and_warm
from edgewise.bench.config import Bench
from edgewise.bench.devices.base import Device, Worker
from edgewise.bench.kept import Kept
from edgewise.bench.numbers import p50_half_width
from edgewise.bench.record import Block, FileUnderTest, Launch, Measurement, Phase
from edgewise.errors import MeasureError
from edgewise.progress import Tick

Measured = Mapping[str, Measurement]
Unfinished = Callable[[Measured], set[str]]
"""Names of the files that need more launches, from what was measured so far."""


class Progress:
    """Counts steps for ``tick``; the total may grow."""

    def __init__(self, tick: Tick, total: int) -> None:
        """Nothing is done yet."""
        self._tick, self._total, self._done = tick, total, 0

    def grow(self, steps: int) -> None:
        """There is more to do than was known."""
        self._total += steps

    def skip(self, steps: int) -> None:
        """So much needs no doing."""
        self._done += steps

    def step(self, note: str) -> None:
        """One step is done."""
        self._done += 1
        self._tick(self._done, self._total, note)


def imprecise(config: Bench) -> Unfinished:
    """The files whose p50's 95 % interval is wider than ``config.precision`` to either side."""

    def unfinished(measured: Measured) -> set[str]:
        halves = {name: p50_half_width(one) for name, one in measured.items()}
        return {name for name, half in halves.items() if half is None or half > config.precision}

    return unfinished


def launch_all(
    files: Sequence[FileUnderTest],
    there: There,
    config: Bench,
    device: Device,
    *,
    kept: Kept,
    unfinished: Unfinished,
    failed: Mapping[str, str],
    progress: Progress,
) -> tuple[dict[str, Measurement], dict[str, str]]:
    """Launch every file ``config.launches`` times, then those that are ``unfinished`` up to ``config.most_launches``.

    A file that goes on takes those along that it is compared with. What ``kept`` has of an earlier call that was cut
    short is not done again.

    Args:
        files: what to measure; ``failed`` are those that need no trying, and why.
        there: where they lie on the device.
        config: how to measure.
        device: where; open.
        kept: where each launch is written as soon as it is done.
        unfinished: which need more launches; asked after each round from ``config.launches`` on.
        failed: files that can't be measured, and why.
        progress: told of each block.

    Returns:
        All files' launches; and which files failed in the end, and why.

    Raises:
        DeviceError: the device doesn't answer any more; what was finished stays in ``kept``.
    """
    launches: dict[str, list[Launch]] = {file.name: [] for file in files}
    errors = dict(failed)
    steps = 1 + config.blocks
    progress.skip(len(errors) * config.launches * steps)
    for number in range(config.most_launches):
        alive = [file for file in files if file.name not in errors]
        if number >= config.launches:
            going = unfinished({file.name: _measurement(file, launches, config) for file in alive})
            alive = _with_references(alive, going)
            progress.grow(len(alive) * steps)
        if not alive:
            break
        found = kept.round(number, alive)
        if found is None:
            with kept.telemetry(device, config.sample_hz):
                found = dict(_round(alive, number, there, config, device, kept, progress))
        else:
            progress.skip(len(alive) * steps)
        for name, launch in found.items():
            if isinstance(launch, Launch):
                launches[name].append(launch)
            else:
                errors[name] = launch
                progress.skip(max(0, config.launches - number - 1) * steps)
    return {file.name: _measurement(file, launches, config, errors.get(file.name)) for file in files}, errors


def _measurement(
    file: FileUnderTest, launches: Mapping[str, list[Launch]], config: Bench, error: str | None = None
) -> Measurement:
    return Measurement(file.name, config.batch, config.threads, tuple(launches[file.name]), error=error)


def _with_references(files: Sequence[FileUnderTest], going: set[str]) -> list[FileUnderTest]:
    """The files that go on, and those that they are compared with: pairs need the same launches."""
    with_them = {name for file in files if file.name in going for name in (file.name, file.reference, file.parent)}
    return [file for file in files if file.name in with_them]


def _round(
    files: Sequence[FileUnderTest],
    number: int,
    there: There,
    config: Bench,
    device: Device,
    kept: Kept,
    progress: Progress,
) -> Iterator[tuple[str, Launch | str]]:
    """One process a file, then blocks in turns; each file's launch, or why there is none: the others go on."""
    random = np.random.default_rng([config.seed, number])
    token = kept.token()
    errors: dict[str, str] = {}
    opened: dict[str, tuple[Worker, dict[str, Any]]] = {}
    blocks: dict[str, list[Block]] = {file.name: [] for file in files}
    with contextlib.ExitStack() as stack:
        for place in random.permutation(len(files)):
            file = files[place]
            try:
                worker = stack.enter_context(contextlib.closing(device.worker(file.name, config.threads)))
                opened[file.name] = (
                    worker,
                    open_and_warm(worker, file.runtime, there.asked(file, config), config.warmup_s),
                )
            except MeasureError as error:
                errors[file.name] = str(error)
            progress.step(f"launch {number + 1}: {file.name} warmed up")
        order: list[int] = []
        for turn in range(config.blocks):
            order = order[::-1] if turn % 2 else random.permutation(len(files)).tolist()
            for place in order:
                name = files[place].name
                if name in opened and name not in errors:
                    try:
                        blocks[name].append(_block(opened[name][0], turn, config))
                    except MeasureError as error:
                        errors[name] = str(error)
                progress.step(f"launch {number + 1}: block {turn + 1}/{config.blocks}")
        for file in files:
            done: Launch | str = errors.get(file.name, "")
            if not done:
                try:
                    done = _finish(*opened[file.name], number, blocks[file.name])
                except MeasureError as error:
                    done = str(error)
            kept.keep(file, number, token, done)
            yield file.name, done


def _block(worker: Worker, turn: int, config: Bench) -> Block:
    reply = worker.ask("block", limit_s=LIMIT_S + config.block_ms / 1000, ms=config.block_ms)
    samples = tuple(int(value) for value in reply["samples_ns"])
    if not samples or min(samples) <= 0:
        raise MeasureError(f"expected times above 0 ns, got {samples[:5]}", where=worker.file)
    keys = ("wall_ns", "thread_cpu_ns", "process_cpu_ns", "nivcsw", "settle_runs", "start_ns")
    return Block(round=turn, samples_ns=samples, **{key: int(reply[key]) for key in keys})


def _finish(worker: Worker, start: Mapping[str, dict[str, Any]], number: int, blocks: list[Block]) -> Launch:
    closed = worker.ask("close", limit_s=LIMIT_S)
    steady = {**closed["steady"], "duration_ns": sum(block.wall_ns for block in blocks)}
    phases = {
        "import": start["import"]["phase"],
        "load": start["load"]["phase"],
        "first_inference": start["first"]["phase"],
        "warmup": start["warm"]["phase"],
        "steady": steady,
        "unload": closed["phase"],
    }
    return Launch(
        index=number,
        phases={name: Phase(**phase) for name, phase in phases.items()},
        settings=start["load"]["settings"],
        warmup_ns=tuple(start["warm"]["samples_ns"]),
        warmup_converged=start["warm"]["converged"],
        blocks=tuple(blocks),
        pss_bytes=closed.get("pss_bytes"),
        page_cache=start["load"].get("page_cache", "unknown"),
    )
