"""Tables of the results, in Markdown on stdout: every arm, losers too, with intervals.

python benchmarks/distillation/summarise.py --out runs/distillation > tables.md
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
views), with their 95 % interval. With few seeds a difference's own spread says little, so the spread is pooled over all
arms of the experiment that are compared with the same baseline, as in an analysis of variance: it is taken to be alike
in all of them; arms that are meant to fail have their own. **Bold**: the interval excludes 0. Of 20 comparisons between
equals one comes out bold by chance; nothing is corrected for how many there are. s/run: median seconds of one thread to
train (of the runs that were not cut off on the way), the teacher's kept answers not counted (`live`: the teacher
answers in every step, because a loss looks at its inner layers).
"""


@dataclass(frozen=True)
class Spread:
    """A standard deviation, and the degrees of freedom that it was estimated with."""

    deviation: float
    freedom: int


def student_t(values: Sequence[float], confidence: float = 0.95, spread: Spread | None = None) -> Interval:
    """The mean of ``values`` with Student's interval, by their own spread or a pooled one; endless without one."""
    from scipy.special import stdtrit

    given = np.asarray(values, np.float64)
    mean, n = float(given.mean()), len(given)
    if spread is None and n > 1:
        spread = Spread(float(given.std(ddof=1)), n - 1)
    if spread is None or n < 2:
        return Interval(mean, -math.inf, math.inf)
    half = float(stdtrit(spread.freedom, (1 + confidence) / 2)) * spread.deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def gaps(ours: Seeds, theirs: Seeds) -> list[float]:
    """Ours minus theirs in percentage points, for each seed that both have."""
    return [100 * (ours[seed]["test"] - theirs[seed]["test"]) for seed in sorted(set(ours) & set(theirs))]


def pooled(experiment: Experiment, known: Results, baseline: str) -> Spread | None:
    """The spread of a difference to ``baseline``, over all arms that are compared with it, but broken ones; None
    without two seeds."""
    arms = experiment.arms
    if baseline not in known or arms[baseline].broken:
        return None
    rivals = [arm for arm in known if baseline in arms[arm].against and not arms[arm].broken]
    lists = [gaps(known[arm], known[baseline]) for arm in rivals]
    freedom = sum(max(0, len(values) - 1) for values in lists)
    squares = sum(float(np.var(values)) * len(values) for values in lists if len(values) > 1)
    return Spread(math.sqrt(squares / freedom), freedom) if freedom else None


def paired(ours: Seeds, theirs: Seeds, spread: Spread | None = None) -> tuple[Interval, int] | None:
    """Ours minus theirs in percentage points, over the seeds that both have, and how many those are."""
    values = gaps(ours, theirs)
    return (student_t(values, spread=spread), len(values)) if values else None


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
    spreads = {baseline: pooled(experiment, known, baseline) for baseline in baselines}
    order = sorted(known, key=lambda arm: -student_t([r["test"] for r in known[arm].values()]).value)
    rows = []
    for arm in order:
        settings = experiment.arms[arm]
        score = student_t([100 * record["test"] for record in known[arm].values()])
        cells = [
            difference(paired(known[arm], known[other], None if settings.broken else spreads[other]), len(known[arm]))
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
        spread = pooled(experiment, known, baseline)
        own = {arm: None if experiment.arms[arm].broken else spread for arm in rivals}
        found = {arm: gap for arm in rivals if (gap := paired(known[arm], known[baseline], own[arm])) is not None}
        if len(found) < 2:
            continue
        better = [f"`{arm}`" for arm, (gap, _) in found.items() if gap.low > 0]
        worse = [f"`{arm}`" for arm, (gap, _) in found.items() if gap.high < 0]
        above = sum(gap.value > 0 for gap, _ in found.values())
        told = (
            f" Over seeds a difference spreads by {spread.deviation:.2f} (pooled, df {spread.freedom})."
            if spread
            else ""
        )
        lines.append(
            f"Against `{baseline}`: {len(better)} of {len(found)} are better ({', '.join(better) or 'none'}), "
            f"{len(worse)} worse ({', '.join(worse) or 'none'}); {above} have the higher mean.{told}"
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
