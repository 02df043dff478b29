"""Fixtures of training tests: the toy run, its data, its training steps."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from elva_jax.checkpoints.save import save_weights
from elva_jax.config.serialize import freeze
from elva_jax.config.teachers import with_teacher
from elva_jax.models.build import parameter_shapes
from elva_jax.parallel.mesh import make_mesh
from elva_jax.tasks.registry import make_task
from elva_jax.tools.datasets.moving_shapes import builder
from elva_jax.tools.datasets.moving_shapes.tokenizer import build_for_moving_shapes
from elva_jax.training.setup import fresh_state, set_up
from elva_jax.training.step import TrainStep
from elva_jax.utils.trees import unflatten_paths


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_run():
    """The module tiny_run.py, which is not in a package."""
    return _load("tiny_run")


@pytest.fixture(scope="session")
def runs():
    """The module runs.py, which is not in a package."""
    return _load("runs")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder with moving_shapes/easy, two dozen records per split, and its tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    builder.build(folder, "easy", sizes={"image": 24, "train": 24}, workers=1)
    build_for_moving_shapes(folder / "tokenizer", ("easy",), vocab_size=500, scenes=60)
    return folder


@pytest.fixture
def config(tiny_run):
    """The configuration of the toy run; tests that read data set its `data_dir`."""
    return tiny_run.get_config()


@pytest.fixture
def with_random_towers(tmp_path):
    """`fill(config)` gives every entry of `teachers` a folder of random weights."""

    def fill(config):
        rng = np.random.default_rng(0)
        for name, teacher in freeze(config).teachers.items():
            alone = with_teacher(freeze(config), teacher)
            params = {
                path: rng.normal("scale" in path, 0.2, shape).astype(np.float32)
                for path, shape in parameter_shapes(alone, "vision").items()
            }
            save_weights(tmp_path / name, unflatten_paths(params), alone, "teacher")
            config.teachers[name].init_from = str(tmp_path / name)

    return fill


@pytest.fixture(scope="session")
def stage_of():
    """`start(config, stage)` returns a stage's train_step, fresh state, and setup."""

    def start(config, name, steps=40):
        setup = set_up(make_task(config, name), make_mesh(config.mesh), steps)
        return TrainStep(setup), fresh_state(setup, {}), setup

    return start
