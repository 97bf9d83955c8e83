"""A probe for anything that can be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.deploy.inspect.base import Probe
from edgewise.errors import MeasureError

if TYPE_CHECKING:
    from torch import nn

SUFFIXES = (".onnx", ".xml", ".tflite")
KNOWN = f"a saved model's folder, a TensorRT bundle, or a file that ends in {', '.join(SUFFIXES)}"


def open_probe(source: Path | nn.Module | Probe, input_shape: tuple[int, ...]) -> Probe:
    """A probe for a module, a folder or a file.

    Args:
        source: a torch module; the folder of a saved model (``architecture.json``); an ``.onnx``, ``.xml`` or
            ``.tflite`` file; a TensorRT bundle (its folder, or its ``manifest.json``), of which the graph is run, by
            ONNX Runtime; or a probe, which is given back.
        input_shape: (C, H, W) or (L, V), what a module in memory is traced with.

    Raises:
        MeasureError: nothing there, of no known kind, or nothing that its runtime can run.
        RuntimeMissing: its runtime isn't installed.
        ArtifactError: a saved model that can't be read.
    """
    if not isinstance(source, Path):
        return _in_memory(source, input_shape)
    if not source.exists():
        raise MeasureError("no such file or folder", where=str(source))
    if source.name == "manifest.json" or (source / "manifest.json").exists():
        return _bundle(source if source.is_file() else source / "manifest.json")
    if source.is_dir():
        return _saved(source)
    if source.suffix == ".onnx":
        from edgewise.deploy.inspect.onnx_probe import OnnxProbe

        return OnnxProbe(source)
    if source.suffix == ".xml":
        from edgewise.deploy.inspect.ov_probe import OvProbe

        return OvProbe(source)
    if source.suffix == ".tflite":
        from edgewise.deploy.inspect.litert_probe import LitertProbe

        return LitertProbe(source)
    raise MeasureError(f"expected {KNOWN}, got {source.suffix or 'no suffix'!r}", where=str(source))


def _in_memory(source: nn.Module | Probe, input_shape: tuple[int, ...]) -> Probe:
    from torch import nn

    if not isinstance(source, nn.Module):
        return source
    from edgewise.deploy.inspect.torch_probe import TorchProbe

    return TorchProbe(source, input_shape)


def _saved(folder: Path) -> Probe:
    from edgewise.compress.saved import ARCHITECTURE, load_model
    from edgewise.deploy.inspect.torch_probe import TorchProbe

    if not (folder / ARCHITECTURE).exists():
        raise MeasureError(f"expected {KNOWN}; this folder has no {ARCHITECTURE}", where=str(folder))
    model, description = load_model(folder)
    return TorchProbe(model, description.input_shape, label=f"{folder.name}, torch")


def _bundle(manifest: Path) -> Probe:
    from edgewise.deploy.inspect.onnx_probe import OnnxProbe

    try:
        told = json.loads(manifest.read_text(encoding="utf-8"))
        main = manifest.parent / str(told["main"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MeasureError(f"not a TensorRT bundle's manifest: {error!r}", where=str(manifest)) from error
    return OnnxProbe(main, f"{manifest.parent.name}/{main.name}, a TensorRT graph in ONNX Runtime")
