from __future__ import annotations

import math

import numpy as np
import pytest

from edgewise.deploy.parity import Parity, compare, flips, sqnr_db
from edgewise.errors import MeasureError


def test_sqnr_is_the_textbook_formula() -> None:
    reference = np.array([[3.0, 4.0], [0.0, 12.0]])  # power 169
    other = reference + np.array([[0.0, 1.0], [0.0, 0.0]])  # noise 1
    assert sqnr_db(reference, other) == pytest.approx(10 * math.log10(169))


def test_a_tenth_of_the_noise_is_twenty_decibel_more() -> None:
    rng = np.random.default_rng(0)
    reference, noise = rng.normal(size=(2, 50, 10))
    gain = sqnr_db(reference, reference + noise / 10) - sqnr_db(reference, reference + noise)
    assert gain == pytest.approx(20, abs=1e-6)


def test_equal_answers_are_infinitely_close_and_silence_is_infinitely_far() -> None:
    x = np.ones((2, 3), np.float32)
    assert sqnr_db(x, x) == math.inf
    assert sqnr_db(np.zeros((2, 3)), x) == -math.inf


def test_float16_answers_do_not_overflow() -> None:
    x = np.full((4, 4), 60000, np.float16)
    assert sqnr_db(x, x * np.float16(0.5)) == pytest.approx(20 * math.log10(2), abs=1e-3)


def test_flips_counts_samples_with_another_first_answer() -> None:
    reference = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    other = np.array([[0.6, 0.4], [0.7, 0.3], [0.4, 0.6]])
    assert flips(reference, other) == 2
    assert flips(reference, reference * 5 + 1) == 0


def test_compare_says_all_of_it() -> None:
    reference = np.array([[1.0, 0.0], [0.0, 1.0]])
    other = np.array([[1.0, 0.0], [0.5, 0.0]])
    assert compare(reference, other) == Parity(
        n=2, sqnr_db=pytest.approx(10 * math.log10(2 / 1.25)), flips=1, max_abs=1.0
    )


@pytest.mark.parametrize("function", [sqnr_db, flips, compare])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_never_a_number(function, bad: float) -> None:
    good = np.ones((2, 2))
    wrong = np.array([[1.0, bad], [1.0, 1.0]])
    with pytest.raises(MeasureError, match="1 of 4 values of the other"):
        function(good, wrong)
    with pytest.raises(MeasureError, match="reference"):
        function(wrong, good)


def test_shapes_must_agree() -> None:
    with pytest.raises(MeasureError, match="one shape"):
        sqnr_db(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(MeasureError, match="one shape"):
        sqnr_db(np.ones((0, 3)), np.ones((0, 3)))
    with pytest.raises(MeasureError, match="N, K"):
        flips(np.ones(3), np.ones(3))


def test_answers_for_tokens_flip_where_one_word_that_counts_does() -> None:
    random = np.random.default_rng(0)
    reference = random.standard_normal((4, 5, 3))
    judged = np.ones((4, 5), bool)
    judged[:, 4] = judged[3] = False
    other = reference.copy()
    for sample, token in ((0, 1), (0, 2), (1, 4), (3, 0)):  # the last two don't count
        other[sample, token] = np.roll(reference[sample, token], 1)
    found = compare(reference, other, judged)
    assert (found.n, found.flips) == (4, 1)
    assert found.sqnr_db == pytest.approx(sqnr_db(reference[judged], other[judged]))
    assert found.max_abs == pytest.approx(np.abs(reference[0, 1:3] - other[0, 1:3]).max())
    assert compare(reference, other).flips == 3


def test_a_number_has_nothing_to_flip() -> None:
    found = compare(np.array([[1.0], [-2.0]]), np.array([[1.0], [2.0]]))
    assert found.flips is None
    assert found.max_abs == 4
