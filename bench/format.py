"""How numbers are said to people. Only here; everywhere else a number is a number with its unit in its name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MINUS = "\N{MINUS SIGN}"
NONE = "n/a"


def plain(value: float, digits: int = 3) -> str:
    """``digits`` significant digits, thousands apart, no exponent."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    # The exponent of the rounded number: 9.999 is 10.0, not 10.00.
    places = max(0, digits - 1 - int(f"{value:.{digits - 1}e}".partition("e")[2]))
    return f"{value:,.{places}f}".replace("-", MINUS)


def duration(ms: float) -> str:
    """119 µs, 2.31 ms, 1.20 s."""
    if _below(1000, ms * 1000):
        return f"{plain(ms * 1000)} µs"
    return f"{plain(ms)} ms" if _below(1000, ms) else f"{plain(ms / 1000)} s"


def size(count: float) -> str:
    """323 kB, 3.21 MB; a kB is 1,000 bytes."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if not _below(1, count / scale):
            return f"{plain(count / scale)} {unit}"
    return f"{count:,.0f} B"


def ratio(value: float) -> str:
    """3.12×."""
    return f"{plain(value)}×"


def faster(value: float) -> str:
    """4.30× faster, or 1.59× slower."""
    return f"{ratio(value)} faster" if value >= 1 or value <= 0 else f"{ratio(1 / value)} slower"


def smaller(value: float) -> str:
    """12.3× smaller, or 1.10× larger."""
    return f"{ratio(value)} smaller" if value >= 1 or value <= 0 else f"{ratio(1 / value)} larger"


def percent(share: float) -> str:
    """88.71 %, of a share in 0..1."""
    return f"{100 * share:.2f} %".replace("-", MINUS)


def points(pp: float) -> str:
    """0.42 pp."""
    return f"{_signed(pp):.2f} pp".replace("-", MINUS)


def rate(per_second: float) -> str:
    """1,230 /s."""
    return f"{plain(per_second)} /s"


def share(part: float) -> str:
    """95 %, of a share in 0..1 that is a round number."""
    return f"{100 * part:g} %"


def energy(joules: float) -> str:
    """4.31 mJ, 1.20 J."""
    for unit, scale in (("J", 1.0), ("mJ", 1e-3)):
        if not _below(1, joules / scale):
            return f"{plain(joules / scale)} {unit}"
    return f"{plain(joules * 1e6)} µJ"


def watts(power: float) -> str:
    """4.86 W."""
    return f"{plain(power)} W"


def seconds(time: float) -> str:
    """60.0 s."""
    return duration(1000 * time)


def decibel(db: float | None, exact: bool = False) -> str:
    """41.2 dB; ``exact`` where there is no difference at all."""
    if exact:
        return "exact"
    return NONE if db is None else f"{db:.1f} dB".replace("-", MINUS)


def count(value: float) -> str:
    """12,345, or 126 M from ten million on."""
    for unit, scale in (("G", 1e9), ("M", 1e6)):
        if not _below(10, value / scale):
            return f"{plain(value / scale)} {unit}"
    return f"{value:,.0f}".replace("-", MINUS)


def roughly(value: float) -> str:
    """Rounded up to two digits: 1,700,000."""
    step = 10 ** max(0, math.floor(math.log10(value)) - 1) if value > 0 else 1
    return f"{math.ceil(value / step) * step:,.0f}"


def probability(p: float) -> str:
    """0.031, or < 0.001."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


UNITS: Mapping[str, Callable[[float], str]] = {
    "fraction": percent,
    "pp": points,
    "x": ratio,
    "ms": duration,
    "bytes": size,
    "per s": rate,
    "share": share,
    "J": energy,
    "W": watts,
    "s": seconds,
    "count": count,
}


def quantity(value: float | None, unit: str) -> str:
    """A number in one of the units of a check."""
    return NONE if value is None else UNITS.get(unit, plain)(value)


def span(interval: Mapping[str, Any] | None, unit: str) -> str:
    """Both ends of an interval, the unit said once where both have the same: 2.20 to 2.45 ms."""
    if interval is None or interval.get("low") is None or interval.get("high") is None:
        return ""
    low, high = quantity(interval["low"], unit), quantity(interval["high"], unit)
    for sign in ("\N{MULTIPLICATION SIGN}", f" {low.rpartition(' ')[2]}"):
        if low.endswith(sign) and high.endswith(sign):
            low = low.removesuffix(sign)
    return f"{low} to {high}"


def versus(interval: Mapping[str, Any]) -> str:
    """A ratio of speeds in words that its interval bears out: 1.83× faster (1.81 to 1.84×), or no difference shown."""
    if interval["low"] <= 1 <= interval["high"]:
        return f"no difference shown ({ratio(interval['low'])} to {ratio(interval['high'])})"
    value, low, high = interval["value"], interval["low"], interval["high"]
    ends = {"low": low, "high": high} if low > 1 else {"low": 1 / high, "high": 1 / low}
    return f"{faster(value)} ({span(ends, 'x')})"


def least(needed: int) -> str:
    """Why a percentile is not told: n/a (needs >= 662)."""
    return f"{NONE} (needs >= {needed:,})"


def gap(value: float | None, unit: str = "") -> str:
    """A difference in no unit of its own, to three digits."""
    return NONE if value is None else f"{value:.3g}{unit}".replace("-", MINUS)


def too_few(have: int, needed: int) -> str:
    """Why a percentile is not told."""
    return f"needs >= {needed:,} runs, has {have:,}"


def limit_words(check: str, limit: float, unit: str) -> str:
    """The limit of a check with its direction: at least 3×, at most 1.00 pp."""
    key = check.rpartition(".")[2]
    return f"{'at least' if key.startswith('min_') else 'at most'} {quantity(limit, unit)}"


def check_words(check: str) -> str:
    """The name of a budget's key as words: accuracy drop, throughput under server, latency against the release."""
    place, _, key = check.rpartition(".")
    words = CHECK_WORDS.get(key, key)
    if place == "release":
        return f"{words} against the release"
    return f"{words} under {place}" if place else words


CHECK_WORDS = {
    "min_accuracy": "accuracy",
    "max_accuracy_drop_pp": "accuracy drop",
    "min_speedup": "speed-up",
    "min_size_ratio": "size ratio",
    "max_p50_ms": "p50 latency",
    "max_p99_ms": "p99 latency",
    "max_size_bytes": "size",
    "max_peak_memory_bytes": "peak memory",
    "max_load_ms": "load time",
    "min_qps": "throughput",
    "max_flip_rate": "flip rate",
    "max_p90_ms": "p90 latency",
    "max_joules_per_inference": "energy",
    "max_latency_ratio": "latency",
    "max_load_ratio": "load time",
    "max_memory_ratio": "peak memory",
    "max_size_ratio": "size",
    "max_energy_ratio": "energy",
}


def headline(statuses: Sequence[str]) -> str:
    """All checks in a sentence, the worst first."""
    if not statuses:
        return "No budget was given, so nothing was judged."
    if set(statuses) == {"PASS"}:
        return f"{_all(len(statuses))}, with the whole interval."
    found = {status: sum(one == status for one in statuses) for status in OUTCOMES}
    parts = [f"{n} {words}" for status, words in OUTCOMES.items() if (n := found[status])]
    return f"Of {len(statuses)} check{'s' if len(statuses) > 1 else ''}: {', '.join(parts)}."


def _all(n: int) -> str:
    return "The one limit holds" if n == 1 else f"All {n} limits hold"


OUTCOMES = {
    "FAIL": "over the limit",
    "INVALID": "could not be made",
    "INCONCLUSIVE": "too close to tell",
    "PASS": "within the limit",
}

FLAG_WORDS = {
    "contended": "other work kept the CPU busy: times are too long, so speed-ups are told on CPU time (one thread) or "
    "not at all (more threads)",
    "throttled": "the device throttled, or ran under 75 % of its clock in over 10 % of the samples",
    "frequency": "the clock moved by over 10 % while measuring",
    "drift": "times moved in one direction while measuring",
    "swap": "the system swapped while measuring",
    "battery": "on battery, or with less than 20 % of charge: many devices save power then",
    "unstable": "the p50 is known to no better than 5 %",
    "precision_not_reached": "the p50's interval is wider than was asked for",
    "warmup_not_converged": "times had not settled when measuring began",
    "single_launch": "one process only: the interval leaves out the difference between processes",
    "energy_missing": "energy was asked for, and the file or the sensor failed on the way",
    "setting_not_honoured": "the runtime ran with other settings than asked: these are not the times of what was asked",
}


def flag_words(flag: str) -> str:
    """What a flag means."""
    return FLAG_WORDS.get(flag, flag)


def _below(limit: float, value: float, digits: int = 3) -> bool:
    """Whether ``value`` is still said as less than ``limit`` once rounded: 999.9 is said as 1,000."""
    return abs(float(f"{value:.{digits - 1}e}")) < limit


def _signed(value: float) -> float:
    """Without the sign of a zero."""
    return 0.0 if abs(value) < 0.005 else value
