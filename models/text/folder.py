"""A checkpoint in Hugging Face form on disk: its config and its tensors. No pickle is opened, no code in it is run.
Torch-free until tensors are read: a plan asks which files there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from edgewise.errors import ModelError, WeightsError
from edgewise.models.config import HuggingFace

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
POOLING = "1_Pooling/config.json"  # what sentence-transformers writes
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
WANTED = (
    CONFIG,
    WEIGHTS,
    INDEX,
    POOLING,
    "model-*.safetensors",
    "tokenizer*.json",
    "vocab.*",
    "special_tokens_map.json",
)


def located(config: HuggingFace) -> Path:
    """The folder itself, or where the hub's own cache has it; fetched if it isn't there.

    Raises:
        ModelError: there is no such folder, or the hub doesn't give it.
    """
    if config.path is not None:
        if not config.path.is_dir():
            raise ModelError("expected a folder in Hugging Face form, got nothing", where=str(config.path), hint=_HINT)
        return config.path
    assert config.hub is not None
    return _fetched(config.hub, config.revision)


_HINT = "check the path; it is relative to the recipe. A name on the hub is said as hub: instead of path:"


def _fetched(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as cause:
        raise ModelError("the hub needs huggingface_hub", where=name, hint="pip install edgewise[text]") from cause
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(WANTED), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        pass  # what was fetched once is used again; a branch that moved is another result
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(WANTED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as cause:
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise ModelError(
            f"the hub doesn't give it: {reason}",
            where=name,
            hint="check name, revision and network, or fetch the folder yourself and give its path",
        ) from cause


def settings(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says.

    Raises:
        ModelError: it is missing, or not a JSON object that names its ``model_type``.
    """
    found = _json(folder / CONFIG, "expected a checkpoint in Hugging Face form, which has a config.json")
    if not isinstance(found.get("model_type"), str):
        raise ModelError(
            "config.json names no model_type",
            where=str(folder / CONFIG),
            hint="save the model again with transformers: model.save_pretrained(folder)",
        )
    return found


def stated_pooling(folder: Path) -> str | None:
    """``mean`` or ``cls`` where sentence-transformers trained it so, else None."""
    if not (folder / POOLING).exists():
        return None
    stated = _json(folder / POOLING, "")
    if stated.get("pooling_mode_mean_tokens"):
        return "mean"
    return "cls" if stated.get("pooling_mode_cls_token") else None


def parts(folder: Path) -> list[Path]:
    """The files that a net is made from, in a fixed order: config, pooling, weights.

    Raises:
        ModelError: no config.json.
        WeightsError: no weights, weights as a pickle alone, or a shard is missing.
    """
    settings(folder)
    return [path for path in (folder / CONFIG, folder / POOLING) if path.exists()] + _shards(folder)


def tensor_names(folder: Path) -> list[str]:
    """The names of all tensors, without reading them.

    Raises:
        WeightsError: as :func:`parts`, or a file is damaged.
    """
    found: list[str] = []
    for path in _shards(folder):
        try:
            with safe_open(path, framework="pt") as file:
                found += file.keys()
        except (OSError, SafetensorError) as cause:
            raise WeightsError(
                f"not a whole safetensors file: {cause}", where=str(path), hint="fetch it again"
            ) from cause
    return found


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors by name, as they are stored.

    Raises:
        WeightsError: as :func:`parts`, or a file is damaged.
    """
    from edgewise.models.weights import read_safetensors

    found: dict[str, Tensor] = {}
    for path in _shards(folder):
        found |= read_safetensors(path)
    return found


def _shards(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        pickles = [name for name in PICKLES if (folder / name).exists()]
        if pickles:
            raise WeightsError(
                f"the weights are there as {pickles[0]} alone. A pickle can run code when it is read, so it was not",
                where=str(folder),
                hint="save them as safetensors, where you trust them: AutoModel.from_pretrained(folder)"
                ".save_pretrained(folder); or take a revision that has model.safetensors",
            )
        raise WeightsError("no model.safetensors in it", where=str(folder), hint="fetch the folder again, whole")
    where = folder / INDEX
    named = _json(where, "").get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise WeightsError("expected a weight_map: tensor -> file", where=str(where), hint="fetch the folder again")
    files = sorted(set(named.values()))
    for name in files:
        if Path(name).name != name or not (folder / name).is_file():
            raise WeightsError(
                f"names {name!r}, which is not beside it", where=str(where), hint="fetch the folder again"
            )
    return [folder / name for name in files]


def _json(path: Path, wanted: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{wanted}; there is none", where=str(path), hint=_HINT) from None
    except (OSError, ValueError) as cause:
        raise ModelError(f"not a JSON file: {cause}", where=str(path), hint="fetch the folder again") from cause
    if not isinstance(found, dict):
        raise ModelError(f"expected a JSON object, got {type(found).__name__}", where=str(path), hint="fetch it again")
    return found
