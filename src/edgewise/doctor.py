"""``edgewise doctor``: what works on this machine, and how to get the rest. Never imports torch."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import edgewise

# What each runtime is measured with, what its files are made with, and how to get both.
_RUNTIMES = {
    "onnxruntime": ("onnxruntime", ("onnx",), "pip install edgewise"),
    "openvino": ("openvino", ("openvino",), "pip install 'edgewise[openvino]'"),
    "litert": ("ai-edge-litert", ("litert_torch", "ai_edge_quantizer"), "pip install 'edgewise[litert]'"),
    "tensorrt": (
        "tensorrt",
        ("onnx",),
        "nothing, if bundles are all you need: engines are built and timed on the device, "
        "where TensorRT comes with JetPack or from NVIDIA; pip install 'edgewise[rtx]' has bundles checked by "
        "TensorRT-RTX's builder, which needs no GPU",
    ),
}
_PACKAGES = (
    *("torch", "nncf", "torch-pruning", "lightning-fabric", "onnx", "onnxscript", "numpy", "pydantic"),
    "tensorrt-rtx-cu13-libs",
)
# Instructions that decide how fast INT8 and low-precision floats are.
_INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI (int8)",
    "avx512_vnni": "AVX-512 VNNI (int8)",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_fp16": "AVX-512 FP16",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX bf16",
    "asimddp": "NEON dot product (int8)",
    "i8mm": "NEON int8 matrix multiply",
    "asimdhp": "NEON float16",
    "sve": "SVE",
}


@dataclass(frozen=True)
class RuntimeState:
    """``runs``: files can be measured here. ``makes``: files for it can be made here."""

    name: str
    runs: bool
    makes: bool
    version: str | None
    reason: str | None
    get: str | None


@dataclass(frozen=True)
class Health:
    """What ``doctor`` found. ``device`` and ``versions`` are as every measurement records them."""

    edgewise: str
    device: dict[str, Any]
    versions: dict[str, str]
    instructions: list[str]
    runtimes: list[RuntimeState]
    packages: dict[str, str | None]
    folders: dict[str, dict[str, Any]]
    advice: list[str]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def examine() -> Health:
    """Look at this machine; nothing is installed or changed."""
    from edgewise.bench.provenance import provenance

    here = provenance()
    device = here["device"]
    return Health(
        edgewise=edgewise.__version__,
        device=device,
        versions=here["versions"],
        instructions=[text for flag, text in _INSTRUCTIONS.items() if flag in device["flags"]],
        runtimes=[_runtime(name) for name in _RUNTIMES],
        packages={name: _version(name) for name in _PACKAGES},
        folders={"working folder": _folder(Path.cwd()), "temporary folder": _folder(Path(tempfile.gettempdir()))},
        advice=advise(device),
    )


@dataclass(frozen=True)
class DeviceHealth:
    """What ``doctor --device`` found there. ``runtimes``: by name, None where files can be measured, else why not."""

    name: str
    device: dict[str, Any]
    state: dict[str, Any]
    versions: dict[str, str]
    cpus: int
    instructions: list[str]
    runtimes: dict[str, str | None]
    advice: list[str]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def examine_device(text: str) -> DeviceHealth:
    """Look at a device: what a measurement there would meet.

    Raises:
        DeviceError: it can't be reached, is in use, or has no Python for the agent.
    """
    from edgewise.bench.devices.base import open_device

    with open_device(text) as device:
        there, cpus = device.probe(), device.cpus()
        runtimes = device.runtimes(list(_RUNTIMES))
    about = there["device"]
    return DeviceHealth(
        name=text,
        device=about,
        state=there["state"],
        versions=there["versions"],
        cpus=cpus,
        instructions=[words for flag, words in _INSTRUCTIONS.items() if flag in about["flags"]],
        runtimes=runtimes,
        advice=advise(about),
    )


def show_device(health: DeviceHealth) -> None:
    """Print it for a person."""
    from edgewise.output import print_table

    device, versions = health.device, health.versions
    memory = "" if device["memory_bytes"] is None else f", {device['memory_bytes'] / 2**30:.1f} GiB"
    print(f"{health.name}: Python {versions['python']}, {device['os']}, kernel {device['kernel']}")
    print(f"{device['cpu']}: {health.cpus} cores to use{memory}")
    print(f"instructions: {', '.join(health.instructions) or 'unknown'}\n")
    rows = [
        (name, "yes" if why is None else "no", versions.get(_RUNTIMES[name][0], "-"))
        for name, why in health.runtimes.items()
    ]
    print_table(("runtime", "runs there", "version"), rows)
    for why in health.runtimes.values():
        if why is not None:
            print(f"\n{why}")
    for text in health.advice:
        print(f"\nnote: {text}")
    sys.stdout.flush()


def _runtime(name: str) -> RuntimeState:
    from edgewise.deploy import runtimes

    package, makers, how = _RUNTIMES[name]
    reason = runtimes.get(name).missing()
    without = [module for module in makers if find_spec(module) is None]
    return RuntimeState(
        name=name,
        runs=reason is None,
        makes=not without,
        version=_version(package),
        reason=reason or (f"making files for it needs {', '.join(without)}" if without else None),
        get=how if reason or without else None,
    )


def advise(device: Mapping[str, Any]) -> list[str]:
    """What about a device deserves a word before anything is measured on it."""
    flags, cores, limit = set(device["flags"]), _cores(device), device["cpu_limit"]
    advice = []
    if limit is not None and limit < cores:
        advice.append(f"this container may use {limit:g} of {cores} cores: bench with no more threads than that")
    if "avx2" in flags and not flags & {"avx_vnni", "avx512_vnni", "amx_int8"}:
        advice.append("no VNNI here: INT8 gains less than on newer x86 CPUs; judge it on the CPU you ship to")
    if "asimd" in flags and not flags & {"asimddp", "i8mm"}:
        advice.append("no dot product instructions here: INT8 gains less than on ARMv8.2 and later")
    if "amx_bf16" in flags:
        advice.append("this CPU has AMX: left alone, OpenVINO takes bf16 for float32; the bench holds it to float32")
    return advice


def _cores(device: Mapping[str, Any]) -> int:
    """Cores that this process may run on."""
    return len(device["affinity"] or ()) or device["cores"] or 1


def _folder(path: Path) -> dict[str, Any]:
    return {"path": str(path), "writable": _writable(path), "free_bytes": shutil.disk_usage(path).free}


def _writable(path: Path) -> bool:
    # Asking is not enough: a read-only or full disk says yes to os.access.
    try:
        with tempfile.NamedTemporaryFile(dir=path) as file:
            file.write(b"edgewise")
            file.flush()
    except OSError:
        return False
    return True


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def show(health: Health) -> None:
    """Print it for a person."""
    from edgewise.output import print_table

    device = health.device
    limit = "" if device["cpu_limit"] is None else f", limited to {device['cpu_limit']:g}"
    memory = "" if device["memory_bytes"] is None else f", {device['memory_bytes'] / 2**30:.1f} GiB"
    print(f"edgewise {health.edgewise}, Python {health.versions['python']}, {device['os']}, kernel {device['kernel']}")
    print(f"{device['cpu']}: {_cores(device)} cores{limit}{memory}")
    print(f"instructions: {', '.join(health.instructions) or 'unknown'}")
    for name, about in health.folders.items():
        state = "writable" if about["writable"] else "NOT WRITABLE"
        print(f"{name} {about['path']}: {state}, {about['free_bytes'] / 2**30:.1f} GiB free")
    print()
    yes = {True: "yes", False: "no"}
    print_table(
        ("runtime", "makes files", "runs here", "version"),
        [(r.name, yes[r.makes], yes[r.runs], r.version or "-") for r in health.runtimes],
    )
    print()
    print_table(("package", "version"), [(name, version or "-") for name, version in health.packages.items()])
    for runtime in health.runtimes:
        if runtime.get:
            print(f"\n{runtime.name}: {runtime.reason}\n  next: {runtime.get}")
    for text in health.advice:
        print(f"\nnote: {text}")
    sys.stdout.flush()
