"""A model made smaller: channels removed, numbers made coarser."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewise.errors import ModelError
from edgewise.profiles import DEFAULT_ROUND_TO
from edgewise.stages.work import Work, edited, loaded, running, save, seed_for, spread, write_history

if TYPE_CHECKING:
    from torch import nn

    from edgewise.compress.pruning.goals import Clock
    from edgewise.compress.saved import Description
    from edgewise.compress.train import Running

RANGES = 64  # calibration samples for a candidate that is only timed


def prune(work: Work) -> dict[str, Any]:
    """Remove channels and heads, and train between rounds where the recipe says so."""
    from edgewise.compress.pruning.prune import prune as prune_channels
    from edgewise.compress.resize import difference, survey
    from edgewise.compress.saved import ChannelPlan

    task, config = work.task(), work.config
    model, description = loaded(work)
    before, counts = copy.deepcopy(model), survey(model)

    def describe(candidate: nn.Module) -> Description:
        return edited(description, ChannelPlan(plan=difference(counts, candidate)))

    history: list[dict[str, Any]] = []
    pruned = prune_channels(
        model,
        config,
        task.input_shape,
        round_to=config.round_to or DEFAULT_ROUND_TO,
        seed=work.recipe.seed,
        samples=task.splits["train"],
        clock=_clock(work, before, describe) if config.latency is not None else None,
        learn=_learn(work, history) if config.fit is not None else None,
        tick=work.tick,
    )
    for line in pruned.told:
        work.note(f"{work.name}: {line}")
    (work.payload / "pruned.json").write_text(json.dumps(asdict(pruned), indent=1, sort_keys=True))
    if history:
        (work.payload / "rounds.json").write_text(json.dumps(history, indent=1))
    told = {"told": list(pruned.told)} if pruned.told else {}
    smaller = edited(description, ChannelPlan(plan=pruned.plan))
    return save(work, model, smaller, skipped=dict(pruned.skipped), **told)


def _clock(work: Work, before: nn.Module, describe: Callable[[nn.Module], Description]) -> Clock:
    from edgewise.stages.clock import latency_clock

    goal = work.config.latency
    if goal.precision == "float32":
        return latency_clock(work, goal, before, describe)
    from edgewise.compress.quantization.insert import insert_quantizers

    split = work.task().splits["train"]
    calibration = split.read(spread(len(split.ids), RANGES))
    return latency_clock(work, goal, before, describe, quantize=lambda model: insert_quantizers(model, calibration))


def _learn(work: Work, history: list[dict[str, Any]]) -> Callable[[nn.Module, int], None]:
    """Training between two rounds; a round that a killed run has finished is read back."""
    import torch
    from safetensors.torch import load_file, save_file

    from edgewise.compress.strategies.offline import distill

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ModelError(
            "prune trains between its rounds in one process", where=work.name, hint="start it without torchrun"
        )
    teacher, _ = loaded(work, "teacher")

    def learn(model: nn.Module, number: int) -> None:
        kept = work.scratch / f"round-{number}.safetensors"
        told = kept.with_suffix(".json")
        if told.exists():
            model.load_state_dict(load_file(kept))
            model.eval()
            history.extend(json.loads(told.read_text()))
            return
        seed = seed_for(work.recipe.seed, f"round {number}")
        checkpoint = work.scratch / f"round-{number}.checkpoint.safetensors"
        here: Running = {**running(work), "seed": seed, "checkpoint": checkpoint}
        epochs = distill(model, teacher, work.task().splits["train"], work.config, **here)
        rows = [{"round": number, **asdict(epoch)} for epoch in epochs]
        history.extend(rows)
        # As it is read back: on the CPU, and its numbers in the order that a fresh model has.
        model.cpu().to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        save_file({name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, kept)
        beside = told.with_suffix(".part")  # renamed: a killed run leaves no half of it
        beside.write_text(json.dumps(rows))
        beside.replace(told)

    return learn


def drop_blocks(work: Work) -> dict[str, Any]:
    """Leave out whole blocks."""
    from edgewise.compress.pruning.blocks import drop_blocks as leave_out
    from edgewise.compress.pruning.identity import BlocksDropped

    task, config = work.task(), work.config
    model, description = loaded(work)
    split = task.splits["train"]
    reads = config.names is None and config.criterion in ("influence", "loss")
    index = spread(len(split.ids), config.samples if reads else 1)
    gone = leave_out(
        model,
        config,
        task.input_shape,
        seed=work.recipe.seed,
        inputs=split.read(index) if reads else None,
        targets=split.targets[index],
        tick=work.tick,
    )
    (work.payload / "blocks.json").write_text(json.dumps(asdict(gone), indent=1, sort_keys=True))
    told = [f"dropped {', '.join(gone.names)}: {gone.macs_after / gone.macs_before:.1%} of the MACs are left"]
    told += [f"not to be dropped: {name}: {reason}" for name, reason in gone.skipped.items()]
    return save(work, model, edited(description, BlocksDropped(names=gone.names)), told=told)


def prune_vocabulary(work: Work) -> dict[str, Any]:
    """Take out of the table of words what the task's texts don't use."""
    from edgewise.compress.vocabulary import VocabularyPruned, uses
    from edgewise.compress.vocabulary import prune_vocabulary as take_out
    from edgewise.stages.words import kept_anyway

    task, config = work.task(), work.config
    model, description = loaded(work)
    special, unknown = kept_anyway(work.recipe.task, task, config)
    size = task.input_shape[1]
    counts = np.zeros(size, np.int64)
    for name in config.splits:
        counts += uses(task.splits[name], size) if name in task.splits else 0
    gone = take_out(model, counts, at_least=config.at_least, special=special, unknown=unknown)
    (work.payload / "vocabulary.json").write_text(json.dumps({"before": gone.before, "kept": gone.kept}))
    seen = uses(task.splits["test"], size)
    seen[list(special)] = 0
    lost = 1 - seen[list(gone.kept)].sum() / max(1, seen.sum())
    told = [
        f"{len(gone.kept)} of {gone.before} words are left; of the test texts' tokens {lost:.2%} are now unknown ones"
    ]
    work.note(f"{work.name}: {told[0]}")
    return save(work, model, edited(description, VocabularyPruned(rows=len(gone.kept))), told=told)


def quantize(work: Work) -> dict[str, Any]:
    """Fake-quantize, and train on the float model's signals where the recipe says so."""
    from edgewise.compress.quantization.insert import quantizer_config
    from edgewise.compress.quantization.qad import quantize as fake_quantize
    from edgewise.compress.saved import FakeQuantized
    from edgewise.stages.mixed import with_plan

    task, config = work.task(), work.config
    model, description = loaded(work)
    teacher = loaded(work, "teacher")[0] if "teacher" in work.parents else None
    split = task.splits["train"]
    index = spread(len(split.ids), config.calibration_samples)
    _write_calibration(work, [split.ids[place] for place in index])
    config, floats = with_plan(work, model, description, index)
    told: list[str] = []
    quantized, history = fake_quantize(
        model, split, config, calibration=split.read(index), teacher=teacher, tell=told.append, **running(work)
    )
    for line in told:
        work.note(f"{work.name}: {line}")
    write_history(work, history)
    smaller = edited(description, FakeQuantized(nncf=quantizer_config(quantized), float_layers=floats))
    cost = {name: work.parents["model"].metrics[name] for name in ("macs", "params")}
    return save(work, quantized, smaller, **cost)


def _write_calibration(work: Work, ids: list[str]) -> None:
    """Which samples the ranges were taken from, and how."""
    from edgewise.compress.quantization.batchnorm import SAMPLES

    config = work.config
    stated = {
        "split": "train",
        "count": len(ids),
        "chosen": "evenly over the split",
        "seed": work.recipe.seed,
        "ranges": config.ranges,
        "weight_ranges": config.weight_ranges,
        "rounding": config.rounding,
        "batchnorm_samples": min(SAMPLES, len(work.task().splits["train"].ids)) if config.reestimate_batchnorm else 0,
        "ids": ids,
    }
    (work.payload / "calibration.json").write_text(json.dumps(stated, indent=1))
