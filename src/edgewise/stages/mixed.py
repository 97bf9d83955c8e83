"""The mixed-precision plan of the quantize stage: samples that calibration did not use, a clock, the plan as data."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import DataError, ModelError
from edgewise.models.tasks.base import Float
from edgewise.stages.work import Work, edited, spread

if TYPE_CHECKING:
    from torch import nn

    from edgewise.compress.config import Latency, Quantize
    from edgewise.compress.pruning.goals import Clock
    from edgewise.compress.saved import Description

PLAN = "plan.json"
FEWEST = 16  # samples; fewer say nothing about a drop


def with_plan(
    work: Work, model: nn.Module, description: Description, calibrated: NDArray[np.int64]
) -> tuple[Quantize, tuple[str, ...]]:
    """The stage's config with every layer named that stays in float, and those names. A plan that was searched for is
    written into the payload; a killed run finds it in its scratch.

    Args:
        work: the stage.
        model: in float.
        description: of ``model``.
        calibrated: places of the calibration samples in the training split.

    Raises:
        DataError: too few training samples are left to judge on.
        ModelError: a float layer that isn't there, or a budget out of reach.
    """
    from edgewise.compress.agreement import Samples
    from edgewise.compress.quantization.float_layers import resolve_float_layers
    from edgewise.compress.quantization.mixed import plan_mixed
    from edgewise.compress.quantization.qad import settled

    task, config = work.task(), work.config
    if config.mixed is None:
        return config, resolve_float_layers(model, config.float_layers, task.input_shape)
    kept = work.scratch / PLAN
    if config.mixed.latency is not None and config.fit is not None and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ModelError(
            "each process would measure another latency, and choose other layers",
            where=f"{work.name}.mixed.latency",
            hint="start it without torchrun, or name float_layers by hand",
        )
    if kept.exists():
        text = kept.read_text()
    else:
        split = task.splits["train"]
        left = np.setdiff1d(np.arange(len(split.ids)), calibrated)
        if len(left) < FEWEST:
            raise DataError(
                f"expected at least {FEWEST} training samples that calibration leaves for the mixed-precision plan to "
                f"be judged on, got {len(left)} of {len(split.ids)}",
                where=f"{work.name}.mixed",
                hint="lower calibration_samples, or name float_layers by hand",
            )
        held = Samples(split, left[spread(len(left), config.mixed.samples)])
        goal = config.mixed.latency
        start, config = settled(model, split, config)
        plan = plan_mixed(
            model,
            split.read(calibrated),
            config,
            held,
            start=start,
            paired=paired_drop,
            score=task.score,
            clock=None if goal is None else _clock(work, goal, model, description),
            tick=work.tick,
        )
        work.note(f"{work.name}: {plan.in_words()}")
        text = json.dumps(plan.to_json(), indent=1)
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_suffix(".part")  # renamed: a killed run leaves no half of it
        beside.write_text(text)
        beside.replace(kept)
    (work.payload / PLAN).write_text(text)
    floats = tuple(json.loads(text)["float_layers"])
    return work.config.model_copy(update={"mixed": None, "float_layers": floats}), floats


def paired_drop(reference: Float, other: Float) -> tuple[float, float, float]:
    """How much lower the mean of ``other`` (N,) is, with its 95 % interval: Tango's where scores are right or wrong, a
    paired bootstrap's where they are grades."""
    from edgewise.bench.stats import is_binary, paired_mean_drop, tango

    before, after = reference.astype(np.float64), other.astype(np.float64)
    if is_binary(before) and is_binary(after):
        lost, won = int((before > after).sum()), int((before < after).sum())
        found = tango(lost, won, len(before))
    else:
        found = paired_mean_drop(before, after)
    return float(found.value), float(found.low), float(found.high)


def _clock(work: Work, goal: Latency, model: nn.Module, description: Description) -> Clock:
    """Times a quantized model's file beside the float model's."""
    from edgewise.compress.quantization.insert import quantizer_config
    from edgewise.compress.quantization.places import HOOKS
    from edgewise.compress.quantization.switches import find_switches
    from edgewise.compress.saved import FakeQuantized
    from edgewise.stages.clock import latency_clock

    def describe(candidate: nn.Module) -> Description:
        if not hasattr(candidate, HOOKS):
            return description
        floats = find_switches(candidate, work.task().input_shape).in_float()
        return edited(description, FakeQuantized(nncf=quantizer_config(candidate), float_layers=floats))

    return latency_clock(work, goal, model, describe)
