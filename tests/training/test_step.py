"""Tests of the training step on the toy model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elva_jax.models.build import vision_tower
from elva_jax.parallel.mesh import shard_batch
from elva_jax.tasks.registry import make_task
from elva_jax.training import step
from elva_jax.utils.trees import key_path

COMPILE_FAST = {"xla_backend_optimization_level": 0}
STEPS = 40  # the same in every schedule, so that equal steps are compiled once


def by_path(tree):
    return {
        key_path(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def unguided(config, name="video"):
    config.stages[name].loss.update(tube=0.0, contrastive=0.0)
    return config


@pytest.fixture(scope="module")
def unguided_video(tiny_run, stage_of):
    """(train_step, a maker of fresh states, a batch) of one stage, compiled once."""
    config = unguided(tiny_run.get_config())
    train_step, state, setup = stage_of(config, "video")
    batch = shard_batch(tiny_run.random_batch(config, "video"), setup.mesh)
    return train_step, lambda: jax.tree.map(jnp.copy, state), batch  # a step takes its state


def test_batch_is_memorized(unguided_video):
    train_step, start, batch = unguided_video
    state = start()
    first = None
    for _ in range(STEPS):
        state, metrics = train_step(state, {}, batch)
        first = first or float(metrics["generation"])
    assert float(metrics["generation"]) < 0.5 * first
    assert float(metrics["accuracy"]) > 0.5
    assert int(state.step) == STEPS
    assert int(state.bad_steps) == 0


def test_micro_batches_equal_one_large_batch(config, tiny_run):
    """Rows have different numbers of answer tokens, so an unweighted mean would differ."""
    task = make_task(unguided(config), "video")
    params = jax.jit(lambda key: nn.meta.unbox(task.init(key)))(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, tiny_run.random_batch(config, "video"))

    def gradient(batch, accumulate):
        program = jax.jit(
            lambda p, b: step.value_and_grad(task.loss, p, {}, b, accumulate),
            compiler_options=COMPILE_FAST,
        )
        return program(params, batch)

    whole, whole_metrics, whole_grads = gradient(batch, 1)
    parts, part_metrics, part_grads = gradient(task.prepare(batch), 2)
    assert float(parts) == pytest.approx(float(whole), rel=1e-5)
    assert float(part_metrics["tokens"]) == float(whole_metrics["tokens"])
    for path, leaf in by_path(whole_grads).items():
        np.testing.assert_allclose(by_path(part_grads)[path], leaf, atol=1e-6, err_msg=path)


def test_frozen_parameters_stay(config, tiny_run, stage_of):
    config.stages.video.optimizer.freeze = ("decoder/layers", "embed_tokens$")
    config.stages.video.optimizer.update(name="adamw", weight_decay=0.1)
    train_step, state, setup = stage_of(unguided(config), "video")
    before = by_path(state.params)
    batch = shard_batch(tiny_run.random_batch(config, "video"), setup.mesh)
    state, _ = train_step(state, {}, batch)
    for path, leaf in by_path(state.params).items():
        frozen = "decoder/layers" in path or path.endswith("embed_tokens")
        assert np.array_equal(leaf, before[path]) == frozen, path
    moments = {path for path, leaf in by_path(state.opt_state).items() if leaf.ndim}
    assert not any("layers" in path for path in moments)


def test_step_that_is_not_finite_is_skipped_and_counted(unguided_video):
    """An infinite norm scale makes the loss NaN until it is replaced by a finite one."""
    train_step, start, batch = unguided_video
    state, _ = train_step(start(), {}, batch)
    scale = state.params["elva"]["decoder"]["norm"]["scale"]
    healthy = np.asarray(scale)

    def with_scale(state, value):
        params = jax.tree.map(jnp.copy, state.params)
        params["elva"]["decoder"]["norm"]["scale"] = jnp.asarray(value)
        return state.replace(params=params)

    before = by_path((state.params, state.opt_state))
    state = with_scale(state, healthy * np.inf)
    for k in (1, 2):
        state, metrics = train_step(state, {}, batch)
        assert not np.isfinite(float(metrics["loss"]))
        assert (int(state.bad_steps), int(state.bad_run), int(state.step)) == (k, k, 1 + k)
    after = by_path((with_scale(state, healthy).params, state.opt_state))
    for path, leaf in before.items():
        np.testing.assert_array_equal(after[path], leaf, err_msg=path)
    state, metrics = train_step(with_scale(state, healthy), {}, batch)
    assert np.isfinite(float(metrics["loss"]))
    assert (int(state.bad_steps), int(state.bad_run)) == (2, 0)


def test_guidance_trains_heads_and_model_but_not_the_teacher(config, tiny_run, stage_of):
    config.stages.video.optimizer.name = "adamw"
    train_step, state, setup = stage_of(config, "video")
    tower = vision_tower(config)
    side = config.teacher.image_size
    teacher = nn.meta.unbox(jax.jit(tower.init)(jax.random.key(1), jnp.zeros((1, side, side, 3))))[
        "params"
    ]
    before, frozen = by_path(state.params), by_path(teacher)
    batch = shard_batch(tiny_run.random_batch(config, "video"), setup.mesh)
    state, metrics = train_step(state, {"teacher": teacher}, batch)
    terms = {name: float(metrics[name]) for name in ("generation", "tube", "contrastive")}
    weights = config.stages.video.loss
    assert float(metrics["loss"]) == pytest.approx(
        sum(weights[name] * value for name, value in terms.items()), rel=1e-5
    )
    assert all(value > 0 for value in terms.values())
    still = [
        path for path, leaf in by_path(state.params).items() if np.array_equal(leaf, before[path])
    ]
    assert still == []
    for path, leaf in by_path(teacher).items():
        np.testing.assert_array_equal(leaf, frozen[path])


def test_terms_of_weight_zero_are_not_computed(config, tiny_run, stage_of):
    config.stages.video.loss.update(generation=0.0, tube=1.0, contrastive=0.0)
    task = make_task(config, "video")
    params = jax.eval_shape(lambda key: nn.meta.unbox(task.init(key)), jax.random.key(0))
    tower = vision_tower(config)
    side = config.teacher.image_size
    pixels = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    teacher = jax.eval_shape(
        lambda x: nn.meta.unbox(tower.init(jax.random.key(0), x)["params"]), pixels
    )
    _, metrics = jax.eval_shape(
        task.loss, params, {"teacher": teacher}, tiny_run.random_batch(config, "video")
    )
    assert "tube" in metrics
    assert not {"generation", "contrastive", "accuracy"} & metrics.keys()
    text = str(
        jax.make_jaxpr(task.loss)(
            params, {"teacher": teacher}, tiny_run.random_batch(config, "video")
        )
    )
    assert f",{config.model.vocab_size}]" not in text  # no logits
