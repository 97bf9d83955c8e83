"""The mixed-precision plan: which layers stay in float, under a budget of accuracy or of latency.

Greedy: the next layer to leave in float is the one that takes the most noise off the logits for each of its
multiply-accumulates, measured again in the company of those chosen before it (gains shrink as others are taken, so
only the front runner is measured anew: Minoux 1978). Under an accuracy budget, layers that turn out not to be needed go
back to INT8, the largest first, and the plan is then quantized for real and judged once more. Under a latency budget
the longest beginning of that order which the clock allows is taken. Where INT8 throughout misses the budget, stretches
that are slower in INT8 than in float are left in float first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from edgewise.compress.agreement import Samples, Score, answers, change
from edgewise.compress.config import Latency, Mixed, Quantize
from edgewise.compress.pruning.goals import Clock, Timed
from edgewise.compress.quantization.float_layers import resolve_float_layers
from edgewise.compress.quantization.insert import insert_quantizers
from edgewise.compress.quantization.stretches import fastest_in_float
from edgewise.compress.quantization.switches import Switches, find_switches
from edgewise.compress.sensitivity import LayerSensitivity, quantization_sensitivity
from edgewise.errors import ModelError
from edgewise.models.inputs import form_of
from edgewise.models.tasks.base import Float, accuracy
from edgewise.progress import Tick, silent

WHERE = "quantize.mixed"
TO_TIME = 8
"""Calibration samples of a candidate that is only timed: its ranges don't change its time."""
Paired = Callable[[Float, Float], tuple[float, float, float]]
"""Scores (N,) of the float model and of another -> how much lower the other's mean is, and the ends of its interval."""


@dataclass(frozen=True)
class Drop:
    """How far a model's score is below the float model's, in percentage points, with its 95 % interval."""

    pp: float
    low_pp: float
    high_pp: float


@dataclass(frozen=True)
class MixedPlan:
    """The plan as data.

    Args:
        budget: what it was made under.
        float_layers: the layers that stay in float, those named by hand among them, in order of execution.
        for_speed: those of them that are there because INT8 throughout misses the latency.
        order: the others as the search took them, the most worthwhile first.
        given_back: those of ``order`` that were not needed after all.
        drop: of the quantized model with this plan, on ``sample_ids``.
        drop_all_int8: of the one without it.
        float_share: part of the multiply-accumulates (of layers with weights) in float.
        timed: {"p50_ms", "ratio"} of the file, where latency was the budget.
        sensitivities: each layer's, before anything was left in float.
        sample_ids: what the drop was measured on; training samples, none of them used to calibrate.
    """

    budget: dict[str, Any]
    float_layers: tuple[str, ...]
    for_speed: tuple[str, ...]
    order: tuple[str, ...]
    given_back: tuple[str, ...]
    drop: Drop
    drop_all_int8: Drop
    float_share: float
    timed: dict[str, float] | None
    sensitivities: tuple[LayerSensitivity, ...]
    sample_ids: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "budget": self.budget,
            "float_layers": list(self.float_layers),
            "for_speed": list(self.for_speed),
            "order": list(self.order),
            "given_back": list(self.given_back),
            "drop": asdict(self.drop),
            "drop_all_int8": asdict(self.drop_all_int8),
            "float_share": self.float_share,
            "timed": self.timed,
            "sensitivities": [row.to_json() for row in self.sensitivities],
            "n": len(self.sample_ids),
            "sample_ids": list(self.sample_ids),
        }

    def in_words(self) -> str:
        """One line for people."""
        left = ", ".join(self.float_layers) or "nothing"
        return (
            f"in float: {left} ({100 * self.float_share:.1f} % of the MACs); {self.drop.pp:.2f} pp below float "
            f"[{self.drop.low_pp:.2f}, {self.drop.high_pp:.2f}] on {len(self.sample_ids)} training samples that were "
            f"not calibrated on, {self.drop_all_int8.pp:.2f} pp with every layer in INT8"
        )


def plan_mixed(
    model: nn.Module,
    calibration: Float,
    config: Quantize,
    held: Samples,
    *,
    paired: Paired,
    start: nn.Module | None = None,
    score: Score = accuracy,
    clock: Clock | None = None,
    tick: Tick = silent,
) -> MixedPlan:
    """Search for the layers to leave in float.

    Args:
        model: float; it stays as it is. What the drop is measured from.
        calibration: (N, C, H, W), as for ``insert_quantizers``.
        config: with ``mixed``; its ``float_layers`` are in the plan from the start.
        held: samples to judge on, none of them in ``calibration``.
        paired: the fall of a mean of paired scores, with its interval.
        start: what is quantized, where that is not ``model`` itself: one with its BatchNorm measured again.
        score: the task's, one value a sample.
        clock: times a quantized model's file; needed for a latency budget.
        tick: told after every measurement.

    Raises:
        ModelError: the budget is out of reach (the best that was found is said), or there is no clock.
    """
    mixed = config.mixed
    if mixed is None:
        raise ModelError("expected a budget for the mixed-precision plan, got none", where=WHERE)
    if config.reestimate_batchnorm:
        raise ModelError(
            "the plan would be judged with another BatchNorm than the one that ships",
            where="quantize.reestimate_batchnorm",
            hint="give the model after it (qad.settled) as start",
        )
    search = _Search(model, start or model, calibration, config, mixed, held, paired, score, tick)
    if mixed.latency is None:
        return search.under_accuracy(float(mixed.max_accuracy_drop_pp or 0.0))
    if clock is None:
        raise ModelError("a latency budget needs a clock, and none was given", where=WHERE)
    return search.under_latency(mixed.latency, clock)


class _Search:
    """One search: the quantized model with its switches, the float model's answers, what is chosen so far."""

    def __init__(
        self,
        original: nn.Module,
        model: nn.Module,
        calibration: Float,
        config: Quantize,
        mixed: Mixed,
        held: Samples,
        paired: Paired,
        score: Score,
        tick: Tick,
    ) -> None:
        self.model, self.calibration, self.config, self.mixed = model, calibration, config, mixed
        self.held, self.paired, self.score, self.tick = held, paired, score, tick
        shape = form_of(calibration)
        self.padding = held.padding
        self.fixed = resolve_float_layers(model, config.float_layers, shape)
        # The search throws switches. Corrected biases and learnt roundings would stay behind a switched-off quantizer.
        self.plain = config.model_copy(update={"mixed": None, "rounding": "nearest", "adaround": None})
        self.quantized = insert_quantizers(model, calibration, self.plain, correct_biases=False, padding=self.padding)
        self.switches: Switches = find_switches(self.quantized, shape)
        self.few = held[: mixed.sensitivity_samples]
        self.few_logits = answers(model, self.few)
        self.scores = score(answers(original, held), held.targets)
        self.macs = self.switches.layers
        self.most = mixed.max_float_share * sum(self.macs.values())
        self.measured = 0
        self.for_speed: list[str] = []
        self.chosen: list[str] = []

    def rank(self) -> None:
        """Each layer's sensitivity, and its gain beside those that are in float already."""
        self.sensitivities = tuple(
            quantization_sensitivity(
                self.quantized,
                self.few,
                self.held.targets[: self.mixed.sensitivity_samples],
                score=self.score,
                tick=self.tick,
                switches=self.switches,
            )
        )
        self.noise_now = self.noise(())
        # Stale gains: what leaving each alone in float took off the noise. The largest is measured anew when its turn
        # comes.
        self.gains = {name: self.gain(name) for name in self.macs if name not in self.fixed}

    def insert(self, floats: Sequence[str]) -> nn.Module:
        """The model quantized for real, with these layers in float."""
        config = self.config.model_copy(update={"mixed": None, "float_layers": (*self.fixed, *floats)})
        return insert_quantizers(self.model, self.calibration, config, padding=self.padding)

    def insert_to_time(self, floats: Sequence[str]) -> nn.Module:
        """A net of the same shape, calibrated and rounded in haste: only its file's time is of use."""
        config = self.plain.model_copy(update={"float_layers": (*self.fixed, *floats)})
        few = self.calibration[:TO_TIME]
        return insert_quantizers(self.model, few, config, correct_biases=False, padding=self.padding)

    def noise(self, floats: Sequence[str]) -> float:
        """Noise over signal of the logits, against the float model, with these layers switched to float."""
        with self.switches.without([*self.fixed, *floats]):
            logits = answers(self.quantized, self.few)
        self._told()
        return float(10 ** (-change(self.few_logits, logits).sqnr_db / 10))

    def gain(self, name: str) -> float:
        """Noise taken off for each multiply-accumulate by leaving ``name`` in float too."""
        return (self.noise_now - self.noise([*self.chosen, name])) / max(self.macs[name], 1)

    def drop(self, floats: Sequence[str], real: nn.Module | None = None) -> Drop:
        """On all samples; of ``real``, or of the switched model."""
        if real is not None:
            logits = answers(real, self.held)
        else:
            with self.switches.without([*self.fixed, *floats]):
                logits = answers(self.quantized, self.held)
        self._told()
        value, low, high = self.paired(self.scores, self.score(logits, self.held.targets))
        return Drop(100 * value, 100 * low, 100 * high)

    def used(self, floats: Iterable[str]) -> int:
        """Multiply-accumulates in float with these layers."""
        return sum(self.macs[name] for name in (*self.fixed, *floats))

    def take(self) -> str | None:
        """Choose the next layer; None when no layer is left that would help and fits."""
        used = self.used(self.chosen)
        fresh: set[str] = set()
        while True:
            open_ = {n: g for n, g in self.gains.items() if n not in self.chosen and used + self.macs[n] <= self.most}
            if not open_:
                return None
            best = max(open_, key=lambda name: open_[name])
            if best in fresh:
                break
            self.gains[best] = self.gain(best)
            fresh.add(best)
        if self.gains[best] <= 0:
            return None
        self.chosen.append(best)
        self.noise_now = self.noise(self.chosen)
        return best

    def under_accuracy(self, budget: float) -> MixedPlan:
        """The fewest multiply-accumulates in float with which the drop is within ``budget`` percentage points."""
        self.rank()
        nothing = self.drop((), self.insert(()))
        told = {"max_accuracy_drop_pp": budget}
        if nothing.pp <= budget:
            return self._plan(told, (), (), nothing, nothing, None)
        while self.drop(self.chosen).pp > budget and self.take() is not None:
            pass
        kept = self._fewest(self.chosen, lambda floats: self.drop(floats), budget)
        seen: list[tuple[Drop, tuple[str, ...]]] = [(nothing, ())]
        real = self.drop(kept, self.insert(kept))
        while real.pp > budget:  # switched off is not left out: ranges were found without it, biases are corrected
            seen.append((real, tuple(kept)))
            back = next((name for name in self.chosen if name not in kept), None) or self.take()
            if back is None:
                raise self._out_of_reach(budget, seen)
            kept = [*kept, back]
            real = self.drop(kept, self.insert(kept))
        kept = self._fewest(kept, lambda floats: self.drop(floats, self.insert(floats)), budget)
        real = self.drop(kept, self.insert(kept))
        return self._plan(told, kept, tuple(self.chosen), real, nothing, None)

    def _fewest(self, floats: Sequence[str], drop: Callable[[Sequence[str]], Drop], budget: float) -> list[str]:
        """``floats`` without those that the budget doesn't need, the largest first."""
        kept = list(floats)
        for name in sorted(floats, key=lambda name: -self.macs[name]):
            fewer = [other for other in kept if other != name]
            if fewer and drop(fewer).pp <= budget:
                kept = fewer
        return kept

    def under_latency(self, budget: Latency, clock: Clock) -> MixedPlan:
        """As many of the layers that hurt most as the clock allows."""
        limit = float(budget.p50_ms if budget.p50_ms is not None else budget.ratio or 0.0)
        unit = "ms" if budget.p50_ms is not None else "of the float model's latency"
        timed: dict[frozenset[str], Timed] = {}

        def cost(floats: Sequence[str]) -> float:
            told = timed[frozenset((*self.fixed, *floats))] = clock(self.insert_to_time(floats))
            self._told()
            return told.p50_ms if budget.p50_ms is not None else told.ratio

        nothing = self.drop((), self.insert(()))
        reached = all_int8 = cost(())
        if reached > limit:
            layers = [name for name in self.macs if name not in self.fixed]
            self.for_speed, reached = fastest_in_float(
                layers, cost, now=reached, limit=limit, allowed=lambda floats: self.used(floats) <= self.most
            )
        if reached > limit:
            raise self._too_slow(f"{all_int8:.3f} {unit}", f"{reached:.3f}", limit)
        self.fixed = (*self.fixed, *self.for_speed)
        self.rank()
        while self.take() is not None:
            pass
        low, high = 0, len(self.chosen) + 1  # the first fits; one beyond the last doesn't exist
        while high - low > 1:
            middle = len(self.chosen) if low == 0 and high == len(self.chosen) + 1 else (low + high) // 2
            fits = cost(self.chosen[:middle]) <= limit
            low, high = (middle, high) if fits else (low, middle)
        kept = self.chosen[:low]
        final = timed[frozenset((*self.fixed, *kept))]
        drop = self.drop(kept, self.insert(kept)) if kept or self.for_speed else nothing
        told = {"p50_ms": float(final.p50_ms), "ratio": float(final.ratio)}
        return self._plan({"latency": budget.model_dump(mode="json")}, kept, tuple(self.chosen), drop, nothing, told)

    def _too_slow(self, all_int8: str, reached: str, limit: float) -> ModelError:
        layers = ", ".join(self.for_speed)
        best = (
            f"and {reached} at best, with {layers} in float"
            if layers
            else "and nothing is faster with part of it in float "
            f"(at most {100 * self.mixed.max_float_share:g} % of the multiply-accumulates)"
        )
        return ModelError(
            f"the model takes {all_int8} with every layer in INT8, {best}; {limit:g} is the budget",
            where=f"{WHERE}.latency",
            hint="allow more, ship it in float, or prune the model first",
        )

    def _plan(
        self,
        budget: dict[str, Any],
        kept: Sequence[str],
        order: tuple[str, ...],
        drop: Drop,
        nothing: Drop,
        timed: dict[str, float] | None,
    ) -> MixedPlan:
        floats = tuple(name for name in self.macs if name in (*self.fixed, *kept))
        return MixedPlan(
            budget=budget,
            float_layers=floats,
            for_speed=tuple(self.for_speed),
            order=order,
            given_back=tuple(name for name in order if name not in kept),
            drop=drop,
            drop_all_int8=nothing,
            float_share=sum(self.macs[name] for name in floats) / sum(self.macs.values()),
            timed=timed,
            sensitivities=self.sensitivities,
            sample_ids=self.held.ids,
        )

    def _out_of_reach(self, budget: float, seen: list[tuple[Drop, tuple[str, ...]]]) -> ModelError:
        best, floats = min(seen, key=lambda item: item[0].pp)
        left = ", ".join((*self.fixed, *floats)) or "no layer"
        return ModelError(
            f"a drop of {budget:g} pp is out of reach with at most {100 * self.mixed.max_float_share:g} % of the "
            f"multiply-accumulates in float: the best is {best.pp:.2f} pp [{best.low_pp:.2f}, {best.high_pp:.2f}] on "
            f"{len(self.held)} samples, with {left} in float",
            where=f"{WHERE}.max_accuracy_drop_pp",
            hint="allow a larger drop or a larger max_float_share, or train the quantized model (fit)",
        )

    def _told(self) -> None:
        """How many measurements a search takes is not known before: say how many there were."""
        self.measured += 1
        self.tick(self.measured, max(self.measured, 3 * len(self.macs)), "mixed-precision plan")


__all__ = ["Drop", "MixedPlan", "plan_mixed"]
