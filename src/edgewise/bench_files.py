"""``edgewise bench``: files from anywhere, measured for speed, memory and size; no labels, so no accuracy."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise import bench_scenarios
from edgewise.artifact import sha256_file
from edgewise.bench import format as say
from edgewise.bench.ask import LIMIT_S, arithmetic, beside, import_runtime
from edgewise.bench.config import Bench
from edgewise.bench.devices.base import Device, open_device, require_runtimes
from edgewise.bench.measure import measure
from edgewise.bench.numbers import load_ms, peak_memory, qps, samples_of
from edgewise.bench.record import FileUnderTest, Results
from edgewise.bench.stats import bootstrap_percentiles, percentile_upper, sample_floor
from edgewise.errors import DataError, MeasureError
from edgewise.output import print_table
from edgewise.progress import Tick, silent
from edgewise.reported import write_about

RUNTIMES = {".onnx": "onnxruntime", ".xml": "openvino", ".tflite": "litert", ".engine": "tensorrt"}
INPUTS = "float32 (N, C, H, W) or int64 (N, L)"
SAMPLES = 32  # random inputs: enough that caches don't learn them


def measure_files(
    paths: Sequence[Path], inputs: Path | None, config: Bench, out: Path | None, tick: Tick = silent
) -> Results:
    """Measure files, each in the runtime of its suffix; what was measured stays in ``out``, if given.

    Args:
        paths: ``.onnx``, ``.xml`` (its ``.bin`` beside it), ``.tflite`` or ``.engine``, each with one input.
        inputs: ``.npy`` float32 (N, C, H, W), or token ids int64 (N, L), for all files, each run at that length; random
            numbers by default.
        config: how to measure, and on which device.
        out: a folder for the raw measurements; a temporary one by default.
        tick: told of the progress.

    Raises:
        MeasureError: no such file, an unknown suffix, or a file that can't run.
        RuntimeMissing: a file's runtime isn't installed.
        DataError: the inputs don't fit.
        DeviceError: the device can't be used, or has no such runtime.
    """
    with prepared(paths, inputs, config, out) as (files, source, folder, device):
        count = len(np.load(source, mmap_mode="r"))
        results = measure(
            files,
            source,
            np.zeros(count, np.int64),
            [str(i) for i in range(count)],
            config,
            folder,
            score=no_score,
            tick=tick,
            device=device,
        )
        write_about(folder, metric=None)
        return results


@contextmanager
def prepared(
    paths: Sequence[Path], inputs: Path | None, config: Bench, out: Path | None
) -> Iterator[tuple[list[FileUnderTest], Path, Path, Device]]:
    """What ``measure`` wants: the files, their inputs as a file, a folder, and the device, open. Raises what
    ``measure_files`` does."""
    files = _files(paths)
    with results_folder(out) as folder, open_device(config.device) as device:
        require_runtimes(device, [file.runtime for file in files], all_of=True)
        source = folder / "inputs.npy"
        array = _random_inputs(files, device) if inputs is None else read_inputs(inputs)
        source.unlink(missing_ok=True)  # it may be a second name of a run's own inputs
        np.save(source, array)
        yield files, source, folder, device


def summary(results: Results) -> dict[str, Any]:
    """What was measured, as JSON: times in ms with 95 % intervals, sizes in bytes."""
    return {
        "config": results.config,
        "measured_on": results.provenance.get("measured_on", "local"),
        "device": results.provenance["device"],
        "files": [_row(results, file) for file in results.files],
        "scenarios": bench_scenarios.table(results),
    }


def show(table: dict[str, Any]) -> None:
    """Print ``summary`` for a person."""
    print_table(
        ("file", "runtime", "p50", "95 % interval", "p90", "p99", "load", "throughput", "peak memory", "size"),
        [
            (
                row["name"],
                row["runtime"],
                _percentile(row, 0.5),
                say.span(row["p50_ms"], "ms") or say.NONE,
                _percentile(row, 0.9),
                _percentile(row, 0.99),
                say.quantity(row["load_ms"], "ms"),
                _said(row["qps"], "per s"),
                say.quantity(row["peak_memory_bytes"], "bytes"),
                say.size(row["size_bytes"]),
            )
            for row in table["files"]
        ],
    )
    for row in table["files"]:
        for text in ([row["error"]] if row["error"] else []) + [say.flag_words(flag) for flag in row["flags"]]:
            print(f"note: {row['name']}: {text}")
    bench_scenarios.show(table["scenarios"])


def _files(paths: Sequence[Path]) -> list[FileUnderTest]:
    names = [path.name for path in paths]
    files = []
    for path in paths:
        if not path.is_file():
            raise MeasureError("expected a file, got a folder" if path.is_dir() else "no such file", where=str(path))
        if path.suffix not in RUNTIMES:
            raise MeasureError(f"expected one of {', '.join(RUNTIMES)}, got {path.suffix!r}", where=str(path))
        runtime = RUNTIMES[path.suffix]
        parts = [part for part in (path, path.with_suffix(".bin")) if path == part or runtime == "openvino"]
        for part in parts:
            if not part.is_file():
                raise MeasureError("OpenVINO's weights are missing", where=str(part), hint="copy the .bin along")
        files.append(
            FileUnderTest(
                name=path.name if names.count(path.name) == 1 else str(path),
                runtime=runtime,
                precision="float32",  # what is float in the file is computed exactly; its INT8 parts stay INT8
                role="candidate",
                path=str(path.resolve()),
                size_bytes=sum(part.stat().st_size for part in parts),
                sha256=sha256_file(path),
                weights_sha256=sha256_file(parts[1]) if parts[1:] else None,
            )
        )
    return files


@contextmanager
def results_folder(out: Path | None) -> Iterator[Path]:
    """``out``, made where it isn't there; a temporary one for None.

    Raises:
        DataError: ``out`` is the folder of a run.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
            yield Path(folder)
    elif (out / "run.json").exists():
        raise DataError("this folder is a run, with measurements of its own", where=str(out), hint="name another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        yield out


def _random_inputs(files: Sequence[FileUnderTest], device: Device) -> NDArray[np.float32]:
    """(SAMPLES, C, H, W) normal numbers of the shape that all files want. A file that can't be opened has no say, and
    fails alone when it is measured."""
    shapes, errors = {}, []
    for file in files:
        try:
            shapes[file.name] = _input_shape(file, device)
        except MeasureError as error:
            errors.append(error)
    if not shapes:
        raise errors[0]
    if len(set(shapes.values())) > 1:
        text = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise DataError(f"expected files of one input shape, got {text}", hint="measure them one by one")
    shape = next(iter(shapes.values()))
    return np.random.default_rng(0).standard_normal((SAMPLES, *shape), dtype=np.float32)


def _input_shape(file: FileUnderTest, device: Device) -> tuple[int, ...]:
    """Asked of the runtime on the device: this machine may have none."""
    path = device.put(Path(file.path), beside=beside(file))
    with closing(device.worker(file.name, 1)) as worker:
        import_runtime(worker, file.runtime)
        asked = {"path": path, "threads": 1, "batch": 1, "precision": arithmetic(file)}
        specs = worker.ask("load", limit_s=LIMIT_S, **asked)["inputs"]
    if len(specs) != 1 or specs[0][2] not in ("float32", "int64"):
        text = ", ".join(f"{name} {dtype} {tuple(shape)}" for name, shape, dtype in specs)
        raise MeasureError(f"expected one input, float32 or int64, got {text}", where=file.path)
    if specs[0][2] == "int64":
        raise MeasureError(
            "it takes token ids, and which there are isn't in the file",
            where=file.path,
            hint="give inputs, int64 (N, L), with --inputs X.npy",
        )
    sizes = specs[0][1][1:]
    known = tuple(size for size in sizes if size is not None)
    if len(known) < len(sizes):
        raise MeasureError(
            f"its input {tuple(specs[0][1])} is open", where=file.path, hint="give inputs with --inputs X.npy"
        )
    return known


def read_inputs(path: Path) -> NDArray[Any]:
    """The inputs of an ``.npy`` file: float32 (N, C, H, W), or token ids int64 (N, L).

    Raises:
        DataError: not there, not such a file, or of another type.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError("no such file", where=str(path)) from None
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"expected a .npy file of {INPUTS}: {error}", where=str(path)) from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"expected {INPUTS}, got an .npz", where=str(path))
    known = array.dtype == np.float32 or (array.dtype == np.int64 and array.ndim == 2)
    if not known or array.ndim < 2 or not len(array):
        raise DataError(f"expected {INPUTS}, got {array.dtype} {array.shape}", where=str(path))
    return array


def no_score(outputs: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float32]:
    """There are no labels: every sample gets 0, and nothing shows it."""
    return np.zeros(targets.shape, np.float32)


def _row(results: Results, file: FileUnderTest) -> dict[str, Any]:
    found = results.measurements[file.name]
    row: dict[str, Any] = {
        "name": file.name,
        "runtime": file.runtime,
        "path": file.path,
        "sha256": file.sha256,
        "size_bytes": file.size_bytes,
        "launches": len(found.launches),
        "flags": list(found.flags),
        "error": found.error,
        **dict.fromkeys(("runs", "p50_ms", "p90_ms", "p99_ms", "qps", "load_ms", "peak_memory_bytes")),
        **dict.fromkeys(("p90_upper_ms", "p99_upper_ms")),
    }
    if found.launches:
        samples = samples_of(found)
        intervals = bootstrap_percentiles(samples, [0.5, 0.9, 0.99])
        for key, interval in zip(("p50_ms", "p90_ms", "p99_ms"), intervals, strict=True):
            row[key] = interval and {name: value / 1e6 for name, value in vars(interval).items()}
        pooled = np.concatenate([block for launch in samples for block in launch])
        for key, q in (("p90_upper_ms", 0.9), ("p99_upper_ms", 0.99)):
            upper = percentile_upper(pooled, q)
            row[key] = None if upper is None else upper / 1e6
        row["runs"] = sum(len(block) for launch in samples for block in launch)
        row["qps"] = vars(qps(found)[0])
        row["load_ms"] = float(np.median(load_ms(found)))
        row["peak_memory_bytes"] = peak_memory(found)
    return row


def _percentile(row: dict[str, Any], q: float) -> str:
    """A percentile, or how many runs it takes to tell it."""
    found = row[f"p{100 * q:.0f}_ms"]
    if found is None and row["runs"]:
        return f"{say.NONE} (needs >= {sample_floor(q):,})"
    return _said(found, "ms")


def _said(interval: dict[str, float] | None, unit: str) -> str:
    return say.quantity(None if interval is None else interval["value"], unit)
