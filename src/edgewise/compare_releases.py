"""``edgewise compare A B``: two releases side by side, from what each has kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewise.bench import format as say
from edgewise.errors import MeasureError
from edgewise.output import print_table
from edgewise.reported import judged

APART = "measured apart, so nothing is claimed of a difference: edgewise gate B --against A measures both again"


def compare_releases(a: Path, b: Path, *, anyway: bool = False) -> dict[str, Any]:
    """Release ``b`` against ``a``, each a finished run or a folder of ``edgewise bench --out``.

    Raises:
        ArtifactError: one of them is neither.
        MeasureError: they come from different devices, and nobody said ``anyway``.
    """
    from edgewise.bench.report.compare import Side, compare

    one, other = (Side(*judged(folder)) for folder in (a, b))
    try:
        return compare(one, other, anyway=anyway)
    except MeasureError as error:
        raise MeasureError(error.message, hint="measure both on one device, or compare them --anyway") from None


def page(found: dict[str, Any]) -> str:
    """The comparison as one HTML file that needs nothing else."""
    from edgewise.bench.report.render import render

    return render("compare.html.j2", found)


def show(found: Mapping[str, Any]) -> None:
    """Print the comparison for a person."""
    a, b = found["a"], found["b"]
    for side, about in (("A", a), ("B", b)):
        picked = about["picked"] or "nothing"
        print(f"{side}: {about['name']}, measured {about['created']}: {about['status']}; recommended: {picked}")
    for line in found["device_differs"]:
        print(f"warning: different devices: {line}")
    if found["files"]:
        print()
        print_table(
            ("file", "bytes", "size A", "size B", "memory A", "memory B", "p50 A *", "p50 B *", "p99 A *", "p99 B *"),
            [_sizes(file) for file in found["files"]],
        )
        print(f"* {APART}")
    if found["metric"] is not None and found["files"]:
        confidence = round(100 * found["confidence"])
        print()
        print_table(
            ("file", f"{found['metric']} A", "B", "drop", f"{confidence} % interval", "lost", "won", "samples"),
            [_answers(file) for file in found["files"]],
        )
    for key, side in (("only_a", "A"), ("only_b", "B")):
        if found[key]:
            print(f"\nonly in {side}: {', '.join(found[key])}")
    differ = [
        *(("bench", row) for row in found["settings"]),
        *((row["file"], row) for row in found["runtime_settings"]),
        *((row["part"], row) for row in found["provenance"]),
    ]
    if differ:
        print()
        print_table(("what differs", "key", "A", "B"), [(what, row["key"], row["a"], row["b"]) for what, row in differ])


def _sizes(file: Mapping[str, Any]) -> tuple[object, ...]:
    return (
        file["name"],
        "the same" if file["same_bytes"] else "new",
        *(say.size(file["size_bytes"][side]) for side in "ab"),
        *(say.quantity(file["peak_memory_bytes"][side], "bytes") for side in "ab"),
        *(_value(file["p50_ms"][side], "ms") for side in "ab"),
        *(_value(file["p99_ms"][side], "ms") for side in "ab"),
    )


def _answers(file: Mapping[str, Any]) -> tuple[object, ...]:
    if not file["paired_n"]:
        return (file["name"], *[say.NONE] * 6, file["why_unpaired"])
    return (
        file["name"],
        *(say.percent(file["paired_accuracy"][side]) for side in "ab"),
        _value(file["drop_pp"], "pp"),
        say.span(file["drop_pp"], "pp"),
        say.count(file["lost"]),
        say.count(file["won"]),
        say.count(file["paired_n"]),
    )


def _value(interval: Mapping[str, float] | None, unit: str) -> str:
    return say.quantity(interval["value"] if interval else None, unit)
