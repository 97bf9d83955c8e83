"""What a device has of what is measured, and what its workers are asked: the same words for every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.bench.config import Bench
from edgewise.bench.devices.base import Device, Worker
from edgewise.bench.process import PROTOCOL
from edgewise.bench.record import FileUnderTest
from edgewise.errors import MeasureError

# Host-side limit of a request; generous, because a device may be slow, but never endless.
LIMIT_S = 300.0


@dataclass(frozen=True)
class There:
    """Where things lie on the device: the files by name, inputs, and the index of the samples to answer. ``padding``:
    the id that inputs are filled up with where they are texts."""

    paths: dict[str, str]
    inputs: str
    index: str
    padding: int | None = None

    def asked(self, file: FileUnderTest, config: Bench) -> dict[str, Any]:
        """What ``load`` and ``first`` of ``file`` are told."""
        return {
            "path": self.paths[file.name],
            "inputs": self.inputs,
            "padding": self.padding,
            **options(file, config),
        }


def sent(
    files: Sequence[FileUnderTest], inputs: Path, index: Path, device: Device, padding: int | None = None
) -> tuple[There, dict[str, str]]:
    """Everything brought to the device; which files could not be read here, and why.

    Raises:
        DeviceError: the device doesn't answer, or has no room.
    """
    paths: dict[str, str] = {}
    failed: dict[str, str] = {}
    for file in files:
        try:
            paths[file.name] = device.put(Path(file.path), beside=beside(file))
        except MeasureError as error:
            failed[file.name] = str(error)
    return There(paths, device.put(inputs), device.put(index), padding), failed


def beside(file: FileUnderTest) -> list[Path]:
    """What must lie beside the main file: OpenVINO's weights."""
    return [Path(file.path).with_suffix(".bin")] if file.runtime == "openvino" else []


def options(file: FileUnderTest, config: Bench) -> dict[str, Any]:
    """How a worker opens ``file``."""
    return {"threads": config.threads, "batch": config.batch, "precision": arithmetic(file)}


def arithmetic(file: FileUnderTest) -> str:
    """What a runtime may use for the file's float operations, as its ``Options.precision``.

    A float32 or int8 file's stay exact float32; bfloat16 is asked for by name, and only who asked for float16 leaves it
    to the runtime. A TensorRT engine has it all fixed when it is built, and refuses to be asked.
    """
    if file.precision == "bfloat16" and file.runtime != "tensorrt":
        return "bfloat16"
    return "default" if file.precision == "float16" or file.runtime == "tensorrt" else "float32"


def import_runtime(worker: Worker, runtime: str) -> dict[str, Any]:
    """Let the worker import the runtime of its file.

    Raises:
        MeasureError: it is missing there, or the worker is of another version than this side.
    """
    reply = worker.ask("import", limit_s=LIMIT_S, runtime=runtime)
    if reply.get("protocol") != PROTOCOL:
        raise MeasureError(f"expected a worker of protocol {PROTOCOL}, got {reply.get('protocol')}", where=worker.file)
    return reply


def open_and_warm(worker: Worker, runtime: str, asked: dict[str, Any], warmup_s: float) -> dict[str, dict[str, Any]]:
    """Import, load, first inference and warm-up; the replies by name. ``asked``: as ``There.asked`` has it.

    Raises:
        MeasureError: the file can't be run, or not as asked.
    """
    imported = import_runtime(worker, runtime)
    loaded = worker.ask("load", limit_s=LIMIT_S, **asked)
    check_settings(worker.file, loaded["settings"], asked)
    first = worker.ask("first", limit_s=LIMIT_S, **asked)
    warm = worker.ask("warmup", limit_s=LIMIT_S + warmup_s, seconds=warmup_s)
    return {"import": imported, "load": loaded, "first": first, "warm": warm}


def check_settings(name: str, settings: dict[str, Any], asked: dict[str, Any]) -> None:
    """Hold what the runtime says it does for the file ``name`` against what it was asked for.

    What it can't say isn't judged, nor what it wasn't asked for.

    Raises:
        MeasureError: it does something else: its times would be another setting's.
    """
    for key in ("threads", "batch", "precision", "streams"):
        want, have = asked.get(key), settings.get(key)
        if want is not None and have is not None and have != want and want != "default":
            raise MeasureError(f"asked for {key} {want}, the runtime says {have}", where=name)
