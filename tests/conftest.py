"""Settings of the whole suite."""

import jax
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
