"""Schedules: golden values, what is refused, and that they survive a recipe."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from edgewise.compress.schedule import Temperature, Value, value_at

VALUE = TypeAdapter(Value)
TEMPERATURE = TypeAdapter(Temperature)

GOLDEN = [
    (3, {0: 3.0, 2.5: 3.0, 10: 3.0}),
    ({"kind": "warmup", "value": 2.0, "epochs": 4}, {0: 0.0, 1: 0.5, 2.5: 1.25, 4: 2.0, 4.5: 2.0, 10: 2.0}),
    ({"kind": "warmup", "value": 1.0, "epochs": 20}, {0: 0.0, 5: 0.25, 10: 0.5}),
    ({"kind": "linear", "start": 1.0, "end": 3.0}, {0: 1.0, 2.5: 1.5, 5: 2.0, 10: 3.0, 11: 3.0}),
    ({"kind": "linear", "start": 4.0, "end": 0.0}, {0: 4.0, 2.5: 3.0, 9: 0.4, 10: 0.0}),
    (
        {"kind": "cosine", "start": 10.0, "end": 0.0},
        {0: 10.0, 2.5: 5 + 5 * math.sqrt(0.5), 10 / 3: 7.5, 5: 5.0, 20 / 3: 2.5, 10: 0.0, 12: 0.0},
    ),
    (
        {"kind": "piecewise", "points": [[0, 0.0], [2, 1.0], [7.5, 0.25]]},
        {0: 0.0, 1.99: 0.0, 2: 1.0, 7.49: 1.0, 7.5: 0.25, 10: 0.25},
    ),
]


@pytest.mark.parametrize(("told", "values"), GOLDEN)
def test_golden_values_of_a_run_of_ten_epochs(told: object, values: dict[float, float]) -> None:
    value = VALUE.validate_python(told)
    for epoch, expected in values.items():
        assert value_at(value, epoch, 10) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("told", "_values"), GOLDEN)
def test_survives_being_written_and_read(told: object, _values: object) -> None:
    value = VALUE.validate_python(told)
    assert VALUE.validate_json(VALUE.dump_json(value)) == value


def test_warmup_counts_epochs_and_the_ramps_count_the_run() -> None:
    warmup, ramp = VALUE.validate_python(GOLDEN[1][0]), VALUE.validate_python(GOLDEN[3][0])
    assert value_at(warmup, 2.0, 10) == value_at(warmup, 2.0, 100) == 1.0
    assert value_at(ramp, 2.0, 10) == value_at(ramp, 20.0, 100) == pytest.approx(1.4)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (-0.1, "greater than or equal to 0"),
        ("much", "valid number"),
        ({"kind": "sawtooth", "value": 1}, "sawtooth"),
        ({"value": 1, "epochs": 2}, "kind|tag"),
        ({"kind": "warmup", "value": 1, "epochs": 0}, "greater than 0"),
        ({"kind": "warmup", "value": 1, "epochs": 2, "start": 0}, "Extra inputs"),
        ({"kind": "linear", "start": 1}, "Field required"),
        ({"kind": "cosine", "start": 1, "end": -1}, "greater than or equal to 0"),
        ({"kind": "piecewise", "points": []}, "at least 1 item"),
        ({"kind": "piecewise", "points": [[1, 2.0]]}, "first must be at epoch 0"),
        ({"kind": "piecewise", "points": [[0, 2.0], [3, 1.0], [3, 0.0]]}, "each later than the one before"),
        ({"kind": "piecewise", "points": [[0, 2.0], [3, -1.0]]}, "values must be 0 or more"),
    ],
)
def test_mistakes_are_refused(told: object, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        VALUE.validate_python(told)


@pytest.mark.parametrize(
    "told",
    [
        0,
        {"kind": "warmup", "value": 4.0, "epochs": 2},
        {"kind": "linear", "start": 4.0, "end": 0.0},
        {"kind": "cosine", "start": 0.0, "end": 4.0},
        {"kind": "piecewise", "points": [[0, 4.0], [2, 0.0]]},
    ],
)
def test_a_temperature_never_reaches_zero(told: object) -> None:
    VALUE.validate_python(told)
    with pytest.raises(ValidationError, match="a temperature must stay above 0"):
        TEMPERATURE.validate_python(told)


def test_a_temperature_may_fall_to_one() -> None:
    falling = TEMPERATURE.validate_python({"kind": "linear", "start": 10, "end": 1})
    assert value_at(falling, 5, 10) == 5.5


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("adapter", [VALUE, TEMPERATURE])
def test_what_is_no_finite_number_is_refused(adapter: TypeAdapter[object], number: float) -> None:
    for told in (
        number,
        {"kind": "warmup", "value": number, "epochs": 2},
        {"kind": "linear", "start": number, "end": 1},
        {"kind": "cosine", "start": 1, "end": number},
        {"kind": "piecewise", "points": [[0, number]]},
        {"kind": "piecewise", "points": [[0, 1.0], [number, 2.0]]},
    ):
        with pytest.raises(ValidationError, match="finite number"):
            adapter.validate_python(told)


def test_configs_of_losses_load_without_torch() -> None:
    names = ["dist", "dkd", "kd", "logit_gram", "logit_mse", "mlkd", "multi_label", "nkd", "regression", "ttm"]
    imports = "; ".join(f"import edgewise.compress.losses.{name}" for name in names)
    code = f"import sys; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
