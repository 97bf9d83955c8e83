"""What a report is made of: a finished run, or the folder that ``edgewise bench --out`` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.errors import ArtifactError

if TYPE_CHECKING:
    from edgewise.bench.gate import Verdict
    from edgewise.bench.record import Context, Results

ABOUT = "about.json"


def judged(folder: Path) -> tuple[Results, Verdict | None, Context]:
    """What is in ``folder``, what its own budget says of it, and what a report is told beside that.

    Raises:
        ArtifactError: neither a finished run nor measurements.
    """
    if not _is_bench(folder):
        from edgewise import pipeline

        return pipeline.judged(folder)
    from edgewise.bench.pick import pick
    from edgewise.bench.record import load_results

    results, context = load_results(folder), bench_context(folder)
    # Without scores nothing says that a file still works, so none is recommended.
    picked = pick(results, None) if context.metric is not None else None
    return results, None, replace(context, picked=picked.name, picked_why=picked.why) if picked else context


def report(folder: Path) -> Path:
    """Write the report of a finished run, or of what ``edgewise bench --out`` wrote; returns the HTML page.

    Raises:
        ArtifactError: neither of them, or its files changed.
    """
    if not _is_bench(folder):
        from edgewise import pipeline

        return pipeline.report(folder)
    from edgewise.bench.report.write import write_report

    return write_report(*judged(folder), folder)["report.html"]


def bench_context(folder: Path) -> Context:
    """What is known of a folder of ``edgewise bench``: its name, when it was measured, whether answers were scored.

    Raises:
        ArtifactError: ``about.json`` is there and can't be read.
    """
    from edgewise.bench.record import MEASUREMENTS, Context

    measured = datetime.fromtimestamp((folder / MEASUREMENTS).stat().st_mtime, timezone.utc)
    about = _about(folder)
    metric = about.get("metric")
    return Context(
        name=folder.resolve().name,
        created=str(about.get("created") or measured.isoformat(timespec="seconds")),
        metric=None if metric is None else str(metric),
        commands=tuple(str(command) for command in about.get("commands", ())),
    )


def bench_padding(folder: Path) -> int | None:
    """The id that the texts of a folder of ``edgewise bench`` are filled up with; None where they are none, or it isn't
    known.

    Raises:
        ArtifactError: as ``bench_context``.
    """
    padding = _about(folder).get("padding")
    return None if padding is None else int(padding)


def _about(folder: Path) -> Mapping[str, Any]:
    path = folder / ABOUT
    if not path.exists():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(about, dict):
            raise ValueError(f"expected an object, got {type(about).__name__}")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"can't be read: {error}", where=str(path), hint="measure again") from error
    return about


def write_about(
    folder: Path, *, metric: str | None, commands: tuple[str, ...] = (), padding: int | None = None
) -> None:
    """Keep beside measurements what they don't tell themselves; ``metric`` None: nobody scored the answers."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    about = {"created": now, "metric": metric, "commands": list(commands), "padding": padding}
    (folder / ABOUT).write_text(json.dumps(about, indent=1))


def _is_bench(folder: Path) -> bool:
    from edgewise.bench.record import MEASUREMENTS

    return (folder / MEASUREMENTS).is_file()
