"""Everything that trains a model in floating point: on labels, or taught by others."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewise.errors import ModelError
from edgewise.models.config import HuggingFace
from edgewise.stages.work import Work, edited, loaded, running, save, seed_for, validation, write_history

if TYPE_CHECKING:
    from torch import nn

    from edgewise.compress.config import Fit
    from edgewise.compress.saved import Description
    from edgewise.compress.train import Running
    from edgewise.models.config import ModelConfig
    from edgewise.models.tasks.base import Split, TextSplit


def _learn_labels(work: Work, model: nn.Module, config: Fit, seed: int) -> None:
    from edgewise.compress.train import fit, labels_only

    lesson = labels_only(model, config.label_smoothing)
    here: Running = {**running(work), "seed": seed}
    write_history(work, fit(lesson, work.task().splits["train"], config, **here))


def _built(work: Work, config: ModelConfig, weights: Path | None, seed: int) -> tuple[nn.Module, Description]:
    """A model of ``config``, its weights from a file or drawn from ``seed``."""
    import torch

    from edgewise.compress.saved import Description
    from edgewise.models.build import build
    from edgewise.models.text.bert import Bert
    from edgewise.models.text.labels import align_labels
    from edgewise.models.weights import load_weights

    task = work.task()
    torch.set_num_threads(work.recipe.threads)
    torch.manual_seed(seed)
    model = build(config, task.input_shape, len(task.classes))
    if isinstance(config, HuggingFace) and isinstance(model, Bert):
        told = align_labels(model, config, task.classes)
        if told is not None:
            work.note(f"{work.name}: {told}")
    if weights is not None:
        load_weights(model, weights)
    return model, Description(model=config, input_shape=task.input_shape, classes=len(task.classes))


def source(work: Work) -> dict[str, Any]:
    """The teacher, or the student before any lesson: built, its weights loaded, trained where the recipe says so."""
    config = work.config
    work = _as_read(work, getattr(config, "tokenizer", None))
    # Several teachers of one architecture must not be one net.
    seed = work.recipe.seed if work.name in ("teacher", "student") else seed_for(work.recipe.seed, work.name)
    model, description = _built(work, config.model, config.weights, seed)
    lessons = getattr(config, "train", None)
    if lessons is not None:
        _learn_labels(work, model, lessons, seed)
    return save(work, model, description)


def _as_read(work: Work, tokenizer: Path | None) -> Work:
    """``work`` on the task's texts as another tokenizer reads them, where there is one."""
    from edgewise.models.tasks.base import TextSplit, shape_of

    if tokenizer is None:
        return work
    splits = {
        name: split.encoded(tokenizer) for name, split in work.task().splits.items() if isinstance(split, TextSplit)
    }
    if len(splits) < len(work.task().splits):
        raise ModelError(
            "a tokenizer for a task that has no texts", where=f"{work.name}.tokenizer", hint="leave it out"
        )
    seen = replace(work.task(), splits=splits, input_shape=shape_of(splits["train"]))
    return replace(work, task=lambda: seen)


def train(work: Work) -> dict[str, Any]:
    """Train the model on labels."""
    model, description = loaded(work)
    _learn_labels(work, model, work.config.fit, work.recipe.seed)
    return save(work, model, description)


def distill(work: Work) -> dict[str, Any]:
    """Train the model on the signals of one teacher or of several."""
    model, description = loaded(work)
    return _taught(work, model, description)


def assistant(work: Work) -> dict[str, Any]:
    """A model between teacher and student learns from the teacher."""
    model, description = _built(work, work.config.model, work.config.weights, work.recipe.seed)
    return _taught(work, model, description)


def _taught(work: Work, model: nn.Module, description: Description) -> dict[str, Any]:
    import torch

    from edgewise.compress.strategies.caching import caches
    from edgewise.compress.strategies.offline import distill as distil_into

    task, config = work.task(), work.config
    teachers = [loaded(work, role)[0] for role in work.parents if role.startswith("teacher")]
    torch.manual_seed(work.recipe.seed)  # a projector starts at random
    changes = [loss.edit(model, teachers[0], task.input_shape) for loss in config.losses]
    split = task.splits[config.split]
    reads = _own_tokens(work, split, len(teachers))
    names = [parent.key for role, parent in work.parents.items() if role.startswith("teacher")]
    told: list[str] = []
    about: dict[str, Any] = {"names": names, "seed": work.recipe.seed, "augment": task.augment, "tell": told.append}
    row = (task.input_shape[0], len(task.classes)) if task.kind == "tag" else len(task.classes)
    with caches(work.cache, teachers, split, config, classes=row, reads=reads, **about) as open_cache:
        here: dict[str, Any] = {"open_cache": open_cache, "tell": told.append, "reads": reads, **running(work)}
        history = distil_into(model, teachers, split, config, **here)
    write_history(work, history)
    if config.fit.early_stop is not None:
        best = max(history, key=lambda epoch: epoch.validation or 0.0)
        told.append(f"kept epoch {best.epoch} of {len(history)}, {best.validation:.4f} on the validation split")
    for line in told:
        work.note(f"{work.name}: {line}")
    return save(work, model, edited(description, *(edit for edit in changes if edit is not None)), told=told)


def _own_tokens(work: Work, split: Split, teachers: int) -> list[TextSplit | None]:
    """For each teacher, ``split`` as its own tokenizer reads it, None where it reads what the task's does. A teacher
    that an earlier stage trained here (an assistant) reads the task's."""
    from edgewise.models.tasks.base import TextSplit

    own = [None if work.parents["teacher"].name != "teacher" else work.recipe.teacher.tokenizer]
    ensemble = getattr(work.config, "ensemble", None)
    own += [source.tokenizer for source in ensemble.teachers] if ensemble else []
    found: list[TextSplit | None] = []
    for tokenizer in own[:teachers]:
        if tokenizer is not None and not isinstance(split, TextSplit):
            raise ModelError("a tokenizer for a task that has no texts", where="teacher.tokenizer", hint="leave it out")
        found.append(split.encoded(tokenizer) if tokenizer is not None and isinstance(split, TextSplit) else None)
    return found


def online(work: Work) -> dict[str, Any]:
    """Train the model and its teacher in the same steps; the teacher as it was stays the reference."""
    from edgewise.compress.strategies.live import learn_online

    (model, description), (teacher, _) = loaded(work), loaded(work, "teacher")
    history = learn_online(model, teacher, work.task().splits["train"], work.config, **running(work))
    write_history(work, history)
    return save(work, model, description)


def mutual(work: Work) -> dict[str, Any]:
    """Train the model and its peers from each other."""
    from edgewise.compress.strategies.mutual import learn_together

    model, description = loaded(work)
    seeds = [seed_for(work.recipe.seed, f"peer {place}") for place in range(len(work.config.peers))]
    peers = [_built(work, peer, None, seed)[0] for peer, seed in zip(work.config.peers, seeds, strict=True)]
    history = learn_together(model, peers, work.task().splits["train"], work.config, **running(work))
    write_history(work, history)
    return save(work, model, description)


def self_distill(work: Work) -> dict[str, Any]:
    """Train the model with exits that learn from its own end."""
    from edgewise.compress.strategies.exits import learn_from_end

    model, description = loaded(work)
    write_history(work, learn_from_end(model, work.task().splits["train"], work.config, **running(work)))
    return save(work, model, description)


def ema_teacher(work: Work) -> dict[str, Any]:
    """Train the model from the running average of itself."""
    from edgewise.compress.strategies.live import learn_from_average

    model, description = loaded(work)
    write_history(work, learn_from_average(model, work.task().splits["train"], work.config, **running(work)))
    return save(work, model, description)


def born_again(work: Work) -> dict[str, Any]:
    """Generations of the same architecture from fresh weights; a finished one survives a killed run."""
    import torch

    from edgewise.compress.saved import built, load_model, save_model
    from edgewise.compress.strategies.offline import distill as distil_into

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ModelError("born_again trains in one process", where=work.name, hint="start it without torchrun")
    model, description = loaded(work)
    history: list[dict[str, Any]] = []
    for generation in range(1, work.config.generations + 1):
        role = f"generation-{generation}"
        kept, seed = work.scratch / role, seed_for(work.recipe.seed, role)
        told = kept / "history.json"
        teacher = model
        if told.exists():
            model = load_model(kept)[0]
            history += json.loads(told.read_text())
            continue
        torch.manual_seed(seed)
        model = built(description)
        here: Running = {**running(work), "seed": seed, "checkpoint": work.scratch / f"{role}.safetensors"}
        epochs = distil_into(model, teacher, work.task().splits["train"], work.config, **here)
        told_now = [{"generation": generation, **asdict(epoch)} for epoch in epochs]
        history += told_now
        save_model(model, description, kept)
        told.write_text(json.dumps(told_now))
    (work.payload / "history.json").write_text(json.dumps(history, indent=1))
    return save(work, model, description)


def data_free(work: Work) -> dict[str, Any]:
    """Train the model on images made from the teacher alone."""
    from edgewise.compress.strategies.data_free import bounds_of, distill_data_free

    (model, description), (teacher, _) = loaded(work), loaded(work, "teacher")
    task, config = work.task(), work.config
    made, history = distill_data_free(
        model,
        teacher,
        config.make,
        config,
        task.input_shape,
        len(task.classes),
        seed=work.recipe.seed,
        augment=task.augment,
        bounds=bounds_of(task.splits["train"]),  # its normalisation: the images themselves are never read
        scratch=work.scratch,
        validate=validation(work),
        tick=work.tick,
    )
    np.save(work.payload / "images.npy", made.images.astype(np.float16))
    write_history(work, history)
    return save(work, model, description)


def inherit(work: Work) -> dict[str, Any]:
    """Start the model from the teacher's own layers."""
    from edgewise.compress.strategies.inherit import inherit as take_over

    (model, description), (teacher, _) = loaded(work), loaded(work, "teacher")
    copied = take_over(model, teacher, work.config)
    (work.payload / "inherited.json").write_text(json.dumps(copied, indent=1))
    return save(work, model, description)
