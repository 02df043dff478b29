"""A third task is a class and its line in the registry."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elva_jax.config import schema
from elva_jax.parallel.mesh import make_mesh, shard_batch
from elva_jax.tasks.base import ModelTask
from elva_jax.tasks.registry import TASKS, make_task, task_of
from elva_jax.training.mfu import Speed
from elva_jax.training.setup import fresh_state, set_up
from elva_jax.training.step import TrainStep
from elva_jax.training.task import Content


class Line(ModelTask):
    """Fits y = a x + b to points."""

    exports = "line"
    init_from = ""
    row_tokens = 1
    logical_sizes: ClassVar = {}

    def batch_shapes(self):
        shape = jax.ShapeDtypeStruct((self.stage.batch_size,), jnp.float32)
        return {"x": shape, "y": shape}

    def init(self, key):
        return {"line": {"kernel": jnp.zeros(()), "bias": jnp.zeros(())}}

    def loss(self, params, frozen, batch):
        line = params["line"]
        error = line["kernel"] * batch["x"] + line["bias"] - batch["y"]
        loss = jnp.mean(jnp.square(error))
        return loss, {"tokens": jnp.float32(error.size), "square": loss}

    def content(self, batch):
        return Content(tokens=len(batch["x"]))

    def flops(self, content, metrics, matrices):
        return 6 * content.tokens * matrices.share("line")


@pytest.fixture
def config(monkeypatch):
    """A run with one stage of kind `line`."""
    monkeypatch.setitem(TASKS, "line", Line)
    config = schema.base()
    config.stages.points = schema.stage()
    config.stages.points.kind, config.stages.points.batch_size = "line", 8
    config.stages.points.optimizer.update(learning_rate=0.3, accumulate=2)
    config.curriculum = ("points",)
    return config


def test_it_is_found_and_learns(config):
    task, mesh = make_task(config, "points"), make_mesh(config.mesh)
    assert task_of(config.stages.points) is Line
    assert not task.teachers
    assert task.decoder_pieces() == []
    task.check_mesh(mesh)
    setup = set_up(task, mesh, 60)
    step, state = TrainStep(setup), fresh_state(setup, {"line/bias": jnp.float32(0.5)})
    assert float(state.params["line"]["bias"]) == 0.5
    x = np.linspace(-1, 1, task.stage.batch_size, dtype=np.float32)
    batch = {"x": x, "y": 3 * x + 1}
    for _ in range(60):
        state, metrics = step(state, {}, shard_batch(batch, mesh))
    assert float(metrics["square"]) < 1e-2
    assert float(metrics["tokens"]) == 8
    speed = Speed(setup)
    speed.add(batch)
    assert speed.report({"seconds": 2.0}, {})["model_tflops"] == pytest.approx(6 * 8 / 2e12)


def test_each_kind_of_the_schema_has_a_task(config):
    assert TASKS.keys() - {"line"} == {"elva", "teacher"}
    assert {task.exports for task in TASKS.values()} == {"elva", "vision", "line"}
