"""Intervals, paired tests and sample sizes. Pure functions on numpy arrays; scipy is imported where it is needed."""

from edgewise.bench.stats.bootstrap import bootstrap_metric, bootstrap_percentiles, bootstrap_rate, paired_ratio
from edgewise.bench.stats.interval import Interval, Launches, Samples
from edgewise.bench.stats.percentiles import over_allowed, percentile, percentile_upper, sample_floor
from edgewise.bench.stats.proportions import (
    is_binary,
    mcnemar_p,
    mean_interval,
    paired_mean_drop,
    paired_sample_size,
    tango,
    tango_z,
    wilson,
)

__all__ = [
    "Interval",
    "Launches",
    "Samples",
    "bootstrap_metric",
    "bootstrap_percentiles",
    "bootstrap_rate",
    "is_binary",
    "mcnemar_p",
    "mean_interval",
    "over_allowed",
    "paired_mean_drop",
    "paired_ratio",
    "paired_sample_size",
    "percentile",
    "percentile_upper",
    "sample_floor",
    "tango",
    "tango_z",
    "wilson",
]
