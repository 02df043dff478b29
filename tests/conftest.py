"""Settings of the whole suite."""

import jax
import numpy as np
import pytest
from hypothesis import settings

jax.config.update("jax_numpy_rank_promotion", "raise")
settings.register_profile("elva", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("elva")


@pytest.fixture
def config_dir():
    """The repository's configs."""
    from pathlib import Path

    return Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="session")
def videos():
    """Noise, a still picture four times, a half-still video of another shape, one frame."""
    rng = np.random.default_rng(0)

    def noise(*shape):
        return rng.integers(0, 256, (*shape, 3), dtype=np.uint8)

    still, half = noise(32, 32), [noise(32, 24) for _ in range(4)]
    for frame in half:
        frame[:16] = half[0][:16]
    return [[noise(32, 32) for _ in range(4)], [still] * 4, half, [noise(16, 32)]]
