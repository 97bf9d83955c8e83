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
    teacher_digest,
)
from edgewise.compress.config import Offline
from edgewise.compress.strategies.offline import OpenCache
from edgewise.models.tasks.augment import view_number
from edgewise.models.tasks.base import Split
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
    classes: int,
    seed: int,
    augment: Augment | None = None,
    tell: Callable[[str], None] = ignore,
) -> Iterator[OpenCache]:
    """What ``offline.distill`` calls to open each teacher's cache under ``root``; they are closed at the end.

    With ``cache: auto`` a teacher is asked live where no view comes again or its answers don't fit, and ``tell`` says
    so; with ``on`` that is refused.

    Raises:
        ArtifactError: on opening, with ``on``: the answers don't fit ``config.cache_bytes`` or the disk.
    """
    augment = augment or Augment()
    epochs = config.fit.epochs
    views = 1 + max(view_number(augment, epoch) for epoch in range(epochs))
    with ExitStack() as stack:

        def open_one(place: int, features: Mapping[str, tuple[int, ...]]) -> TeacherCache | None:
            if config.cache == "off" or (config.cache == "auto" and views == epochs):
                return None
            identity = Identity(
                teacher=teacher_digest(teachers[place]),
                data=data_fingerprint(split),
                view={
                    "augment": augment.model_dump(mode="json"),
                    "seed": seed if views > 1 else None,
                    "precision": config.fit.precision,
                },
                logits=classes,
                samples=len(split.ids),
                views=views,
                features=dict(features),
            )
            folder = cache_folder(root, identity)
            reason = no_room(folder, identity, config.cache_bytes)
            if config.cache == "auto" and reason is not None:
                tell(f"the teacher is asked live: {reason}")
                return None
            return stack.enter_context(open_cache(folder, identity, max_bytes=config.cache_bytes))

        yield open_one
