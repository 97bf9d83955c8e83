"""What so few samples could tell, before hours are spent: which limits can't be shown to hold, and how many it takes.

For 0/1 scores and a true drop of 0, (z_alpha + z_power)^2 psi / margin^2 samples, 6.18 psi / margin^2, show a drop to
be under its margin with 80 % chance, where psi is the share of answers that flip. No number under
z_alpha^2 (1 - margin) / margin does, even if not one answer flips.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from edgewise.bench import stats
from edgewise.bench.config import Bench
from edgewise.bench.gate.config import Budget
from edgewise.bench.numbers import discordant, paired_scores, samples_of, speedup
from edgewise.bench.record import Results

POWER = 0.8
ALPHA = 0.05
LOOKS_MOST = 4  # times the launches of one look, see edgewise.side_by_side
FLIPS = 0.04  # of an INT8 file against its float, where nobody knows better
TAILS = {"max_p50_ms": 0.5, "max_p90_ms": 0.9, "max_p99_ms": 0.99}

Outlook = Literal["fine", "underpowered", "impossible", "unknown"]


@dataclass(frozen=True)
class Prospect:
    """What a limit could be told from ``n``. ``power``: the chance to pass, if all is well; ``needed_n`` for 80 %.

    ``impossible``: it can't pass, whatever is measured; ``underpowered``: it passes in under 80 % though all is well.
    """

    file: str
    check: str
    outlook: Outlook
    slice: str | None = None
    n: int | None = None
    needed_n: int | None = None
    counted: str = "samples"
    power: float | None = None
    assumed: str = ""


@dataclass(frozen=True)
class Known:
    """What is known before measuring: how many samples will be answered, and of each slice how many (by ``class=7``),
    for each of the budget's limits on slices in its order; what was measured before, by file: the share of flipped
    answers, the accuracy, the p50 in ms, and the relative half width of a ratio's interval with its block pairs."""

    samples: int
    slices: Sequence[Mapping[str, int]] = ()
    flips: Mapping[str, float] = field(default_factory=dict)
    accuracy: Mapping[str, float] = field(default_factory=dict)
    p50_ms: Mapping[str, float] = field(default_factory=dict)
    ratio: Mapping[str, tuple[float, int]] = field(default_factory=dict)


def prospects(budget: Budget, files: Sequence[str], config: Bench, known: Known) -> list[Prospect]:
    """What each limit on answers and tails could be told from what will be measured, by file."""
    return [
        row
        for file in files
        for row in (*_answers(budget, file, known), *_slices(budget, file, known), *_times(budget, file, config, known))
    ]


def known_of(results: Results, *, samples: int | None = None) -> Known:
    """What earlier results tell; ``samples`` of the next measurement, by default as many."""
    flips, accuracy, p50, ratio = {}, {}, {}, {}
    for file in results.files:
        pair = paired_scores(results, file.reference, file.name)
        if pair is not None:
            flips[file.name] = sum(discordant(*pair)) / len(pair[0])
            accuracy[file.name] = float(np.mean(pair[1]))
        measurement = results.measurements.get(file.name)
        if measurement is not None and measurement.launches:
            pooled = np.concatenate([block for launch in samples_of(measurement) for block in launch])
            p50[file.name] = float(np.median(pooled)) / 1e6
            found = speedup(results, file.reference, file.name, confidence=1 - 2 * ALPHA)
            pairs = sum(len(launch.blocks) for launch in measurement.launches)
            if found is not None and file.reference != file.name:
                ratio[file.name] = (found.high / found.value - 1, pairs)
    answered = max((answers.samples for answers in results.answers.values()), default=0)
    return Known(answered if samples is None else samples, (), flips, accuracy, p50, ratio)


def warnings(rows: Sequence[Prospect]) -> list[str]:
    """A sentence for each limit that can't be shown to hold, or hardly, with the worst of its files and slices."""
    groups: dict[tuple[str, str], list[Prospect]] = {}
    for row in rows:
        if row.outlook in ("impossible", "underpowered"):
            groups.setdefault((row.check, (row.slice or "").partition("=")[0]), []).append(row)
    return [_sentence(group) for group in groups.values()]


def _sentence(group: Sequence[Prospect]) -> str:
    """What is told of one limit, on one file or many, on all samples or slices of them."""
    row = min(group, key=lambda one: (one.outlook != "impossible", one.power or 0.0))
    files, parts = {one.file for one in group}, {one.slice for one in group if one.slice}
    where = row.slice or ""
    if len(parts) > 1:
        where = f"{len(parts)} slices by {where.partition('=')[0]}, worst {where}"
    what = ", ".join(
        text for text in (row.file if len(files) == 1 else f"{len(files)} files", row.check, where) if text
    )
    chance = "can't pass" if row.outlook == "impossible" else f"passes in {100 * (row.power or 0):.0f} % at best"
    have = f"{row.n:,} {row.counted}" if row.n is not None else f"so few {row.counted}"
    needs = f", needs about {row.needed_n:,}" if row.needed_n else ""
    return f"{what}: {chance} with {have}{needs}{f' ({row.assumed})' if row.assumed else ''}"


def to_json(rows: Sequence[Prospect]) -> list[dict[str, Any]]:
    """Plain data, as ``Verdict.power`` has it."""
    return [asdict(row) for row in rows]


def drop_prospect(margin_pp: float, n: int, psi: float) -> tuple[Outlook, int | None, float]:
    """(outlook, samples for 80 % power, power) of showing that a drop of truly 0 is under ``margin_pp``."""
    normal, margin = NormalDist(), margin_pp / 100
    needed = stats.paired_sample_size(psi, margin, alpha=ALPHA, power=POWER)
    least = normal.inv_cdf(1 - ALPHA) ** 2 * (1 - margin) / margin if margin > 0 else math.inf
    if n < least:
        return "impossible", needed, 0.0
    power = normal.cdf(margin * math.sqrt(n / psi) - normal.inv_cdf(1 - ALPHA)) if psi > 0 else 1.0
    return ("fine" if power >= POWER else "underpowered"), needed, power


def _answers(budget: Budget, file: str, known: Known) -> Iterator[Prospect]:
    psi, assumed = _flip_rate(budget, file, known)
    limits = {"max_accuracy_drop_pp": budget.max_accuracy_drop_pp}
    if budget.release is not None:
        limits["release.max_accuracy_drop_pp"] = budget.release.max_accuracy_drop_pp
    for check, limit in limits.items():
        if limit is not None:
            outlook, needed, power = drop_prospect(limit, known.samples, psi)
            yield Prospect(file, check, outlook, None, known.samples, needed, "samples", power, assumed)
    shares = {"max_flip_rate": (budget.max_flip_rate, psi, 1, assumed)}
    if file in known.accuracy:
        shares["min_accuracy"] = (budget.min_accuracy, known.accuracy[file], -1, "as accurate as before")
    for check, (limit, value, sign, why) in shares.items():
        if limit is not None:
            yield _share(file, check, known.samples, sign * (limit - value), value * (1 - value), why)


def _share(file: str, check: str, n: int, gap: float, spread: float, why: str) -> Prospect:
    """The outlook of a share that lies ``gap`` within its limit."""
    needed = stats.paired_sample_size(spread, gap, alpha=ALPHA, power=POWER)
    if needed is None:
        return Prospect(file, check, "impossible", None, n, None, "samples", 0.0, f"{why}, it is over the limit")
    normal = NormalDist()
    power = normal.cdf(gap * math.sqrt(n / spread) - normal.inv_cdf(1 - ALPHA)) if spread else 1.0
    outlook: Outlook = "fine" if n >= needed else "underpowered"
    return Prospect(file, check, outlook, None, n, needed, "samples", power, why)


def _slices(budget: Budget, file: str, known: Known) -> Iterator[Prospect]:
    psi, assumed = _flip_rate(budget, file, known)
    for limits, sizes in zip(budget.sliced, known.slices, strict=False):
        margins = {
            "max_accuracy_drop_pp": limits.max_accuracy_drop_pp,
            "release.max_accuracy_drop_pp": limits.max_release_drop_pp,
        }
        for name, n in sizes.items():
            chosen = not limits.only or name.partition("=")[2] in limits.only
            for check, margin in margins.items():
                if margin is not None and chosen and n >= limits.min_n:
                    outlook, needed, power = drop_prospect(margin, n, psi)
                    yield Prospect(file, check, outlook, name, n, needed, "samples", power, assumed)


def _flip_rate(budget: Budget, file: str, known: Known) -> tuple[float, str]:
    if file in known.flips:
        # Not one flip seen is no promise that there will be none.
        psi = max(known.flips[file], 0.5 / max(1, known.samples))
        return psi, f"{100 * known.flips[file]:.2g} % flips, as before"
    if budget.expected_flip_rate is not None:
        return budget.expected_flip_rate, f"{100 * budget.expected_flip_rate:.2g} % flips expected"
    return FLIPS, f"{100 * FLIPS:g} % flips assumed"


def _times(budget: Budget, file: str, config: Bench, known: Known) -> Iterator[Prospect]:
    least = config.launches * config.blocks
    most = None
    if file in known.p50_ms:
        most = int(config.most_launches * config.blocks * max(1.0, config.block_ms / known.p50_ms[file]))
    for check, q in TAILS.items():
        if getattr(budget, check) is None:
            continue
        if config.most_launches == 1:
            why = "one launch says nothing about the next"
            yield Prospect(file, check, "impossible", None, 1, 2, "launches", 0.0, why)
            continue
        needed = stats.sample_floor(q)
        sure: Outlook = "fine" if least >= needed or (most or 0) >= needed else "unknown"
        outlook: Outlook = "impossible" if most is not None and most < needed else sure
        why = "inferences as fast as before" if most is not None else "at least one inference a block"
        yield Prospect(file, check, outlook, None, most or least, needed, "runs", None, why)
    ratio = budget.release.max_latency_ratio if budget.release else None
    if ratio is not None and file in known.ratio:
        half, pairs = known.ratio[file]
        margin = ratio - 1
        # gate --against measures up to four times as much, and stops as soon as it can tell
        reach = LOOKS_MOST * config.launches * config.blocks
        needed_pairs = math.ceil(pairs * (half / margin) ** 2) if margin > 0 else None
        z = NormalDist().inv_cdf(1 - ALPHA)
        spread = max(half, 1e-9) / z * math.sqrt(pairs / reach)
        power = NormalDist().cdf(math.log(max(ratio, 1.0)) / spread - z)
        why = f"ratios known to {100 * half:.2g} % from {pairs} block pairs before"
        told: Outlook = "impossible" if margin <= 0 else "fine" if power >= POWER else "underpowered"
        check = "release.max_latency_ratio"
        yield Prospect(file, check, told, None, reach, needed_pairs, "block pairs", power, why)
