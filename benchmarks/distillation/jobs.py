"""The work of the experiments as jobs that several processes share: what is done is skipped, what another process does
is left to it, what was cut off goes on from its last checkpoint."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from experiments import EXPERIMENTS, NETS, Arm, Experiment

from edgewise.progress import Tick


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Args:
        name: also of its lock and its files.
        target: the file or folder that is there when it is done.
        needs: the targets that must be there before it can start.
        work: does it, and writes ``target`` whole or not at all.
        seconds: about how long it takes one thread.
    """

    name: str
    target: Path
    needs: tuple[Path, ...]
    work: Callable[[Tick], None]
    seconds: float


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    experiment: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.experiment}.{self.arm}.{self.seed}"

    @property
    def of(self) -> Experiment:
        """The experiment it belongs to."""
        return EXPERIMENTS[self.experiment]

    @property
    def settings(self) -> Arm:
        """What it does."""
        return self.of.arms[self.arm]

    @property
    def fit(self) -> dict[str, Any]:
        """The fields of its ``Fit``."""
        return {**self.of.fit, **self.settings.fit}

    def result(self, out: Path) -> Path:
        """Its result file."""
        return out / "results" / f"{self.name}.json"


def runs(names: Sequence[str], seeds: Sequence[int] | None) -> list[Run]:
    """Every run, a whole seed after the other, so that work that is stopped early leaves complete pairs. Within a seed
    and an experiment the arms come in a random (fixed) order: no arm always meets the machine at the same hour."""
    chosen = sorted({seed for name in names for seed in (seeds or EXPERIMENTS[name].seeds)})
    found = []
    for seed in chosen:
        for name in names:
            if seed not in (seeds or EXPERIMENTS[name].seeds):
                continue
            arms = [a for a, arm in EXPERIMENTS[name].arms.items() if arm.seeds is None or seed in arm.seeds]
            order = np.random.default_rng([seed, len(name)]).permutation(len(arms))
            found += [Run(name, arms[place], seed) for place in order]
    return found


def nets(needed: Sequence[Run]) -> list[str]:
    """Every net that ``needed`` runs start or learn from, each after those that it needs itself."""
    found: list[str] = []

    def add(name: str) -> None:
        for other in NETS[name].needs:
            add(other)
        if name not in found:
            found.append(name)

    for run in needed:
        for name in run.settings.nets(run.seed):
            add(name)
    return found


@contextmanager
def claim(lock: Path) -> Iterator[bool]:
    """True where the lock is ours while the block lasts; the system frees it when the process dies."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def work_off(jobs: Sequence[Job], out: Path, tick: Callable[[str], Tick], pause_s: float = 2.0) -> list[str]:
    """Do every job that is not done, in order; one whose needs are missing waits for them. Returns the names of jobs
    that failed here or, since this call began, in another process; their errors are in ``out/errors``."""
    began, pending, failed = time.time(), list(jobs), dict[str, Path]()
    while pending:
        moved = False
        for job in list(pending):
            error = out / "errors" / f"{job.name}.txt"
            if job.target.exists():
                pending.remove(job)
            elif (error.exists() and error.stat().st_mtime >= began) or any(n in failed.values() for n in job.needs):
                failed[job.name] = job.target
                pending.remove(job)
            elif all(need.exists() for need in job.needs):
                with claim(out / "locks" / f"{job.name}.lock") as mine:
                    if not mine or job.target.exists():
                        continue
                    moved = True
                    _do(job, error, tick(job.name))
                break  # earlier jobs may have become ready
        if pending and not moved:
            time.sleep(pause_s)
    return list(failed)


def _do(job: Job, error: Path, tick: Tick) -> None:
    start = time.perf_counter()
    print(f"{time.strftime('%H:%M:%S')} {job.name}", flush=True)
    try:
        job.work(tick)
        error.unlink(missing_ok=True)
        print(f"{time.strftime('%H:%M:%S')} {job.name} done in {time.perf_counter() - start:.0f} s", flush=True)
    except Exception as cause:  # one arm that can't be run must not stop the others
        error.parent.mkdir(parents=True, exist_ok=True)
        error.write_text(traceback.format_exc())
        print(f"{time.strftime('%H:%M:%S')} {job.name} FAILED: {type(cause).__name__}: {cause}", flush=True)


def write(path: Path, record: dict[str, Any]) -> None:
    """JSON, written beside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    beside.write_text(json.dumps(record, indent=1) + "\n")
    beside.replace(path)


def surroundings() -> dict[str, Any]:
    """What a number was made with."""
    packages = {name: version(name) for name in ("edgewise", "torch", "numpy")}
    return {"command": " ".join(["python", *sys.argv]), "python": platform.python_version(), **packages}


def history(epochs: Sequence[Any]) -> list[dict[str, Any]]:
    """The epochs of a run as JSON."""
    return [asdict(epoch) for epoch in epochs]
