"""Honest small experiments with distillation: what helps, by how much, and what does not.

    python benchmarks/distillation/run.py plan
    python benchmarks/distillation/run.py all --data FOLDER --out runs/distillation
    python benchmarks/distillation/run.py e2 --data FOLDER --out runs/distillation --seeds 0 1 2
    python benchmarks/distillation/summarise.py --out runs/distillation

FOLDER holds cifar10_jpeg.npz, fashion_mnist.npz and cifar10_resnets/resnet{20,56}.pth. Start the same command in as
many processes as there are cores: they share the work, one thread each. A process that is killed goes on from its last
checkpoint when it is started again; finished runs are skipped.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two processes on two cores, one thread each

import arms
import costs
from experiments import EXPERIMENTS, NETS
from jobs import Job, Run, nets, runs, work_off, write
from nets import Place, keep_answers, make_net

from edgewise.progress import Tick, silent

WHAT = ("plan", "nets", "all", *dict.fromkeys(name.split("-")[0] for name in EXPERIMENTS), *EXPERIMENTS)


def jobs(place: Place, chosen: Sequence[Run], *, only_nets: bool = False) -> list[Job]:
    """Everything that ``chosen`` runs take, in an order in which it can be done: what a run needs stands before it."""
    found: dict[str, Job] = {}

    def need(name: str) -> Path:
        folder = place.net(name)
        if f"net.{name}" not in found:
            needs = tuple(need(other) for other in NETS[name].needs)
            work = functools.partial(make_net, place, name)
            found[f"net.{name}"] = Job(f"net.{name}", folder, needs, work, costs.of_net(name))
        return folder

    def need_answers(data: str, name: str, seed: int, layers: str) -> Path:
        title = f"answers.{data}.{name}.{layers}.{seed}"
        target = place.out / "answers" / f"{title}.json"
        if title not in found:
            work = functools.partial(_keep, place, data, name, seed, layers, target)
            found[title] = Job(title, target, (need(name),), work, costs.of_answers(data, name))
        return target

    if only_nets:
        for name in nets(chosen):
            need(name)
        return list(found.values())
    for run in chosen:
        layers = arms.kept(place, run)
        needs = [need(name) for name in run.settings.nets(run.seed)]
        if layers:
            names = run.settings.nets(run.seed)[: len(run.settings.teachers)]
            needs += [need_answers(run.of.data, name, run.seed, layers) for name in names]
        work = functools.partial(arms.train, place, run)
        seconds = costs.of_run(run, live=layers is None)
        found[run.name] = Job(run.name, run.result(place.out), tuple(needs), work, seconds)
    return list(found.values())


def _keep(place: Place, data: str, name: str, seed: int, layers: str, target: Path, tick: Tick) -> None:
    start = time.perf_counter()
    keep_answers(place, data, name, seed, layers, tick)
    write(target, {"net": name, "data": data, "seed": seed, "layers": layers, "wall_s": time.perf_counter() - start})


def chosen_runs(what: str, seeds: Sequence[int] | None, worker: tuple[int, int]) -> list[Run]:
    """The runs of an experiment, or of all; of these every n-th, from the i-th."""
    names = [name for name in EXPERIMENTS if what in ("plan", "nets", "all", name, name.split("-")[0])]
    return runs(names, seeds)[worker[0] - 1 :: worker[1]]


def plan(todo: Sequence[Job], processes: int) -> str:
    """What is left to do, when each job would start with so many processes, and how long it takes in all."""
    free = [(0.0, number) for number in range(processes)]
    ends: dict[Path, float] = {}
    lines, waiting = [], [job for job in todo if not job.target.exists()]
    for job in waiting:
        now, number = heapq.heappop(free)
        start = max([now, *(ends.get(need, 0.0) for need in job.needs)])
        ends[job.target] = start + job.seconds
        heapq.heappush(free, (ends[job.target], number))
        lines.append(f"{start:7.0f} s  process {number + 1}  {job.seconds:6.0f} s  {job.name}")
    groups: dict[str, list[float]] = {}
    for job in waiting:
        groups.setdefault(job.name.split(".")[0], []).append(job.seconds)
    lines += [f"{name}: {len(s)} jobs, {sum(s):.0f} s of one thread" for name, s in groups.items()]
    total = sum(job.seconds for job in waiting)
    end = max(ends.values(), default=0.0)
    lines.append(
        f"all: {len(waiting)} jobs, {total:.0f} s of one thread, {end / 60:.0f} minutes with {processes} processes"
    )
    return "\n".join(lines)


def lines(every_s: float = 30.0) -> Tick:
    """Says how far a job is, now and then."""
    spoke = time.monotonic()

    def tick(done: int, total: int, note: str) -> None:
        nonlocal spoke
        if time.monotonic() - spoke >= every_s:
            spoke = time.monotonic()
            print(f"    {100 * done // total} % {note}", flush=True)

    return tick


def _worker(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected i/n with 1 <= i <= n, got {text!r}")
    return int(number), int(count)


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 where a run failed; 2 where the results are of other settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WHAT, help="plan: only say what would be done; nets: only make the teachers")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of the data files")
    parser.add_argument("--out", type=Path, default=Path("runs/distillation"), help="where everything is kept")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of each experiment's own")
    parser.add_argument("--processes", type=int, default=2, help="for plan")
    parser.add_argument(
        "--worker", type=_worker, default=(1, 1), help="i/n: only every n-th run; for machines without a shared --out"
    )
    given = parser.parse_args(arguments)
    place = Place(given.data, given.out)
    chosen = chosen_runs(given.what, given.seeds, given.worker)
    old = arms.stale(place, chosen)
    if old:
        print("made with other settings: " + ", ".join(path.name for path in old), file=sys.stderr)
        print(f"  next: remove them from {old[0].parent}, or give another --out", file=sys.stderr)
        return 2
    todo = jobs(place, chosen, only_nets=given.what == "nets")
    if given.what == "plan":
        print(plan(todo, given.processes))
        return 0
    failed = work_off(todo, given.out, lambda _: lines() if sys.stdout.isatty() else silent)
    for name in failed:
        print(f"failed: {name} (see {given.out / 'errors'})", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
