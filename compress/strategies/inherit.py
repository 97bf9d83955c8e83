"""Start the student from the teacher's own layers, as DistilBERT does (arXiv 1910.01108).

Tensors are matched by name. Where both nets have a row of numbered blocks at the same place, student block m of M takes
teacher block g(m) of N, blocks of the same shapes among themselves: the block that opens a stage of a ResNet takes
the opening one, the others share out the rest. BatchNorm's statistics come along. A factorised table of words takes the
nearest one of its rank.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from edgewise.compress.attention import attention_of
from edgewise.compress.config import Inherit
from edgewise.compress.layers import chosen
from edgewise.errors import ModelError
from edgewise.models.text.bert import Embeddings

WHERE = "inherit"

_CHANNELS_IN_AND_OUT = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def inherit(student: nn.Module, teacher: nn.Module, config: Inherit) -> list[str]:
    """Copy the teacher's tensors into ``student``, all that have a counterpart, or none and an error.

    With ``slice`` a narrower student takes the first of the teacher's channels, and of its attention heads: a start for
    training, not the same function.

    Args:
        student: changed in place.
        teacher: read only.
        config: which blocks are taken, and whether channels may be cut.

    Returns:
        The names of the student's tensors that were copied.

    Raises:
        ModelError: nothing fits, a block has no counterpart, or shapes differ.
    """
    ours, theirs = student.state_dict(), teacher.state_dict()
    names = _Names(student, teacher, config.map)
    sources = _factors(student, teacher)
    unfit: list[str] = []
    for name, target in ours.items():
        if name in sources:
            continue
        source_name = names.of(name)
        if source_name not in theirs:
            continue
        source = theirs[source_name]
        heads = _fused_heads(name, student), _fused_heads(source_name, teacher)
        try:
            if None not in heads and heads[0] != heads[1]:
                raise ValueError(f"heads of {heads[0]} channels from heads of {heads[1]}")
            if source.shape != target.shape:
                if not config.slice:
                    raise ValueError("another shape")
                source = _first_channels(student, name, target, source, fused=None not in heads)
            sources[name] = source
        except ValueError as error:
            unfit.append(f"{name} {tuple(target.shape)} from {source_name} {tuple(source.shape)}: {error}")
    if unfit:
        raise ModelError(
            f"{len(unfit)} of the student's {len(ours)} tensors don't fit the teacher's, the first: {unfit[0]}",
            where=WHERE,
            hint="use a student of the same width" + ("" if config.slice else ", or slice: true where it is narrower"),
        )
    if not sources:
        raise ModelError(
            f"no tensor of the student ({next(iter(ours), 'it has none')}, …) has its name in the teacher",
            where=WHERE,
            hint="a student of the teacher's family can inherit; leave this stage out for another",
        )
    with torch.no_grad():
        for name, source in sources.items():
            ours[name].copy_(source)
    return list(sources)


def _factors(student: nn.Module, teacher: nn.Module) -> dict[str, Tensor]:
    """Where the student's table of words is two matrices and the teacher's one, (V, D): the two of rank E whose product
    is nearest to it, from the eigenvectors of its Gram matrix (Eckart and Young, 1936)."""
    theirs = dict(teacher.named_modules())
    found: dict[str, Tensor] = {}
    for name, ours in student.named_modules():
        other = theirs.get(name)
        if not isinstance(ours, Embeddings) or not isinstance(other, Embeddings):
            continue
        if ours.project is None or ours.projects_sum or other.project is not None:
            continue
        table = other.words.weight.detach().double()
        if ours.words.remap is not None or other.words.remap is not None or len(table) != len(ours.words.weight):
            continue
        if table.shape[1] != ours.project.out_features:
            continue
        vectors = torch.linalg.eigh(table.T @ table).eigenvectors.flip(1)[:, : ours.words.embedding_dim]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        vectors = vectors * largest.sign()  # a direction has two signs: the same one everywhere
        found[f"{name}.words.weight"] = (table @ vectors).float()
        found[f"{name}.project.weight"] = vectors.float()
        found[f"{name}.project.bias"] = torch.zeros_like(ours.project.bias)
    return found


class _Names:
    """The teacher's name for each of the student's tensors; ``kind`` is how blocks are mapped."""

    def __init__(self, student: nn.Module, teacher: nn.Module, kind: str) -> None:
        self.student, self.teacher = dict(student.named_modules()), dict(teacher.named_modules())
        self.kind = kind
        self.known: dict[str, dict[str, str]] = {}

    def of(self, name: str) -> str:
        """Walk down both nets, each numbered child by the map of its row."""
        here, there = "", ""
        for part in name.split("."):
            row = self._row(here, there)
            here, there = f"{here}.{part}".lstrip("."), f"{there}.{row.get(part, part)}".lstrip(".")
        return there

    def _row(self, here: str, there: str) -> dict[str, str]:
        """Student child -> teacher child, where both modules are rows of numbered blocks; empty elsewhere."""
        if here not in self.known:
            self.known[here] = self._mapped(here, self.student.get(here), self.teacher.get(there))
        return self.known[here]

    def _mapped(self, here: str, ours: nn.Module | None, theirs: nn.Module | None) -> dict[str, str]:
        row = nn.Sequential | nn.ModuleList
        if not isinstance(ours, row) or not isinstance(theirs, row) or len(ours) == len(theirs):
            return {}
        result: dict[str, str] = {}
        alike = _alike(theirs)
        for place, group in enumerate(_alike(ours)):
            if place >= len(alike):
                raise ModelError(
                    f"block {here}.{group[0]} is like none of the teacher's {len(theirs)} blocks there",
                    where=WHERE,
                    hint="a student with fewer blocks than the teacher can inherit",
                )
            try:
                places = chosen(self.kind, len(group), len(alike[place]))
            except ModelError as error:
                raise ModelError(f"{here}: {error.message}", where=WHERE, hint=error.hint) from error
            result |= {block: alike[place][index] for block, index in zip(group, places, strict=True)}
        return result


def _alike(row: nn.Module) -> list[list[str]]:
    """The children's names, those of the same tensors and shapes together, in order of appearance; those without
    tensors (activations, dropped blocks) left out."""
    groups: dict[object, list[str]] = defaultdict(list)
    for name, block in row.named_children():
        if tensors := block.state_dict():
            groups[tuple((key, tuple(tensor.shape)) for key, tensor in tensors.items())].append(name)
    return list(groups.values())


def _first_channels(student: nn.Module, name: str, target: Tensor, source: Tensor, *, fused: bool) -> Tensor:
    """The part of the teacher's tensor that a narrower student takes.

    Raises:
        ValueError: the student is wider, or something else than channels differs.
    """
    owner = student.get_submodule(name.rpartition(".")[0])
    if target.dim() != source.dim():
        raise ValueError("another number of dimensions")
    if any(one > other for one, other in zip(target.shape, source.shape, strict=True)):
        raise ValueError("the student is wider")
    # Kernel sizes, positions and words are no channels: only these dimensions may be cut.
    channels = (0, 1) if isinstance(owner, _CHANNELS_IN_AND_OUT) else (target.dim() - 1,)
    if fused:
        # Queries, keys and values lie one behind the other: the first heads of each.
        parts = source.reshape(3, -1, *source.shape[1:])
        first: Tensor = parts[(slice(None), slice(target.shape[0] // 3), *(slice(size) for size in target.shape[1:]))]
        return first.reshape(target.shape)
    differ = [dim for dim in range(target.dim()) if target.shape[dim] != source.shape[dim] and dim not in channels]
    if differ:
        raise ValueError(f"dimension {differ[0]} differs, which is no channel")
    cut: Tensor = source[tuple(slice(size) for size in target.shape)]
    return cut


def _fused_heads(name: str, model: nn.Module) -> int | None:
    """Channels of a head, where the tensor is of a fused projection to queries, keys and values; None elsewhere."""
    path = name.rpartition(".")[0]
    owner = model.get_submodule(path)
    if isinstance(owner, nn.MultiheadAttention):
        return int(owner.head_dim)
    found = attention_of(model.get_submodule(path.rpartition(".")[0]))
    return found.head_dim if found and found.projections == (path.rpartition(".")[2],) else None
