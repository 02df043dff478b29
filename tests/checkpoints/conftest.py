"""A tiny run's configuration."""

import runpy
from pathlib import Path

import pytest


@pytest.fixture
def config():
    """A new configuration, which a test may change."""
    script = Path(__file__).parents[1] / "training" / "tiny_run.py"
    return runpy.run_path(str(script))["get_config"]("teacher,video")
