"""Example inputs: what a net is shown before there is data."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.models.inputs import blank, trimmed

SPECIAL = 5


@pytest.mark.parametrize("padding", [0, 1, SPECIAL, 30 + SPECIAL, 31 + SPECIAL])
def test_a_blank_text_is_no_padding(padding: int) -> None:
    """[PAD] is one of the first ids, or was added behind the last, alone or before [MASK]."""
    tokens = blank((24, 32 + SPECIAL), 2)
    assert tokens.dtype == np.int64
    assert trimmed(tokens, padding).shape == (2, 24)
