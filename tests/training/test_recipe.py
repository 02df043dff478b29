"""The trainer runs what it is given: here a task, batches and an evaluation of no model at all."""

import dataclasses
import io
import os
import signal
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from elva_jax.checkpoints.restore import load_run
from elva_jax.training.metric_writers import read_metrics
from elva_jax.training.preemption import PREEMPTED
from elva_jax.training.recipe import Recipe
from elva_jax.training.task import Content, Task
from elva_jax.training.train import run

STEPS = 4


class Numbers:
    """Batches of random numbers around 3; a position is the number of batches that were read."""

    stats: ClassVar = {"read": 1.0}
    dropped = 0
    examples_per_epoch = 10
    fingerprint = "numbers"

    def __init__(self, rows):
        self._rows, self._position = rows, 0

    def __next__(self):
        self._position += 1
        return {"x": np.random.default_rng(self._position).normal(3, 1, self._rows)}

    def get_state(self):
        return {"position": self._position}

    def resume(self, states):
        (self._position,) = {state["position"] for state in states}

    def close(self):
        pass


class Mean(Task):
    """Finds the mean of numbers; its square error is least there."""

    logical_sizes: ClassVar = {}

    def init(self, key):
        return {"elva": {"mean": jnp.zeros(()), "unused": jnp.zeros(())}}

    def loss(self, params, frozen, batch):
        error = batch["x"] - params["elva"]["mean"] + frozen["shift"]
        return jnp.mean(jnp.square(error)), {"tokens": jnp.float32(error.size)}

    def content(self, batch):
        return Content(tokens=len(batch["x"]))

    def flops(self, content, metrics, matrices):
        return content.tokens


class Data:
    """Random numbers; an evaluation is the square error of the mean."""

    def __init__(self, task, tokenizer):
        self._rows, self._words = task.stage.batch_size, len(tokenizer)

    def open_batches(self, *, process_index=0, process_count=1):
        assert self._words == 2
        return Numbers(self._rows // process_count)

    def examples_per_step(self):
        return self._rows

    def make_evaluator(self, setup, frozen):
        return lambda params, stop: {"loss": float(jnp.square(params["elva"]["mean"] - 4))}


class Stopping(Data):
    """SIGTERM arrives while it is evaluated."""

    def make_evaluator(self, setup, frozen):
        evaluate = super().make_evaluator(setup, frozen)

        def interrupted(params, stop):
            os.kill(os.getpid(), signal.SIGTERM)
            return evaluate(params, stop)

        return interrupted


def load_tokenizer(config, folder):
    del config, folder
    words = models.WordLevel({"a": 0, "b": 1}, unk_token="a")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))


RECIPE = Recipe(
    make_task=Mean,
    load_tokenizer=load_tokenizer,
    open_data=Data,
    initial_weights=lambda setup, workdir, say: {"elva/mean": jnp.float32(2)},
    frozen_trees=lambda setup, workdir: {"shift": jnp.float32(1)},
    describe=lambda config, mesh: "no attention",
)


@pytest.fixture
def plain(config):
    """A stage of `STEPS` steps of Adam, saved after every one and evaluated after every two."""
    stage = config.stages.sft
    config.curriculum, config.checkpoint.every = ("sft",), 1
    config.log.update(tensorboard=False, every=1)
    stage.batch_size, stage.steps, stage.eval.every = 5, STEPS, 2
    stage.optimizer.update(
        name="adamw", learning_rate=0.1, final_ratio=1.0, warmup_ratio=0.0, weight_decay=0.0
    )
    stage.optimizer.update(clip_norm=0.0, accumulate=1)
    return config


def adam(steps, b1, b2):
    """The mean after some steps from 2, by Kingma and Ba's algorithm in NumPy."""
    mean, m, v = 2.0, 0.0, 0.0
    for step in range(1, steps + 1):
        x = np.random.default_rng(step).normal(3, 1, 5)
        gradient = -2 * np.mean(x + 1 - mean)
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        mean -= 0.1 * (m / (1 - b1**step)) / np.sqrt(v / (1 - b2**step))
    return mean


def test_a_run_of_another_task_learns_reports_evaluates_and_continues(plain, runs, tmp_path):
    told, settings = io.StringIO(), plain.stages.sft.optimizer
    assert run(plain, tmp_path / "whole", RECIPE, console=Console(file=told, width=200)) == 0
    assert "; no attention" in told.getvalue()
    found = load_run(tmp_path / "whole")
    assert found.step == STEPS
    wanted = adam(STEPS, settings.b1, settings.b2)
    np.testing.assert_allclose(found.params["elva"]["mean"], wanted, rtol=1e-4)
    assert found.params["elva"]["unused"] == 0
    lines = read_metrics(tmp_path / "whole" / "sft")
    losses = {line["step"]: line["eval/loss"] for line in lines if "eval/loss" in line}
    means = {step: adam(step, settings.b1, settings.b2) for step in (2, STEPS)}
    assert losses == {
        step: pytest.approx((mean - 4) ** 2, rel=1e-3) for step, mean in means.items()
    }
    assert all(line["read"] == 1 for line in lines if "read" in line)

    cut = dataclasses.replace(RECIPE, open_data=Stopping)
    assert run(plain, tmp_path / "cut", cut) == PREEMPTED
    assert runs.newest(tmp_path / "cut", "sft") == 2
    assert run(plain, tmp_path / "cut", RECIPE) == 0
    assert runs.differences(tmp_path / "cut", tmp_path / "whole", ["sft"]) == []


def test_epochs_are_counted_in_the_batches(plain, tmp_path):
    plain.stages.sft.update(steps=0, epochs=1.5)
    plain.stages.sft.eval.every = 0
    assert run(plain, tmp_path, RECIPE) == 0
    assert load_run(tmp_path).step == 3  # 15 examples in batches of 5
