"""Tests of schedule, groups, freezing and Muon against direct NumPy implementations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from elva_jax.config import schema
from elva_jax.config.serialize import freeze
from elva_jax.errors import ConfigError
from elva_jax.tasks.registry import make_task
from elva_jax.training.optimizer import make_optimizer, make_schedule


def settings(**values):
    config = schema.optimizer()
    config.update(warmup_ratio=0.0, clip_norm=0.0, **values)
    return config


@given(
    steps=st.integers(1, 300),
    warmup=st.floats(0, 1),
    final=st.floats(0, 1),
    peak=st.floats(1e-5, 1.0),
)
def test_schedule_follows_the_rule(steps, warmup, final, peak):
    schedule = make_schedule(peak, steps, warmup, final)
    w = round(warmup * steps)
    for n in {0, 1, w - 1, w, (w + steps) // 2, steps - 1} & set(range(steps)):
        share = (
            (n + 1) / w
            if n < w
            else final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (n - w) / (steps - w)))
        )
        assert float(schedule(jnp.int32(n))) == pytest.approx(
            peak * share, rel=1e-4, abs=1e-6 * peak
        )


PARAMS = {
    "elva": {
        "decoder": {
            "embed_tokens": np.ones((7, 4), np.float32),
            "layers": {
                "q_proj": {
                    "kernel": np.ones((3, 4, 6), np.float32),
                    "bias": np.ones((3, 6), np.float32),
                }
            },
        }
    },
    "guidance": {"tube": {"kernel": np.ones((4, 5), np.float32)}},
}
AXES = {
    "elva": {
        "decoder": {
            "embed_tokens": P("vocab", "embed"),
            "layers": {
                "q_proj": {"kernel": P("layers", "embed", "heads"), "bias": P("layers", "heads")}
            },
        }
    },
    "guidance": {"tube": {"kernel": P("embed", None)}},
}


def random_like(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), tree)


def newton_schulz(matrix):
    """Muon's five Newton-Schulz steps on one matrix, in NumPy."""
    x = matrix.astype(np.float64)
    flip = x.shape[0] > x.shape[1]
    x = x.T if flip else x
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if flip else x


def test_muon_orthogonalizes_each_layer_separately():
    config = settings(name="muon", learning_rate=0.5, muon_learning_rate=0.1, final_ratio=1.0)
    optimizer = make_optimizer(config, 10, PARAMS, AXES)
    grads = random_like(PARAMS)
    params = random_like(PARAMS, 1)
    updates, _ = optimizer.transform.update(grads, optimizer.transform.init(params), params)
    gradient = np.asarray(grads["elva"]["decoder"]["layers"]["q_proj"]["kernel"])
    expected = np.stack([newton_schulz(layer) for layer in gradient]) * math.sqrt(6 / 4) * -0.1
    np.testing.assert_allclose(
        updates["elva"]["decoder"]["layers"]["q_proj"]["kernel"], expected, atol=2e-5
    )
    for layer in (
        np.asarray(updates["elva"]["decoder"]["layers"]["q_proj"]["kernel"])
        / 0.1
        / math.sqrt(6 / 4)
    ):
        singular = np.linalg.svd(layer, compute_uv=False)
        assert np.all((singular > 0.5) & (singular < 1.3))


def test_only_inner_matrices_use_muon(tiny_run):
    task = make_task(freeze(tiny_run.get_config()), "video")
    config = settings(name="muon", learning_rate=0.5, final_ratio=1.0)
    optimizer = make_optimizer(config, 10, PARAMS, AXES, is_outside=task.is_outside)
    labels = optimizer.labels
    assert labels["elva"]["decoder"]["layers"]["q_proj"] == {"kernel": "muon", "bias": "adamw"}
    assert (
        labels["elva"]["decoder"]["embed_tokens"] == labels["guidance"]["tube"]["kernel"] == "adamw"
    )
    grads, params = random_like(PARAMS), random_like(PARAMS, 1)
    updates, _ = optimizer.transform.update(grads, optimizer.transform.init(params), params)
    for path in (("elva", "decoder", "embed_tokens"), ("guidance", "tube", "kernel")):
        update, grad = updates, grads
        for key in path:
            update, grad = update[key], grad[key]
        np.testing.assert_allclose(update, -0.5 * np.sign(grad), rtol=1e-3)  # Adam's first step


def test_vectors_have_no_weight_decay():
    config = settings(name="adamw", learning_rate=0.1, weight_decay=0.5, final_ratio=1.0)
    optimizer = make_optimizer(config, 10, PARAMS, AXES)
    params = random_like(PARAMS, 1)
    updates, _ = optimizer.transform.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.transform.init(params), params
    )
    layer, old = (tree["elva"]["decoder"]["layers"]["q_proj"] for tree in (updates, params))
    np.testing.assert_allclose(layer["kernel"], -0.05 * old["kernel"], rtol=1e-5)
    np.testing.assert_array_equal(layer["bias"], 0)


def test_weight_decay_on_matrices_equals_pytorch_parameter_groups():
    """The groups of PyTorch recipes: no decay for biases and parameters with one axis."""
    config = settings(learning_rate=0.1, weight_decay=0.5, final_ratio=1.0, decay_on="matrices")
    params = {
        "decoder": {
            "embed_tokens": np.ones((7, 4), np.float32),
            "norm": {"scale": np.ones(4, np.float32)},
            "layers": {
                "q_proj": {
                    "kernel": np.ones((2, 4, 2, 3), np.float32),
                    "bias": np.ones((2, 2, 3), np.float32),
                },
                "input_layernorm": {"scale": np.ones((2, 4), np.float32)},
            },
        },
        "patch_embed": {"line": np.ones(4, np.float32), "query": np.ones((1, 4), np.float32)},
    }
    axes = {
        "decoder": {
            "embed_tokens": P("vocab", "embed"),
            "norm": {"scale": P("embed")},
            "layers": {
                "q_proj": {
                    "kernel": P("layers", "embed", "heads", None),
                    "bias": P("layers", "heads", None),
                },
                "input_layernorm": {"scale": P("layers", "embed")},
            },
        },
        "patch_embed": {"line": P(None), "query": P(None, "embed")},
    }
    params = random_like(params, 1)
    leaves = jax.tree.leaves(params)
    in_layers = [leaf.ndim > 1 and leaf.shape[0] == 2 for leaf in leaves]
    # Each layer is a parameter of its own there; a bias of heads is a vector.
    theirs, shapes = [], []
    for leaf, (path, _), stacked in zip(
        leaves, jax.tree_util.tree_leaves_with_path(params), in_layers, strict=True
    ):
        vector = "bias" in jax.tree_util.keystr(path)
        parts = list(np.asarray(leaf)) if stacked else [np.asarray(leaf)]
        theirs.append([torch.nn.Parameter(torch.tensor(x.ravel() if vector else x)) for x in parts])
        shapes.append(leaf.shape)
    flat = [parameter for group in theirs for parameter in group]
    reference = torch.optim.AdamW(
        [
            {"params": [x for x in flat if x.ndim > 1], "weight_decay": 0.5},
            {"params": [x for x in flat if x.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=0.1,
    )
    optimizer = make_optimizer(config, 10**6, params, axes)
    state, update = optimizer.transform.init(params), jax.jit(optimizer.transform.update)
    for step in range(2):
        grads = random_like(params, 2 + step)
        updates, state = update(grads, state, params)
        params = jax.tree.map(np.add, params, updates)
        for group, grad, stacked in zip(theirs, jax.tree.leaves(grads), in_layers, strict=True):
            for parameter, part in zip(
                group, np.asarray(grad) if stacked else [np.asarray(grad)], strict=True
            ):
                parameter.grad = torch.tensor(part.reshape(parameter.shape))
        reference.step()
    for ours, group, shape in zip(jax.tree.leaves(params), theirs, shapes, strict=True):
        expected = np.stack([x.detach().numpy().ravel() for x in group]).reshape(shape)
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_weight_decay_on_all_reaches_vectors():
    config = settings(learning_rate=0.1, weight_decay=0.5, final_ratio=1.0, decay_on="all")
    optimizer = make_optimizer(config, 10, PARAMS, AXES)
    params = random_like(PARAMS, 1)
    updates, _ = optimizer.transform.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.transform.init(params), params
    )
    jax.tree.map(lambda u, p: np.testing.assert_allclose(u, -0.05 * p, rtol=1e-5), updates, params)


def test_clipping_bounds_the_global_norm():
    config = settings(name="adamw", learning_rate=1.0, final_ratio=1.0, b1=0.0, b2=0.0, eps=1e3)
    config.clip_norm = (
        0.5  # with a huge epsilon, Adam's update is the clipped gradient divided by epsilon
    )
    optimizer = make_optimizer(config, 10, PARAMS, AXES)
    params = random_like(PARAMS, 1)
    updates, _ = optimizer.transform.update(
        random_like(PARAMS), optimizer.transform.init(params), params
    )
    norm = math.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(updates)))
    assert norm == pytest.approx(0.5 / 1e3, rel=1e-2)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("decodr/layers", ["decodr/layers", "matches no parameter", "elva/decoder/layers"]),
        ("(", ["'('", "not a regular expression"]),
        (".", ["freezes every parameter"]),
    ],
)
def test_freezing_unknown_parameters_is_refused(pattern, words):
    with pytest.raises(ConfigError) as error:
        make_optimizer(settings(freeze=(pattern,)), 10, PARAMS, AXES)
    assert all(word in str(error.value) for word in words)
