"""Whose numbers these are, and that two devices' numbers don't mix by accident."""

from __future__ import annotations

import json
import os

import pytest

from edgewise.bench.provenance import IDENTITY, check_same_device, provenance, usable_cpus
from edgewise.errors import MeasureError


def test_the_device_is_described_by_plain_data() -> None:
    found = provenance()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(IDENTITY) <= set(found["device"])
    assert found["device"]["cores"] == os.cpu_count()
    assert found["device"]["cpu"]
    assert found["versions"]["python"]
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)


def test_one_device_compares_with_itself_whatever_its_load() -> None:
    one, other = provenance(), provenance()
    other["state"] = {"load_average": [99.0, 99.0, 99.0]}
    assert check_same_device(one, other) == []


def test_another_device_is_refused_unless_asked_for() -> None:
    one, other = provenance(), provenance()
    other["device"] = {**other["device"], "cpu": "another CPU", "kernel": "0.0"}
    with pytest.raises(MeasureError, match=r"(?s)different devices.*cpu: .*another CPU.*kernel.*by name"):
        check_same_device(one, other)
    assert len(check_same_device(one, other, anyway=True)) == 2
