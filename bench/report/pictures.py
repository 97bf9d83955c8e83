"""All pictures of a page, from its JSON alone."""

from __future__ import annotations

from typing import Any

from edgewise.bench.report.frontier import frontier
from edgewise.bench.report.latency import device_over_time, latency_over_time, latency_spread
from edgewise.bench.report.layers import layer_sqnr, line_of
from edgewise.bench.report.memory import memory_by_phase
from edgewise.bench.report.scenario import load_curve


def pictures(page: dict[str, Any]) -> dict[str, Any]:
    """Each picture as SVG, None where there is nothing to draw; ``apart``: one for each two files that don't agree."""
    runtimes = {file["name"]: file["runtime"] for file in page["files"]}

    short = [file["name"] for file in page["files"] if file["in_short"]]

    def line(name: str, found: dict[str, Any]) -> Any:
        return line_of(name, runtimes.get(name, name.split("-")[0]), found)

    return {
        "frontier": frontier(page["files"], page["metric"] or "", short),
        "spread": latency_spread(page["files"], page["bin_edges_ms"]),
        "timeline": latency_over_time(page["files"]),
        "device": device_over_time(page["telemetry"]),
        "memory": memory_by_phase(page["files"]),
        "load": load_curve(page["scenarios"]),
        "layers": layer_sqnr([line(row["file"], row) for row in page["layers"]]),
        "apart": [
            row["layers"] and layer_sqnr([line(row["other"], row["layers"])], name=f"apart-{place}")
            for place, row in enumerate(page["agreement"])
        ],
        "most": {
            "size": max((row["size_bytes"] or 0 for row in [*page["journey"], *page["files"]]), default=0),
            "macs": max((row["macs"] or 0 for row in page["journey"]), default=0),
            "p50": max((file["p50_ms"]["value"] for file in page["files"] if file["p50_ms"]), default=0),
        },
    }
