"""What a budget can demand of a file before it is released. Torch-free.

Every limit that is left out is not checked. Limits stand for the float file of the same runtime, for the release before
(``release``), for parts of the samples (``slices``) and for patterns of load (``scenarios``).
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from edgewise.config import Config

OnInconclusive = Literal["fail", "warn", "pass"]
ON_INVALID = r"^(fail|retry:[1-9])$"


class SliceLimit(Config):
    """Limits for every slice of the samples: each has its own n and its own interval."""

    by: str = Field(min_length=1, description="`class`, a split that the task names, or a column of `file`")
    file: Path | None = Field(
        None, description="CSV with a column `id` and a column `by`; by default what was recorded with the answers"
    )
    only: tuple[str, ...] | None = Field(None, description="names of slices to judge; all by default")
    min_accuracy: float | None = Field(None, ge=0, le=1)
    max_accuracy_drop_pp: float | None = Field(None, ge=0, description="percentage points under the float reference")
    max_release_drop_pp: float | None = Field(None, ge=0, description="percentage points under the release before")
    min_n: int = Field(100, ge=1, description="a slice with fewer samples is told, and decides nothing")

    @model_validator(mode="after")
    def _demands_something(self) -> SliceLimit:
        if self.min_accuracy is None and self.max_accuracy_drop_pp is None and self.max_release_drop_pp is None:
            raise ValueError("expected min_accuracy, max_accuracy_drop_pp or max_release_drop_pp, got no limit")
        return self


class ScenarioLimit(Config):
    """Limits under one pattern of load, by the early-stopping upper estimate where they are on a tail."""

    min_qps: float | None = Field(None, gt=0, description="samples a second; in `server`, with the p99 budget held")
    max_p50_ms: float | None = Field(None, gt=0, description="of a query")
    max_p90_ms: float | None = Field(None, gt=0, description="of a query")
    max_p99_ms: float | None = Field(None, gt=0, description="of a query")

    @model_validator(mode="after")
    def _demands_something(self) -> ScenarioLimit:
        if all(value is None for value in self.model_dump().values()):
            raise ValueError("expected min_qps, max_p50_ms, max_p90_ms or max_p99_ms, got no limit")
        return self


class ReleaseLimit(Config):
    """Limits against the release before, judged where one is given (``edgewise gate --against``).

    Accuracy is paired on the samples both have answered; times, load time, memory and energy are measured again, both
    releases side by side; sizes are compared as they are. A ratio is that of this file to the release's of that name.
    """

    max_accuracy_drop_pp: float | None = Field(None, ge=0, description="percentage points")
    max_flip_rate: float | None = Field(None, ge=0, le=1, description="answers right in one and wrong in the other")
    max_latency_ratio: float | None = Field(None, gt=0, description="p50; 1.05 allows 5 % more")
    max_load_ratio: float | None = Field(None, gt=0, description="load time, of launches side by side")
    max_memory_ratio: float | None = Field(None, gt=0, description="peak memory, beside `memory_slack_bytes`")
    memory_slack_bytes: int = Field(2_000_000, ge=0, description="so much more peak memory is never a regression")
    max_size_ratio: float | None = Field(None, gt=0)
    max_energy_ratio: float | None = Field(None, gt=0, description="joules an inference")

    @model_validator(mode="after")
    def _demands_something(self) -> ReleaseLimit:
        if all(value is None for key, value in self.model_dump().items() if key != "memory_slack_bytes"):
            raise ValueError("expected a limit such as max_latency_ratio: 1.05, got none")
        return self


class Waiver(Config):
    """A broken limit that is accepted for a while. One that has expired, or lacks a reason or an owner, waives
    nothing."""

    file: str = Field(min_length=1, description="name of the file, as in the report")
    check: str = Field(
        min_length=1,
        description="key of the limit, such as max_p99_ms; `release.` or a scenario's name"
        " and a dot before it where it stands there",
    )
    slice: str | None = Field(None, description="such as class=7, where the limit is on slices")
    reason: str = Field("", description="why it is accepted")
    owner: str = Field("", description="who answers for it")
    expires: date = Field(description="the last day on which it holds, such as 2027-03-31")


def _list_or_one(value: Any) -> str:
    return "array" if isinstance(value, list | tuple) else "object"


class Budget(Config):
    """What a file must hold to be released; a limit left out is not checked.

    Accuracy is judged on paired answers (Tango's score interval), times on the interval of the measurement; sizes, load
    time and memory are compared as they are.
    """

    files: tuple[str, ...] | None = Field(
        None, description="names of files to judge, as in the report; INT8 by default"
    )
    min_accuracy: float | None = Field(None, ge=0, le=1)
    max_accuracy_drop_pp: float | None = Field(None, ge=0, description="percentage points under the float reference")
    min_speedup: float | None = Field(
        None,
        gt=0,
        description="p50 of the reference / p50 of the file, same runtime; CPU time where the machine was busy",
    )
    min_size_ratio: float | None = Field(None, gt=0, description="bytes of the reference / bytes of the file")
    max_p50_ms: float | None = Field(None, gt=0)
    max_p90_ms: float | None = Field(None, gt=0)
    max_p99_ms: float | None = Field(None, gt=0)
    max_size_bytes: int | None = Field(None, gt=0)
    max_peak_memory_bytes: int | None = Field(None, gt=0, description="largest of the launches, from loading on")
    max_load_ms: float | None = Field(None, gt=0, description="median of the launches, without an interval")
    min_qps: float | None = Field(None, gt=0, description="samples a second, one caller that never waits")
    max_joules_per_inference: float | None = Field(None, gt=0, description="above idling; needs a sensor")
    max_flip_rate: float | None = Field(None, ge=0, le=1)
    slices: (
        Annotated[
            Annotated[SliceLimit, Tag("object")] | Annotated[tuple[SliceLimit, ...], Field(min_length=1), Tag("array")],
            Discriminator(_list_or_one),
        ]
        | None
    ) = Field(None, description="limits that hold for every slice; one, or a list of them")
    scenarios: dict[str, ScenarioLimit] = Field({}, description="by the name of a measured scenario")
    release: ReleaseLimit | None = Field(None, description="against the release before")
    waivers: tuple[Waiver, ...] = Field((), description="broken limits that are accepted for a while")
    expected_flip_rate: float | None = Field(
        None, gt=0, le=1, description="for the power check, before anything is measured; 0.04 by default"
    )
    refuse_underpowered: bool = Field(
        False, description="refuse to train or measure where a limit can't be shown to hold with so few samples"
    )
    on_inconclusive: OnInconclusive = Field(
        "fail", description="what INCONCLUSIVE makes of the exit code: fail 4, warn 0 with a warning, pass 0"
    )
    on_invalid: str = Field("fail", pattern=ON_INVALID, description="INVALID: fail, or retry:N, measure again so often")

    @property
    def sliced(self) -> tuple[SliceLimit, ...]:
        """The limits on slices, as a list."""
        if self.slices is None:
            return ()
        return (self.slices,) if isinstance(self.slices, SliceLimit) else self.slices

    @property
    def retries(self) -> int:
        """How often an invalid measurement is made again."""
        return int(self.on_invalid.partition(":")[2] or 0)

    @property
    def limits(self) -> dict[str, float]:
        """The plain limits that are set, those at the top of the budget."""
        plain = self.model_dump(exclude=NO_LIMITS, exclude_none=True)
        return {key: float(value) for key, value in plain.items()}

    @property
    def empty(self) -> bool:
        """Whether it demands nothing, so that everything would pass."""
        return not (self.limits or self.sliced or self.scenarios or self.release)


NO_LIMITS = {
    "files",
    "slices",
    "scenarios",
    "release",
    "waivers",
    "expected_flip_rate",
    "refuse_underpowered",
    "on_inconclusive",
    "on_invalid",
}
"""Keys of a budget that are no plain limits."""
