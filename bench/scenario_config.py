"""How queries come to a file: MLPerf's four scenarios (arXiv 1911.02549), and a sweep of requests in flight.

Torch-free, like every config.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgewise.config import Config

Engine = Literal["edgewise", "loadgen"]


class _Scenario(Config):
    name: str = Field("", description="how budget and report call it; its kind by default")
    repeats: int = Field(3, ge=1, description="fresh processes; the interval comes from them")
    seconds: float = Field(3.0, gt=0, description="how long one run takes at least, by the speed of the warm-up")
    max_seconds: float = Field(60.0, gt=0, description="a run that takes longer ends there, and doesn't count")
    length: int | None = Field(
        None, ge=1, description="bring every text to so many tokens, cut or repeated; their own lengths by default"
    )

    @property
    def known_as(self) -> str:
        """Its name, or its kind."""
        return self.name or str(getattr(self, "kind", ""))


class SingleStream(_Scenario):
    """One query of one batch at a time, the next when the last is answered; what counts is the latency."""

    kind: Literal["single_stream"] = "single_stream"
    min_queries: int = Field(64, ge=1, description="64 let p90 be told, 662 p99")
    engine: Engine = Field("edgewise", description="loadgen: MLPerf's own, where mlcommons-loadgen is installed")


class MultiStream(_Scenario):
    """One query of several samples at a time; its latency ends with its last sample."""

    kind: Literal["multi_stream"] = "multi_stream"
    samples_a_query: int = Field(8, ge=1, description="a multiple of the batch")
    streams: int = Field(1, ge=1, description="how many of a query's batches run at once")
    min_queries: int = Field(64, ge=1, description="64 let p90 be told, 662 p99")
    engine: Engine = Field("edgewise", description="loadgen: MLPerf's own, where mlcommons-loadgen is installed")


class Server(_Scenario):
    """Queries of one batch come at random times (Poisson); what counts is how many a second keep the p99 budget.

    A latency begins when its query was due, so that waiting counts. The rate is searched, or given by ``qps``.
    """

    kind: Literal["server"] = "server"
    p99_ms: float = Field(gt=0, description="the budget: the early-stopping upper estimate of p99 must hold it")
    qps: float | None = Field(None, gt=0, description="try this many queries a second alone; the largest by default")
    streams: int = Field(1, ge=1, description="how many queries run at once")
    min_queries: int = Field(662, ge=459, description="459 is the least that p99 can be told from")
    tolerance: float = Field(0.03, ge=0.005, le=0.5, description="how closely the rate is searched, of the rate")
    seed: int = Field(0, ge=0)
    engine: Engine = Field("edgewise", description="loadgen: MLPerf's own, where mlcommons-loadgen is installed")


class Offline(_Scenario):
    """All samples are there from the start; what counts is how many a second are answered."""

    kind: Literal["offline"] = "offline"
    streams: int = Field(1, ge=1, description="how many batches run at once")
    min_queries: int = Field(64, ge=1, description="batches at least")
    engine: Engine = Field("edgewise", description="loadgen: MLPerf's own, where mlcommons-loadgen is installed")


class Sweep(_Scenario):
    """1, 2, 4, ... queries in flight, each stream sending its next when its last is answered, until that gains nothing.

    Each count is a result of its own: ``sweep x1``, ``sweep x2``, ...
    """

    kind: Literal["sweep"] = "sweep"
    max_streams: int | None = Field(None, ge=1, description="all CPUs by default")
    min_gain: float = Field(0.05, ge=0, description="a step that gains less ends the sweep")
    p99_ms: float | None = Field(None, gt=0, description="a step over this p99 ends the sweep, too")
    min_queries: int = Field(64, ge=1)


Scenario = Annotated[SingleStream | MultiStream | Server | Offline | Sweep, Field(discriminator="kind")]
