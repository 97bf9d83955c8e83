"""What a recipe can say about measuring. Torch-free."""

from __future__ import annotations

from pydantic import Field, model_validator

from edgewise.bench.scenario_config import Scenario
from edgewise.config import Config


class Bench(Config):
    """How the files are measured: fresh processes, interleaved blocks, accuracy on the test split."""

    threads: int = Field(1, ge=1, description="threads a file may use")
    batch: int = Field(1, ge=1, description="samples an inference")
    launches: int = Field(3, ge=1, description="fresh processes a file, at least")
    max_launches: int | None = Field(
        None, ge=1, description="at most, where `precision` is not reached before; twice `launches` by default"
    )
    precision: float = Field(
        0.02, gt=0, lt=1, description="half width of each p50's 95 % interval, of the p50, at which launches end"
    )
    blocks: int = Field(12, ge=2, description="timed blocks a launch, files taking turns in random order")
    block_ms: float = Field(50.0, gt=0, description="how long a block runs; one inference at least")
    warmup_s: float = Field(0.5, ge=0, description="untimed at least for so long, then until times settle")
    accuracy_samples: int | None = Field(None, ge=1, description="test samples to answer; all by default")
    device: str = Field(
        "local", min_length=1, description="where to measure: `local`, `ssh://[user@]host[:port]` or `adb://SERIAL`"
    )
    energy: bool = Field(False, description="measure joules an inference too, where the device has a sensor")
    sample_hz: float = Field(
        5.0, ge=0, le=100, description="how often clocks, temperatures and power are read meanwhile; 0 for never"
    )
    scenarios: tuple[Scenario, ...] = Field(
        (), description="patterns of load to run each file under, after the timed launches, each name once"
    )
    seed: int = Field(0, ge=0, description="of the order of blocks and the choice of samples")

    @property
    def most_launches(self) -> int:
        """How many launches a file may get."""
        return 2 * self.launches if self.max_launches is None else self.max_launches

    @model_validator(mode="after")
    def _scenarios_told_apart(self) -> Bench:
        names = [scenario.known_as for scenario in self.scenarios]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"scenarios: two are called {twice!r}; give one a name")
        return self

    @model_validator(mode="after")
    def _launches_in_order(self) -> Bench:
        if self.max_launches is not None and self.max_launches < self.launches:
            raise ValueError(f"max_launches: expected at least launches, {self.launches}, got {self.max_launches}")
        return self
