"""Which frames are read at high resolution."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elva_jax.errors import ConfigError
from elva_jax.video.layout import frame_tokens
from elva_jax.video.resolution import POLICIES, hybrid

COUNTS = st.tuples(st.integers(0, 60), st.integers(0, 60)).filter(any)


@given(COUNTS, st.sampled_from(POLICIES))
def test_counts(counts, policy):
    high = hybrid(*counts, policy)
    assert high.dtype == bool
    assert (int(high.sum()), int((~high).sum())) == counts


@given(COUNTS)
def test_interleave_is_even(counts):
    """In every stretch of the video the share of high frames is that of the whole, to within one frame at each end."""
    high = hybrid(*counts)
    share = counts[0] / len(high)
    drift = np.cumsum(high) - share * np.arange(1, len(high) + 1)
    assert np.abs(drift).max() <= 1


def test_examples():
    assert hybrid(2, 2).tolist() == [False, True, False, True]
    assert hybrid(1, 2).tolist() == [False, True, False]
    assert hybrid(3, 0).tolist() == [True] * 3
    assert hybrid(0, 3).tolist() == [False] * 3
    assert hybrid(3, 4, "ends").tolist() == [True, True, False, False, False, False, True]


@pytest.mark.parametrize(
    ("high", "low", "tokens"), [(8, 16, 5976), (8, 32, 7144), (16, 0, 9616), (16, 8, 10200), (16, 16, 10784), (32, 0, 19232)]
)
def test_table_6(high, low, tokens):
    sides = np.where(hybrid(high, low), 672 // 28, 224 // 28)
    assert sum(frame_tokens(int(side), int(side)) for side in sides) == tokens


@pytest.mark.parametrize("arguments", [(-1, 3), (3, -1), (0, 0), (1, 1, "middle")])
def test_refused(arguments):
    with pytest.raises(ConfigError):
        hybrid(*arguments)
