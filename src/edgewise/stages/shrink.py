"""A model made smaller: channels removed, numbers made coarser."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from edgewise.profiles import DEFAULT_ROUND_TO
from edgewise.stages.work import Work, edited, loaded, running, save, spread, write_history


def prune(work: Work) -> dict[str, Any]:
    """Remove channels."""
    from edgewise.compress.prune import prune as prune_channels
    from edgewise.compress.saved import ChannelPlan

    model, description = loaded(work)
    pruned = prune_channels(
        model,
        work.config,
        work.task().input_shape,
        round_to=work.config.round_to or DEFAULT_ROUND_TO,
        seed=work.recipe.seed,
    )
    (work.payload / "pruned.json").write_text(json.dumps(asdict(pruned), indent=1, sort_keys=True))
    return save(work, model, edited(description, ChannelPlan(plan=pruned.plan)), skipped=dict(pruned.skipped))


def quantize(work: Work) -> dict[str, Any]:
    """Fake-quantize, and train on the float model's signals where the recipe says so."""
    from edgewise.compress.qad import quantize as fake_quantize
    from edgewise.compress.quantize import quantizer_config
    from edgewise.compress.saved import FakeQuantized

    task = work.task()
    model, description = loaded(work)
    split = task.splits["train"]
    quantized, history = fake_quantize(
        model,
        split,
        work.config,
        calibration=split.read(spread(len(split.ids), work.config.calibration_samples)),
        **running(work),
    )
    write_history(work, history)
    smaller = edited(description, FakeQuantized(nncf=quantizer_config(quantized)))
    cost = {name: work.parents["model"].metrics[name] for name in ("macs", "params")}
    return save(work, quantized, smaller, **cost)
