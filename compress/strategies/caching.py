"""Whether a run of offline distillation keeps its teachers' answers, and where.

Keeping pays where a view comes again: without augmentation, with ``augment.views``, or in the next run with the same
teacher, data and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import nn

from edgewise.compress.cache import (
    Identity,
    TeacherCache,
    cache_folder,
    data_fingerprint,
    no_room,
    open_cache,
    prune_cache,
    teacher_digest,
)
from edgewise.compress.config import Offline
from edgewise.compress.strategies.offline import OpenCache
from edgewise.errors import ArtifactError
from edgewise.models.inputs import is_text
from edgewise.models.tasks.augment import view_number
from edgewise.models.tasks.base import Split, TextSplit, shape_of
from edgewise.models.tasks.config import Augment


def ignore(text: str) -> None:
    """Tell nobody."""


@contextmanager
def caches(
    root: Path,
    teachers: Sequence[nn.Module],
    split: Split,
    config: Offline,
    *,
    classes: int | tuple[int, ...],
    seed: int,
    augment: Augment | None = None,
    names: Sequence[str] = (),
    reads: Sequence[TextSplit | None] = (),
    tell: Callable[[str], None] = ignore,
) -> Iterator[OpenCache]:
    """What ``offline.distill`` calls to open each teacher's cache under ``root``; they are closed at the end.

    With ``cache: auto`` a teacher is asked live where no view comes again or its answers don't fit, and ``tell`` says
    so; with ``always`` that is refused.

    ``classes``: K, or (L, K) where each token is answered. ``names`` says more of each teacher than its tensors do: a
    hash that covers the code it runs, for instance. ``reads``: see ``offline.distill``.

    Raises:
        ArtifactError: on opening, with ``always``: the answers don't fit ``config.cache_bytes`` or the disk.
    """
    augment = augment or Augment()
    epochs = config.fit.epochs
    views = 1 + max(view_number(augment, epoch) for epoch in range(epochs))
    prints: dict[int, str] = {}

    def data(seen: Split) -> str:  # one pass over the data, and only where a cache is used
        if id(seen) not in prints:
            prints[id(seen)] = data_fingerprint(seen)
        return prints[id(seen)]

    shape = shape_of(split)
    with ExitStack() as stack:

        def open_one(place: int, features: Mapping[str, tuple[int, ...]]) -> TeacherCache | None:
            if config.cache == "never" or (config.cache == "auto" and views == epochs):
                return None
            identity = Identity(
                teacher=teacher_digest(teachers[place]),
                data=data((reads[place] if reads else None) or split),
                view={
                    "augment": augment.model_dump(mode="json"),
                    "seed": seed if augment.draws else None,
                    "precision": config.fit.precision,
                    "teacher": names[place] if names else None,
                },
                dtype=config.cache_dtype,
                logits=classes,
                samples=len(split.ids),
                views=views,
                features=dict(features),
                length=shape[0] if is_text(shape) else None,
            )
            folder = cache_folder(root, identity)
            reason = no_room(folder, identity, config.cache_bytes)
            if reason is not None and config.cache == "auto":
                tell(f"the teacher is asked live: {reason}")
                return None
            if reason is not None:
                hint = "raise cache_bytes, tap fewer or smaller layers, or set cache: never"
                raise ArtifactError(reason, where="cache: always", hint=hint)
            tell("the teacher's answers are kept, and read where they are there")
            return stack.enter_context(open_cache(folder, identity, max_bytes=config.cache_bytes))

        yield open_one
    prune_cache(root, config.cache_bytes)
