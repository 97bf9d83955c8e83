"""Rows of telemetry, looked at before they are believed: they come from a device, over a link, out of a file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

LONGEST_NS = 2**62
# A counter or a size that is larger than this is a broken row, and would not fit a float without loss anyway.
LARGEST = 2**63


def clean_rows(rows: Iterable[Any]) -> list[dict[str, Any]]:
    """Rows in order of time, each with every key that ``Sensors.read`` gives; what can't be is None.

    A row without a time is left out.
    """
    found = [clean for clean in map(_clean, rows) if clean is not None]
    return sorted(found, key=lambda row: int(row["t_ns"]))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``telemetry.jsonl``; half a line, as a broken link leaves it, is passed over."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return clean_rows(_parsed(line) for line in lines)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _clean(row: Any) -> dict[str, Any] | None:
    if not isinstance(row, Mapping):
        return None
    time = row.get("t_ns")
    if not isinstance(time, int) or isinstance(time, bool) or not 0 <= time < LONGEST_NS:
        return None
    return {"t_ns": time, **{key: read(row.get(key)) for key, read in READ.items()}}


def _number(value: Any) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST < value < LARGEST:
        return None
    return value if math.isfinite(value) else None


def _positive(value: Any) -> float | int | None:
    found = _number(value)
    return found if found is not None and found >= 0 else None


def _each(value: Any) -> list[float | int | None] | None:
    return [_positive(one) for one in value] if isinstance(value, list | tuple) else None


def _named(read: Callable[[Any], float | int | None]) -> Callable[[Any], dict[str, float | int | None] | None]:
    def named(value: Any) -> dict[str, float | int | None] | None:
        return {str(name): read(one) for name, one in value.items()} if isinstance(value, Mapping) else None

    return named


def _battery(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, Mapping):
        return None
    status, mains = value.get("status"), value.get("on_mains")
    return {
        "status": status if isinstance(status, str) else None,
        "capacity_percent": _positive(value.get("capacity_percent")),
        "power_w": _positive(value.get("power_w")),
        "on_mains": mains if isinstance(mains, bool) else None,
    }


READ: Mapping[str, Callable[[Any], Any]] = {
    "freq_khz": _each,
    "freq_max_khz": _each,
    "temp_c": _named(_number),
    "power_w": _named(_positive),
    "energy_j": _named(_positive),
    "devfreq_hz": _named(_positive),
    "swap_bytes": _positive,
    "swapped_pages": _positive,
    "psi_cpu_some_us": _positive,
    "steal_ticks": _positive,
    "battery": _battery,
    "throttle": _named(_positive),
}
