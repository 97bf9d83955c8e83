"""Training state in one safetensors file: tensors by name, everything else as JSON in its header. No pickle.

A file is written beside and renamed, so that a killed process leaves the last whole checkpoint.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from edgewise.errors import ArtifactError

Others = dict[str, dict[str, Tensor]]
"""More tensors to keep, by group and name."""


Captured = tuple[dict[str, Tensor], dict[str, str]]
"""A state as it was: tensors, and what else there is, as JSON texts."""


def capture(
    model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any], others: Others | None = None
) -> Captured:
    """A copy in memory of weights, optimizer state, ``progress`` (JSON) and ``others``."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for group, values in (others or {}).items():
        tensors |= {f"other.{group}.{name}": value for name, value in values.items()}
    scalars: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                scalars[f"{index}.{name}"] = value
    # Clones: tied tensors share storage, which the format refuses.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return copies, {"progress": json.dumps(progress), "scalars": json.dumps(scalars)}


def write(path: Path, captured: Captured) -> None:
    """Write it to ``path``: beside, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        file.write(to_bytes(*captured))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], Others]:
    """Put the state of ``path`` back into ``model`` and ``optimizer``; returns ``progress`` and ``others``.

    Raises:
        ArtifactError: the file isn't a checkpoint of this model.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        progress: dict[str, Any] = json.loads(header["progress"])
        scalars = json.loads(header["scalars"])
        model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
        groups = optimizer.state_dict()["param_groups"]
        state: dict[int, dict[str, Any]] = {}
        entries = [(n.removeprefix("optimizer."), t) for n, t in tensors.items() if n.startswith("optimizer.")]
        for name, value in [*entries, *scalars.items()]:
            number, key = name.split(".", 1)
            state.setdefault(int(number), {})[key] = value
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, kept in state.items():
            kept.update({key: _laid_as(parameters[index], value) for key, value in kept.items()})
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        others: Others = defaultdict(dict)
        for name, value in tensors.items():
            if name.startswith("other."):
                _, group, rest = name.split(".", 2)
                others[group][rest] = value
    except (SafetensorError, KeyError, IndexError, ValueError, RuntimeError, OSError, TypeError) as error:
        raise ArtifactError(
            f"not a checkpoint of this training run ({error})", where=str(path), hint="delete it to start over"
        ) from error
    return progress, others


def _laid_as(parameter: Tensor, value: Any) -> Any:
    """What the optimizer keeps of each weight, in the weight's own memory layout, such as channels-last: a fused step
    goes through both by their places in memory."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
