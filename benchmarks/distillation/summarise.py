"""Tables of the results, in Markdown on stdout: every arm, losers too, with intervals.

python benchmarks/distillation/summarise.py --out runs/distillation > tables.md
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiments import EXPERIMENTS, NETS, Experiment

from edgewise.bench.stats import Interval

Seeds = Mapping[int, Mapping[str, Any]]
"""Seed -> the run's record."""

Results = Mapping[str, Seeds]
"""Arm -> its runs."""

LEGEND = """\
Top-1 in % on all 10,000 test images after the last epoch: mean over n seeds, and half the width of its 95 % interval
(Student's t over seeds). Differences are in percentage points, paired by seed (same first weights, order of samples and
views), with their 95 % interval. **Bold**: the interval excludes 0. Of 20 comparisons between equals one comes out bold
by chance; nothing is corrected for how many there are. s/run: median seconds of one thread to train (of the runs that
were not cut off on the way), the teacher's kept answers not counted (`live`: the teacher answers
in every step, because a loss looks at its inner layers).
"""


def student_t(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of ``values`` with Student's interval; endless for a single one."""
    from scipy.special import stdtrit

    given = np.asarray(values, np.float64)
    mean, n = float(given.mean()), len(given)
    if n < 2:
        return Interval(mean, -math.inf, math.inf)
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * float(given.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def paired(
    ours: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]]
) -> tuple[Interval, int] | None:
    """Ours minus theirs in percentage points, over the seeds that both have, and how many those are."""
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    return student_t([100 * (ours[seed]["test"] - theirs[seed]["test"]) for seed in seeds]), len(seeds)


def excludes_zero(interval: Interval) -> bool:
    """Whether there is a difference."""
    return interval.low > 0 or interval.high < 0


def load(out: Path) -> dict[str, dict[str, dict[int, Any]]]:
    """Experiment -> arm -> seed -> record."""
    found: dict[str, dict[str, dict[int, Any]]] = {}
    for path in sorted((out / "results").glob("*.json")):
        record = json.loads(path.read_text())
        found.setdefault(record["experiment"], {}).setdefault(record["arm"], {})[record["seed"]] = record
    return found


def tables(out: Path) -> str:
    """The whole page."""
    found = load(out)
    parts = [LEGEND, teachers(out)]
    for name, experiment in EXPERIMENTS.items():
        if name in found:
            parts.append(section(name, experiment, found[name]))
    errors = sorted(path.stem for path in (out / "errors").glob("*.txt"))
    if errors:
        parts.append("Runs that failed: " + ", ".join(errors))
    return "\n".join(parts)


def teachers(out: Path) -> str:
    """What taught, or what was started from."""
    rows = []
    for name, net in NETS.items():
        path = out / "nets" / name / "about.json"
        if path.exists():
            about = json.loads(path.read_text())
            rows.append([f"`{name}`", made(net), f"{100 * about['test']:.2f}", f"{about['seconds']:.0f}"])
    return "## Teachers and starting points\n\n" + markdown(["net", "made", "test %", "s"], rows)


def made(net: Any) -> str:
    """How a net came about."""
    if net.parent:
        return f"`{net.parent}` pruned to {net.prune['macs_ratio']:.0%} of its MACs by {net.prune['criterion']}"
    how = f"{net.fit['epochs']} epochs on `{net.data}`"
    if net.teacher:
        return f"ResNet-{net.model['depth']}, {how}, KD from `{net.teacher}`"
    return f"ResNet-{net.model['depth']}, " + (f"published weights, {how}" if net.weights else how)


def section(name: str, experiment: Experiment, results: Results) -> str:
    """One experiment: its arms from best to worst, and what follows."""
    baselines = [arm for arm in experiment.arms if any(arm in other.against for other in experiment.arms.values())]
    known = {arm: results[arm] for arm in experiment.arms if arm in results}
    order = sorted(known, key=lambda arm: -student_t([r["test"] for r in known[arm].values()]).value)
    rows = []
    for arm in order:
        settings = experiment.arms[arm]
        score = student_t([100 * record["test"] for record in known[arm].values()])
        cells = [
            difference(paired(known[arm], known[other]), len(known[arm]))
            if other in settings.against and other in known
            else ""
            for other in baselines
        ]
        records = list(known[arm].values())
        whole = [record["wall_s"] for record in records if not record["resumed"]]
        seconds = f"{np.median(whole):.0f}" if whole else "-"
        live = " live" if any(record["answers"] == "live" for record in records) else ""
        half = "" if len(records) < 2 else f" ± {score.high - score.value:.2f}"
        rows.append(
            [f"`{arm}`", settings.about, str(len(records)), f"{score.value:.2f}{half}", *cells, f"{seconds}{live}"]
        )
    head = ["arm", "what", "n", "test %", *(f"minus `{other}`" for other in baselines), "s/run"]
    epochs = experiment.fit["epochs"]
    text = f"## {name}: {experiment.question}\n\n{epochs} epochs on `{experiment.data}`.\n\n{markdown(head, rows)}"
    return (
        text + "\n" + "\n".join(f"- {line}" for line in [*counts(experiment, known), *fusion(experiment, known)]) + "\n"
    )


def counts(experiment: Experiment, known: Results) -> list[str]:
    """How many arms are better than each baseline, and how many worse."""
    lines = []
    for baseline in experiment.arms:
        rivals = [arm for arm in known if baseline in experiment.arms[arm].against and baseline in known]
        gaps = {arm: gap for arm in rivals if (gap := paired(known[arm], known[baseline])) is not None}
        if len(gaps) < 2:
            continue
        better = [f"`{arm}`" for arm, (gap, _) in gaps.items() if gap.low > 0]
        worse = [f"`{arm}`" for arm, (gap, _) in gaps.items() if gap.high < 0]
        above = sum(gap.value > 0 for gap, _ in gaps.values())
        lines.append(
            f"Against `{baseline}`: {len(better)} of {len(gaps)} are better ({', '.join(better) or 'none'}), "
            f"{len(worse)} worse ({', '.join(worse) or 'none'}); {above} have the higher mean."
        )
    return lines


def fusion(experiment: Experiment, known: Results) -> list[str]:
    """The fusion against the best single method, which was chosen by this very table and so flattered by it."""
    singles = [arm for arm in experiment.singles if arm in known]
    if experiment.fusion is None or experiment.fusion not in known or not singles:
        return []
    best = max(singles, key=lambda arm: float(np.mean([record["test"] for record in known[arm].values()])))
    gap = paired(known[experiment.fusion], known[best])
    if gap is None:
        return []
    verdict = "met" if gap[0].value >= -0.3 else "not met"
    return [
        f"`{experiment.fusion}` minus the best single method, `{best}`: {difference(gap, gap[1])} "
        f"(aim, on the mean: -0.3 or more; {verdict})."
    ]


def difference(gap: tuple[Interval, int] | None, runs: int) -> str:
    """``+1.23 (+0.40 to +2.06)``, bold where 0 is excluded, with the number of pairs where it is not that of runs."""
    if gap is None:
        return ""
    interval, n = gap
    pairs = "" if n == runs else f", n={n}"
    if n < 2:
        return f"{interval.value:+.2f} (n=1)"
    text = f"{interval.value:+.2f} ({interval.low:+.2f} to {interval.high:+.2f}{pairs})"
    return f"**{text}**" if excludes_zero(interval) else text


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; columns from the third on are numbers."""
    rule = ["---" if place < 2 else "--:" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/distillation"), help="the folder that run.py wrote")
    print(tables(parser.parse_args(arguments).out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
