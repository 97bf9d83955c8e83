"""The tables of docs/results/sst2.md, in Markdown on stdout: every arm, losers too, with intervals.

    python benchmarks/text/summarise.py --out runs/sst2

Accuracy is read from the converted files. What is kept of the teacher's is the mean accuracy of the seeds over the
accuracy of the teacher's float file in the same runtime; its interval resamples both the sentences, alike for student
and teacher, and the seeds. Differences between arms are paired by sentence and seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from arms import ARMS, control_of
from numpy.typing import NDArray

from edgewise.bench.numbers import speedup
from edgewise.bench.record import Results
from edgewise.bench.stats import Interval
from edgewise.bench.stats.interval import t_quantile
from edgewise.measured import open_measured

RUNTIMES = ("onnxruntime", "openvino", "litert")
PRECISIONS = ("float32", "int8")
DRAWS = 4000
TIMED = ("distilbert", "tinybert", "tinybert-wide", "minilm", "bilstm")  # the other arms are the same nets

Scores = NDArray[np.float64]


def scores(results: Results, name: str) -> Scores | None:
    """0 or 1 a test sentence (N,), None where the file isn't there."""
    found = results.scores(name) if name in results.answers else None
    return None if found is None else found.astype(np.float64)


def crossed(of: Callable[[Scores, Scores], float], student: Scores, other: Scores, seed: int = 0) -> Interval:
    """``of(student (S, N), other (S, N))`` with its 95 % interval over seeds and sentences drawn anew, both together.

    Of few seeds a draw shows too little of their spread, by sqrt((S - 1) / S): it is stretched by that.
    """
    generator = np.random.default_rng(seed)
    seeds, sentences = student.shape
    value, drawn = of(student, other), []
    for _ in range(DRAWS):
        rows, columns = generator.integers(seeds, size=seeds), generator.integers(sentences, size=sentences)
        drawn.append(of(student[rows][:, columns], other[rows][:, columns]))
    stretch = np.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, value - stretch * (value - low), value + stretch * (high - value))


def kept(student: Scores, teacher: Scores) -> float:
    """Accuracy over accuracy."""
    return float(student.mean() / teacher.mean())


def gained(student: Scores, other: Scores) -> float:
    """In percentage points."""
    return 100 * float(student.mean() - other.mean())


@cache
def runs_of(arm: str, out: Path) -> dict[int, Results]:
    """What was measured, by seed."""
    found = {}
    for folder in sorted(out.glob(f"{arm}.*")):
        if (folder / "run.json").exists():
            found[int(folder.name.rpartition(".")[2])] = open_measured(folder).results
    return found


def table(runtime: str, precision: str, out: Path) -> list[str]:
    """A row an arm."""
    lines = [
        f"### {runtime}, {precision}",
        "",
        "| arm | what it learns from | seeds | accuracy (%) | kept of the teacher (%) | file, teacher / it "
        "| against the labels alone (pp) |",
        "|---|---|--:|---|---|--:|---|",
    ]
    for arm, about in ARMS.items():
        runs = runs_of(arm, out)
        name, teacher = f"{runtime}-{precision}", f"{runtime}-float32-teacher"
        pairs = {seed: (scores(run, name), scores(run, teacher)) for seed, run in runs.items()}
        both = {seed: pair for seed, pair in pairs.items() if pair[0] is not None and pair[1] is not None}
        if not both:
            continue
        ours, theirs = (np.stack([pair[place] for pair in both.values()]) for place in (0, 1))
        ratio = crossed(kept, ours, theirs)
        sizes = [runs[seed].file(teacher).size_bytes / runs[seed].file(name).size_bytes for seed in both]
        gain = _gain(arm, name, both, out)
        accuracy = f"{100 * ours.mean():.2f} ({', '.join(f'{100 * row.mean():.2f}' for row in ours)})"
        share = f"{100 * ratio.value:.1f} ({100 * ratio.low:.1f} to {100 * ratio.high:.1f})"
        lines.append(f"| {arm} | {about.about} | {len(both)} | {accuracy} | {share} | {np.mean(sizes):.1f} | {gain} |")
    return [*lines, ""]


def _gain(arm: str, name: str, both: dict[int, tuple[Scores | None, Scores | None]], out: Path) -> str:
    base = control_of(arm)
    if base is None:
        return ""
    others = {seed: scores(run, name) for seed, run in runs_of(base, out).items()}
    common = [seed for seed in both if others.get(seed) is not None]
    if not common:
        return ""
    ours = np.stack([both[seed][0] for seed in common])  # type: ignore[misc]  # both are there, see above
    difference = crossed(gained, ours, np.stack([others[seed] for seed in common]))  # type: ignore[misc]
    bold = "**" if difference.low > 0 or difference.high < 0 else ""
    return f"{bold}{difference.value:+.2f}{bold} ({difference.low:+.2f} to {difference.high:+.2f})"


def speeds(out: Path) -> list[str]:
    """The time of the teacher's float file over that of each file in the same runtime, file beside file: the mean over
    the seeds' runs on the log scale, with Student's interval over the runs."""
    lines = [
        "| arm | file | teacher's float / it (95 %) | each run | size, teacher / it |",
        "|---|---|---|---|--:|",
    ]
    for arm in TIMED:
        runs = list(runs_of(arm, out).values())
        names = dict.fromkeys(file.name for run in runs for file in run.files)
        for name in names:
            teacher = f"{name.partition('-')[0]}-float32-teacher"
            both = [run for run in runs if {name, teacher} <= set(run.measurements)]
            found = [ratio.value for run in both if (ratio := speedup(run, teacher, name)) is not None]
            if name == teacher or len(found) < 2:
                continue
            logs = np.log(found)
            half = t_quantile(len(logs) - 1, 0.95) * logs.std(ddof=1) / np.sqrt(len(logs))
            value, low, high = np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])
            size = np.mean([run.file(teacher).size_bytes / run.file(name).size_bytes for run in both])
            each = ", ".join(f"{ratio:.1f}" for ratio in found)
            lines.append(f"| {arm} | {name} | **{value:.1f}** ({low:.1f} to {high:.1f}) | {each} | {size:.1f} |")
    return [*lines, ""]


def main() -> None:
    """Print the tables of what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/sst2"))
    given = parser.parse_args()
    for precision in PRECISIONS:
        for runtime in RUNTIMES:
            print("\n".join(table(runtime, precision, given.out)))
    print("### Speed and size\n")
    print("\n".join(speeds(given.out)))


if __name__ == "__main__":
    main()
