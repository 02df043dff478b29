"""Tests of LoRA and frozen parameters on the toy model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elva_jax.checkpoints import restore
from elva_jax.checkpoints.save import Checkpoints
from elva_jax.ops import lora
from elva_jax.parallel.mesh import make_mesh, shard_batch
from elva_jax.tasks.registry import make_task
from elva_jax.utils.trees import flatten_paths

RANK, ALPHA = 2, 6.0


@pytest.fixture
def adapting(config):
    """The toy run's merging stage with LoRA of rank 2 on the queries and the down projection."""
    return with_factors(config)


def with_factors(config):
    config.stages.sft.optimizer.name = "adamw"
    config.stages.sft.optimizer.learning_rate = 0.05
    config.stages.sft.optimizer.lora.update(rank=RANK, alpha=ALPHA, targets=("q_proj", "^down"))
    return config


def drawn(params, seed=0):
    """The same tree with random factors that are not zero."""
    rng = np.random.default_rng(seed)
    return {
        "elva": jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32)
                if "_lora" in jax.tree_util.keystr(path)
                else leaf
            ),
            params["elva"],
        )
    }


@pytest.fixture(scope="module")
def losses(tiny_run):
    """(loss and gradient with factors, those of the plain model, initial parameters)."""
    config = with_factors(tiny_run.get_config())
    plain = config.copy_and_resolve_references()
    plain.stages.sft.optimizer.lora.rank = 0
    batch = jax.tree.map(jnp.asarray, tiny_run.random_batch(config, "sft"))

    def graded(task):
        return jax.jit(jax.value_and_grad(lambda params: task.loss(params, {}, batch)[0]))

    ours = make_task(config, "sft")
    params = jax.jit(lambda key: nn.meta.unbox(ours.init(key)))(jax.random.key(0))
    return graded(ours), graded(make_task(plain, "sft")), params


def test_initial_factors_change_nothing_and_merged_ones_keep_the_loss(losses):
    ours, plain, params = losses
    merged = {"elva": lora.merge(params["elva"], ALPHA)}
    assert not any(map(lora.is_factor, flatten_paths(merged)))
    assert float(ours(params)[0]) == float(plain(merged)[0])
    params = drawn(params)
    assert abs(float(ours(params)[0]) - float(plain(merged)[0])) > 1e-3
    merged = {"elva": lora.merge(params["elva"], ALPHA)}
    assert float(ours(params)[0]) == pytest.approx(float(plain(merged)[0]), rel=1e-5)


def test_gradients_are_those_of_the_merged_matrices(losses):
    """For W + s A B, the chain rule gives the gradients s dW B' of A and s A' dW of B."""
    ours, plain, params = losses
    params = drawn(params)
    got = flatten_paths(ours(params)[1])
    of_merged = flatten_paths(plain({"elva": lora.merge(params["elva"], ALPHA)})[1])
    here = flatten_paths(params)
    names = [path.removesuffix("_lora/a") for path in here if path.endswith("_lora/a")]
    assert [name.rpartition("/")[2] for name in names] == ["down_proj", "q_proj"]
    for name in names:
        a, b, weight = (
            np.asarray(x, np.float64)
            for x in (here[f"{name}_lora/a"], here[f"{name}_lora/b"], of_merged[f"{name}/kernel"])
        )
        for layer in range(len(a)):
            np.testing.assert_allclose(
                got[f"{name}_lora/a"][layer], ALPHA / RANK * weight[layer] @ b[layer].T, atol=2e-6
            )
            np.testing.assert_allclose(
                got[f"{name}_lora/b"][layer], ALPHA / RANK * a[layer].T @ weight[layer], atol=2e-6
            )


def test_only_selected_parameters_are_trained_and_a_restart_is_exact(
    adapting, tiny_run, stage_of, tmp_path
):
    """Other leaves are bfloat16 without moments; a saved run loads as a plain model."""
    adapting.stages.sft.optimizer.frozen_dtype = "bfloat16"
    adapting.stages.sft.optimizer.accumulate = 2
    adapting.stages.sft.optimizer.lora.also = ("patch_embed/out_proj",)
    train_step, state, setup = stage_of(adapting, "sft")
    before = jax.device_get(flatten_paths(state.params))
    batch = shard_batch(tiny_run.random_batch(adapting, "sft"), make_mesh(adapting.mesh))
    for _ in range(2):
        state, _ = train_step(state, {}, batch)
    moving = set()
    for path, leaf in flatten_paths(state.params).items():
        trains = lora.is_factor(path) or path.startswith("elva/patch_embed/out_proj")
        assert leaf.dtype == (jnp.float32 if trains else jnp.bfloat16), path
        assert np.array_equal(leaf, before[path]) != trains, path
        moving |= {path} if trains else set()
    moments = {
        path.partition("/mu/")[2] for path in flatten_paths(state.opt_state) if "/mu/" in path
    }
    assert moments == moving

    with Checkpoints(tmp_path / "sft" / "checkpoints") as saves:
        saves.save(2, state, {}, adapting, "sft")
    here = jax.device_get(state)
    whole, _ = train_step(state, {}, batch)
    with Checkpoints(tmp_path / "sft" / "checkpoints") as saves:
        restored, _ = saves.restore(setup.shapes)
    again, _ = train_step(restored, {}, batch)
    for path, leaf in flatten_paths(whole).items():
        np.testing.assert_array_equal(flatten_paths(again)[path], leaf, err_msg=path)

    merged = flatten_paths(
        {
            "elva": lora.merge(
                jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), here.params["elva"]), ALPHA
            )
        }
    )
    saved = restore.open_run(tmp_path / "sft")
    loaded = flatten_paths(saved.load_float32().params)
    assert loaded.keys() == merged.keys() == saved.shapes.keys()
    for path, leaf in merged.items():
        np.testing.assert_allclose(loaded[path], leaf, rtol=1e-6, err_msg=path)
        # Rounded to bfloat16 like the matrices.
        np.testing.assert_allclose(
            np.asarray(saved.read(path), np.float32), leaf, rtol=1e-2, err_msg=path
        )
