"""Where numbers come from: the device, its settings and the versions; and whether two results come from one device.

What is read is the agent's ``probe``, the same on the host and on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewise.bench.agent.probe import cpu_limit, probe, usable_cpus, versions
from edgewise.errors import MeasureError

__all__ = ["IDENTITY", "check_same_device", "cpu_limit", "provenance", "usable_cpus", "versions"]

# What must agree before two results may be compared. Load and free memory change by the minute and are not here.
IDENTITY = (
    "machine",
    "cpu",
    "serial",
    "flags",
    "cores",
    "affinity",
    "cpu_limit",
    "governor",
    "boost",
    "smt",
    "power_mode",
    "kernel",
    "os",
)


def provenance() -> dict[str, Any]:
    """This machine now: ``device`` (its identity), ``state`` (what changes), ``versions``."""
    return probe()


def check_same_device(ours: Mapping[str, Any], theirs: Mapping[str, Any], *, anyway: bool = False) -> list[str]:
    """What differs between the devices of two results, as sentences; nothing if they may be compared.

    Raises:
        MeasureError: they differ, and nobody said ``anyway``.
    """
    one, other = ours.get("device", {}), theirs.get("device", {})
    differ = [
        f"{key}: {one.get(key)!r} against {other.get(key)!r}" for key in IDENTITY if one.get(key) != other.get(key)
    ]
    if differ and not anyway:
        raise MeasureError(
            "these results come from different devices: " + "; ".join(differ),
            hint="measure both on one device, or ask for the comparison by name",
        )
    return differ
