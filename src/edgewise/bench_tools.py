"""``edgewise bench`` by other tools: .tflite files on a phone, engines by ``trtexec``. What they tell, as a table."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.artifact import sha256_file
from edgewise.bench import format as say
from edgewise.bench.devices.adb import Adb, serial_of
from edgewise.bench.jetson import EngineResult, Settings, measure_engines
from edgewise.bench.phone import PhoneResult, measure_on_phone
from edgewise.bench.provenance import provenance
from edgewise.bench.stats import Interval
from edgewise.errors import MeasureError
from edgewise.output import print_table
from edgewise.progress import Tick

SAVED = "tools.json"
LAUNCHES = 5


@dataclass(frozen=True)
class Tools:
    """Other tools that the command line named: a phone's binary and its mask of CPUs, or a ``trtexec``."""

    benchmark_model: Path | None = None
    mask: str | None = None
    trtexec: str | None = None


def bench_with_tool(
    files: Sequence[Path], asked: Mapping[str, Any], inputs: Path | None, tools: Tools, out: Path | None, tick: Tick
) -> dict[str, Any] | None:
    """A table for ``show`` where another tool is to measure: on a phone, or as ``trtexec``; None where it isn't.

    ``asked``: what the command line gave, None or empty for what it didn't.

    Raises:
        MeasureError: something was asked for that the tool can't honour, or as ``bench_phone``, ``bench_engines``.
    """
    device = asked.get("device") or "local"
    phone = device.startswith("adb://")
    if not phone and (tools.benchmark_model is not None or tools.mask is not None):
        raise MeasureError(
            f"--benchmark-model and --taskset are for a phone, got the device {device}", hint="--device adb://SERIAL"
        )
    if not phone and tools.trtexec is None:
        return None
    name = "benchmark_model" if phone else "trtexec"
    if phone and tools.trtexec is not None:
        raise MeasureError("expected a phone or trtexec, got both", where="--trtexec")
    if not phone and device != "local":
        raise MeasureError(
            f"trtexec runs on the machine that it is called on, got the device {device}",
            hint="run this command there, or leave --trtexec out: TensorRT's Python is measured over ssh",
        )
    honoured = {"device", "launches", *(["threads"] if phone else [])}
    refused = [key for key, value in {**asked, "inputs": inputs}.items() if value and key not in honoured]
    if refused:
        raise MeasureError(f"{name} can't honour {', '.join(sorted(refused))}", hint="leave it out")
    launches = asked.get("launches") or LAUNCHES
    if tools.trtexec is not None:
        return bench_engines(files, tools.trtexec, settings=Settings(), launches=launches, out=out, tick=tick)
    return bench_phone(
        files,
        device,
        tools.benchmark_model,
        threads=asked.get("threads") or 1,
        launches=launches,
        mask=tools.mask,
        out=out,
        tick=tick,
    )


def bench_phone(
    files: Sequence[Path],
    device: str,
    binary: Path | None,
    *,
    threads: int,
    launches: int,
    mask: str | None,
    out: Path | None,
    tick: Tick,
) -> dict[str, Any]:
    """Measure .tflite files on the phone ``adb://SERIAL`` with its ``benchmark_model``; a table for ``show``.

    Raises:
        MeasureError: no binary was named, a file isn't there, or not one could be measured.
        DeviceError: the phone can't be used.
    """
    if binary is None:
        raise MeasureError(
            "a phone needs LiteRT's benchmark_model for its CPU",
            where=device,
            hint="name it with --benchmark-model PATH; docs/devices.md says where it comes from",
        )
    _there([*files, binary])
    found = measure_on_phone(
        files, Adb(serial_of(device)), binary, threads=threads, launches=launches, mask=mask, tick=tick
    )
    tool = {**found.tool, "sha256": sha256_file(binary)}
    table = {
        "tool": tool,
        "device": found.provenance["device"],
        "state": [found.provenance["state"], found.provenance["state_after"]],
        "files": [_phone_row(result) for result in found.results],
    }
    _save(table, list(found.to_json()["results"]), out)
    return table


def bench_engines(
    files: Sequence[Path], tool: str, *, settings: Settings, launches: int, out: Path | None, tick: Tick
) -> dict[str, Any]:
    """Measure TensorRT engines here with ``trtexec``; a table for ``show``.

    Raises:
        MeasureError: a file isn't there, trtexec is too old, or not one could be measured.
        RuntimeMissing: no such tool.
    """
    _there(files)
    with tempfile.TemporaryDirectory(prefix="edgewise-") as temporary:
        found = measure_engines(
            files, tool, (out or Path(temporary)) / "trtexec", settings=settings, launches=launches, tick=tick
        )
    table = {
        "tool": {"name": "trtexec", "settings": vars(settings)},
        "device": provenance()["device"],
        "files": [_engine_row(result) for result in found],
    }
    _save(table, [result.to_json() for result in found], out)
    return table


def show(table: dict[str, Any]) -> None:
    """Print either table for a person."""
    print_table(
        ("file", "mean", "p50", "p90", "p95", "p99", "95 % interval", "of", "load", "size"),
        [
            (
                row["name"],
                say.quantity(_value(row["mean_ms"]), "ms"),
                *(say.quantity(_value(row[f"{which}_ms"]), "ms") for which in ("p50", "p90", "p95", "p99")),
                say.span(row["p50_ms"] if row["interval_of"] == "p50" else row["mean_ms"], "ms") or say.NONE,
                row["interval_of"],
                say.quantity(row["load_ms"], "ms"),
                say.size(row["size_bytes"]),
            )
            for row in table["files"]
        ],
    )
    for row in table["files"]:
        for text in ([row["error"]] if row["error"] else []) + [say.flag_words(flag) for flag in row["flags"]]:
            print(f"note: {row['name']}: {text}")


def _phone_row(result: PhoneResult) -> dict[str, Any]:
    loads = sorted(launch.init_us / 1000 for launch in result.launches)
    return {
        **_common(result.name, "litert", result.path, result.size_bytes, len(result.launches), result.flags),
        "error": result.error,
        "interval_of": "mean",
        "mean_ms": _interval(result.mean_ms()),
        "p50_ms": _alone(result.percentile_ms("median")),
        "p90_ms": None,
        "p95_ms": _alone(result.percentile_ms("p95")),
        "p99_ms": None,
        "load_ms": loads[len(loads) // 2] if loads else None,
    }


def _engine_row(result: EngineResult) -> dict[str, Any]:
    quantiles = ("p50", "p90", "p95", "p99")
    intervals = result.percentiles_ms([float(f"0.{name[1:]}") for name in quantiles])
    return {
        **_common(result.name, "tensorrt", result.path, result.size_bytes, len(result.launches), result.flags),
        "error": result.error,
        "interval_of": "p50",
        "version": None if result.version is None else ".".join(map(str, result.version)),
        "settings": result.settings,
        "qps_by_launch": list(result.qps),
        "mean_ms": None,
        **{f"{name}_ms": _interval(found) for name, found in zip(quantiles, intervals, strict=True)},
        "load_ms": None,
    }


def _common(name: str, runtime: str, path: str, size: int, launches: int, flags: Sequence[str]) -> dict[str, Any]:
    digest = sha256_file(Path(path))
    return {
        "name": name,
        "runtime": runtime,
        "path": path,
        "sha256": digest,
        "size_bytes": size,
        "launches": launches,
        "flags": list(flags),
    }


def _interval(found: Interval | None) -> dict[str, float | None] | None:
    """Ends that are endless are said as none."""
    if found is None:
        return None
    return {name: value if math.isfinite(value) else None for name, value in vars(found).items()}


def _alone(value: float | None) -> dict[str, float | None] | None:
    return None if value is None else {"value": value, "low": None, "high": None}


def _value(found: dict[str, Any] | None) -> float | None:
    return None if found is None else found["value"]


def _there(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.is_file():
            raise MeasureError("expected a file, got a folder" if path.is_dir() else "no such file", where=str(path))


def _save(table: dict[str, Any], raw: list[Any], out: Path | None) -> None:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / SAVED).write_text(json.dumps({**table, "raw": raw}, indent=2, allow_nan=False), encoding="utf-8")
