"""Value relations: how alike the student finds two tokens' values is how alike the teacher finds them.

    R(X) = softmax( X X^T / sqrt(d) )       for each relation head, X (L, d), d = D / heads
    L    = mean over relations, heads and real tokens i of KL( R_t[i] || R_s[i] )

Values alone: Wang et al., "MiniLM", arXiv 2002.10957, section 3.2. Queries, keys and values: "MiniLMv2", arXiv
2012.15828, section 3.1. As in v2 the heads of the relation are a number of its own, the same in both nets, so neither
widths nor attention heads need be equal. The papers take the mean over a sequence first and then over sequences; here
each real token counts the same. MiniLM uses one pair of layers, the last of each: name it, or take the default of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from edgewise.compress.losses.base import Batch, LayerMap, Layers, Loss, Outputs, Sizes
from edgewise.compress.losses.tokens import real_tokens, row_divergence
from edgewise.compress.schedule import Value
from edgewise.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

Relation = Literal["query", "key", "value"]
# Where each lies in the output of a fused projection (N, L, 3 D).
_PLACES: dict[Relation, int] = {"query": 0, "key": 1, "value": 2}


def relation_scores(vectors: Tensor, heads: int) -> Tensor:
    """(N, L, D) -> (N, heads, L, L) in float32: scaled products between the tokens of each head's part of D.

    Raises:
        ValueError: ``heads`` doesn't divide D.
    """
    import torch

    if vectors.dim() != 3 or vectors.shape[-1] % heads:
        raise ValueError(f"expected tokens (N, L, D) with D a multiple of {heads} heads, got {tuple(vectors.shape)}")
    with torch.autocast(vectors.device.type, enabled=False):
        parts = vectors.float().reshape(*vectors.shape[:2], heads, -1).transpose(1, 2)
        scores: Tensor = parts @ parts.transpose(-2, -1) / parts.shape[-1] ** 0.5
    return scores


def value_relations_loss(student: Tensor, teacher: Tensor, *, heads: int, mask: Tensor | None = None) -> Tensor:
    """Scalar loss between values (or queries, or keys) ``student`` (N, L, D_s) and ``teacher`` (N, L, D_t).

    Args:
        student: all heads' vectors side by side.
        teacher: the same of the teacher.
        heads: relation heads, which divide D_s and D_t.
        mask: (N, L), 1 at real tokens; None: all are real.

    Raises:
        ValueError: other samples or tokens, a width that ``heads`` doesn't divide, or a mask that doesn't fit.
    """
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"relations need the same tokens, got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    real = real_tokens(mask, student)
    # Filled first: padding may hold anything, and 0 times infinity is not a number.
    ours, theirs = (side.masked_fill(~real[..., None], 0.0) for side in (student, teacher.detach()))
    return row_divergence(relation_scores(ours, heads), relation_scores(theirs, heads), real)


class ValueRelations(Loss):
    """Relations between tokens' values, and between their queries and keys."""

    reads_mask: ClassVar[bool] = True

    kind: Literal["value_relations"] = "value_relations"
    weight: Value = 1.0
    layers: Annotated[Layers, Field(description="layers that give queries, keys and values, or one of them")] = (
        LayerMap(student="blocks.*.attn.qkv", teacher="blocks.*.attn.qkv")
    )
    relations: tuple[Relation, ...] = Field(("value",), min_length=1, description="MiniLM: value; MiniLMv2: all three")
    fused: bool = Field(True, description="the layers give (N, L, 3 D): queries, keys and values side by side")
    heads: int | None = Field(None, ge=1, description="relation heads; the teacher's attention heads by default")

    @model_validator(mode="after")
    def _one_relation_a_layer(self) -> ValueRelations:
        if len(set(self.relations)) != len(self.relations):
            raise ValueError("relations: each at most once")
        if not self.fused and len(self.relations) > 1:
            raise ValueError("relations: a layer that isn't fused gives one; write one loss for each relation")
        return self

    def learner(self, sizes: Sizes) -> nn.Module:
        """Nothing to train: the number of relation heads, settled once.

        Raises:
            ModelError: the teacher doesn't tell its heads, or they don't divide the student's width.
        """
        from edgewise.compress.heads import RelationHeads

        heads = self.heads
        if heads is None:
            told = set(sizes.heads.values())
            if len(told) != 1:
                raise ModelError(
                    f"the teacher's layers tell {'no' if not told else 'several'} numbers of attention heads",
                    where="losses.heads",
                    hint="give value_relations its heads",
                )
            heads = told.pop()
        parts = 3 if self.fused else 1
        for who, shapes in (("student", sizes.student), ("teacher", sizes.teacher)):
            for shape in shapes:
                if len(shape) != 2 or shape[1] % (parts * heads):
                    raise ModelError(
                        f"the {who}'s layer gives {shape} (without N), expected (tokens, {parts} D) with D a multiple "
                        f"of {heads} relation heads",
                        where="losses.layers",
                        hint="name the layers of queries, keys and values; set fused and heads to fit",
                    )
        return RelationHeads(heads)

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The mean over the pairs of layers and the relations."""
        from torch import stack

        from edgewise.compress.heads import RelationHeads

        assert isinstance(learner, RelationHeads)
        terms = []
        for ours, theirs in zip(student.features, teacher.features, strict=True):
            for relation in self.relations:
                pair = [self._part(side, relation) for side in (ours, theirs)]
                terms.append(value_relations_loss(pair[0], pair[1], heads=learner.heads, mask=batch.mask))
        return stack(terms).mean()

    def _part(self, feature: Tensor, relation: Relation) -> Tensor:
        return feature.chunk(3, dim=-1)[_PLACES[relation]] if self.fused else feature
