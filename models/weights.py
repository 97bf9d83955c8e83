"""Weights files at the door: tensors only, of this very architecture, and finite."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from edgewise.errors import WeightsError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel, and of torch.compile


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill ``model`` from a ``.pth``, ``.pt`` or ``.safetensors`` file; all of it, or nothing and an error.

    A ``{"state_dict": …}`` wrapper and a ``module.`` prefix are taken off. Code in a file is refused and never run.

    Raises:
        WeightsError: the file is missing, cut short, holds code, holds other tensors than ``model`` (missing,
            unexpected, of another shape or type), or NaN or infinity.
    """
    where = str(path)
    given = _unwrap(_read(path), where)
    expected = model.state_dict()
    given = _strip_prefixes(given, expected)
    # Checkpoints from before torch 0.4.1 don't count batches; the count is not used with a fixed momentum.
    given.update({k: v for k, v in expected.items() if k.endswith(".num_batches_tracked") and k not in given})
    check_tensors(given, where)
    _check_match(given, expected, where)
    check_finite(given, where)
    model.load_state_dict(given)


def _read(path: Path) -> object:
    """What the file holds, by its content and not by its name."""
    where = str(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise WeightsError("no such file", where=where, hint="check the path; it is relative to the recipe") from None
    except OSError as cause:
        raise WeightsError(f"can't be read: {cause.strerror or cause}", where=where) from cause
    if not content:
        raise WeightsError("the file is empty", where=where, hint="fetch or save it again")
    if path.suffix == ".safetensors" or content[8:9] == b"{":
        return _safetensors(content, where)
    return _read_torch(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name, as they are stored.

    Raises:
        WeightsError: it can't be read, or is no whole safetensors file.
    """
    try:
        return _safetensors(path.read_bytes(), str(path))
    except OSError as cause:
        raise WeightsError(f"can't be read: {cause.strerror or cause}", where=str(path)) from cause


def _safetensors(content: bytes, where: str) -> dict[str, Tensor]:
    try:
        return load_safetensors(content)
    except (SafetensorError, ValueError, KeyError) as cause:
        raise WeightsError(
            f"not a whole safetensors file: {cause}", where=where, hint="fetch or save it again"
        ) from cause


def _read_torch(path: Path) -> object:
    where = str(path)
    try:
        with warnings.catch_warnings():
            # torch warns about TorchScript archives and old formats before it refuses them; the error says it.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as cause:  # arbitrary bytes: the unpickler fails in many ways
        text = str(cause)
        # The two sentences with which torch's restricted unpickler names what it would not import.
        code = re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", text)
        if code:
            raise WeightsError(
                f"holds more than tensors, such as a whole model or a trainer's state: {code[1]}. "
                "A pickle can run code when it is read, so nothing in it was",
                where=where,
                hint="save the tensors alone, from code you trust: torch.save(model.state_dict(), path)",
            ) from cause
        if "TorchScript" in text:
            raise WeightsError(
                "a TorchScript archive holds code",
                where=where,
                hint="save the tensors alone: torch.save(torch.jit.load(path).state_dict(), other_path)",
            ) from cause
        # The unpickler's own reason comes last; what torch says before it is advice to read the file unsafely.
        reason = text.rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        raise WeightsError(
            f"not a whole torch or safetensors file ({reason or type(cause).__name__}): cut short, or another kind of "
            "pickle, of which nothing was run",
            where=where,
            hint="fetch it again, or save it again with torch.save(model.state_dict(), path)",
        ) from cause


def _unwrap(found: object, where: str) -> dict[str, Tensor]:
    """The state dict, out of the wrappers that training scripts put around it."""
    for _ in range(3):
        if not isinstance(found, Mapping):
            break
        inner = next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping):
        raise WeightsError(
            f"expected a state dict (name -> tensor), got {type(found).__name__}",
            where=where,
            hint="save it with torch.save(model.state_dict(), path)",
        )
    if not any(isinstance(value, Tensor) for value in found.values()):
        names = ", ".join(map(str, list(found)[:6])) or "nothing"
        raise WeightsError(
            f"expected a state dict (name -> tensor), got no tensor, but: {names}",
            where=where,
            hint=f"wrappers that are looked into: {', '.join(WRAPPERS)}",
        )
    return {str(key): value for key, value in found.items()}


def _strip_prefixes(given: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take a wrapper module's prefix off, where every key has it and the model's own keys don't."""
    for _ in range(2):  # torch.compile around DistributedDataParallel, or the other way
        for prefix in PREFIXES:
            ours = all(key.startswith(prefix) for key in expected)
            if given and not ours and all(key.startswith(prefix) for key in given):
                given = {key.removeprefix(prefix): value for key, value in given.items()}
    return given


def check_tensors(given: Mapping[str, object], where: str) -> None:
    """All must be dense tensors.

    Raises:
        WeightsError: one is not.
    """
    for key, value in given.items():
        if not isinstance(value, Tensor):
            raise WeightsError(f"{key} is a {type(value).__name__}, not a tensor", where=where)
        if value.is_quantized or value.layout != torch.strided or value.is_meta:
            raise WeightsError(
                f"{key} is a quantized, sparse or meta tensor; expected dense numbers",
                where=where,
                hint="give the float model's weights",
            )


def _check_match(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    missing = [key for key in expected if key not in given]
    unexpected = [key for key in given if key not in expected]
    shared = [key for key in expected if key in given]
    misshapen = [key for key in shared if given[key].shape != expected[key].shape]
    kinds = [key for key in shared if given[key].is_floating_point() != expected[key].is_floating_point()]
    if not (missing or unexpected or misshapen or kinds):
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(expected)} tensors missing ({few(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected ({few(unexpected)})")
    if misshapen:
        shapes = [f"{k}: the file has {tuple(given[k].shape)}, the model {tuple(expected[k].shape)}" for k in misshapen]
        parts.append(f"{len(misshapen)} of another shape ({few(shapes, '; ')})")
    if kinds:
        types = [f"{k}: the file has {given[k].dtype}, the model {expected[k].dtype}" for k in kinds]
        parts.append(f"{len(kinds)} of another type ({few(types, '; ')})")
    hint = "these are weights of another architecture: check the model's kind, depth and width in the recipe"
    if misshapen and not (missing or unexpected or kinds) and _is_classifier(misshapen, given, expected):
        file_classes, classes = given[misshapen[0]].shape[0], expected[misshapen[0]].shape[0]
        hint = (
            f"the file's classifier tells {file_classes} classes apart, the task has {classes}: "
            f"give weights trained on these {classes} classes"
        )
    raise WeightsError("; ".join(parts), where=where, hint=hint)


def _is_classifier(misshapen: list[str], given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether all that differs is the output count of the model's last layer."""
    layers = {key.rpartition(".")[0] for key in misshapen}
    last = list(expected)[-1].rpartition(".")[0]
    return layers == {last} and all(given[key].shape[1:] == expected[key].shape[1:] for key in misshapen)


def check_finite(given: Mapping[str, Tensor], where: str) -> None:
    """No number may be NaN or infinite.

    Raises:
        WeightsError: one is.
    """
    bad = [key for key, value in given.items() if not torch.isfinite(value).all()]
    if bad:
        raise WeightsError(
            f"NaN or infinity in {len(bad)} of {len(given)} tensors ({few(bad)})",
            where=where,
            hint="the training that made this file diverged: take an earlier checkpoint",
        )


def few(names: list[str], separator: str = ", ", limit: int = 3) -> str:
    """The first of ``names``, and how many more there are."""
    more = f"{separator}… {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more
