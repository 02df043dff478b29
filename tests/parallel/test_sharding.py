"""The table of rules, and losses and gradients on eight fake devices, compared with one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from elva_jax.config import schema
from elva_jax.errors import ConfigError
from elva_jax.models.build import vision_tower
from elva_jax.parallel.mesh import make_mesh
from elva_jax.parallel.sharding import check_collisions, parameter_shardings
from elva_jax.tasks.registry import make_task
from elva_jax.training.setup import set_up
from elva_jax.utils.trees import key_path

# The pieces of a decoder kernel [layers, embed, heads]: fsdp x tensor, where it divides four heads
# and two key-value heads.
CASES = {
    "video:data=2,fsdp=2,tensor=2,zero=2,accumulate=2": 4,
    "sft:fsdp=2,context=2,tensor=2": 4,
    "image:fsdp=1,tensor=8": 1,  # tokens are not split
}


def test_collisions_are_refused():
    check_collisions(("layers", "embed", "mlp", None), "some/kernel")
    with pytest.raises(
        ConfigError, match=r"some/kernel: logical axes 'heads' and 'mlp' .* mesh axis 'tensor'"
    ):
        check_collisions(("heads", "mlp"), "some/kernel")


@pytest.mark.parametrize("stage", ["teacher", "image", "video", "sft"])
def test_no_activation_collides(stage, tiny_run, monkeypatch):
    """Every constraint in a stage's loss; Linen would silently drop one of two dimensions."""
    seen = set()
    monkeypatch.setattr(
        nn, "with_logical_constraint", lambda x, names: seen.add((names, x.ndim)) or x
    )
    config = tiny_run.get_config()
    task = make_task(config, stage)
    params = nn.meta.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    frozen = {"teacher": jax.eval_shape(lambda params: params, params)}
    if stage == "teacher":
        t, rows = config.teacher, config.stages[stage].batch_size
        batch = {
            "pixels": np.zeros((rows, 1, t.image_size, t.image_size, 3), np.uint8),
            "frame_mask": np.ones((rows, 1), bool),
            "token_ids": np.zeros((rows, t.text_length), np.int32),
            "mask": np.ones((rows, t.text_length), bool),
        }
    else:
        batch = tiny_run.random_batch(config, stage)
        tower = vision_tower(config)
        pixels = jnp.zeros((1, config.teacher.image_size, config.teacher.image_size, 3))
        frozen = {
            "teacher": nn.meta.unbox(jax.eval_shape(tower.init, jax.random.key(0), pixels))[
                "params"
            ]
        }
    jax.eval_shape(task.loss, params, frozen, batch)
    assert any(names[0] == "batch" for names, _ in seen)
    for names, ndim in seen:
        assert len(names) == ndim
        check_collisions(names, f"an activation of stage {stage}", activation=True)


def test_unknown_names_are_refused():
    boxed = {
        "w": nn.LogicallyPartitioned(
            jax.ShapeDtypeStruct((4, 4), jnp.float32), ("embed", "sideways")
        )
    }
    with pytest.raises(ConfigError, match="w: unknown logical axis 'sideways'"):
        parameter_shardings(boxed, make_mesh(schema.mesh()))


@pytest.mark.slow
def test_eight_devices_equal_one(compare):
    """video has every loss term, sft merges; `equality.py all` has every mesh."""
    for case, result in compare(tuple(CASES), devices=8):
        assert result["largest"] > 1e-2, result
        assert result["loss"] < 1e-5, result
        assert result["held_out"] < 1e-5, result  # by the program of evaluations
        assert result["worst"] < 1e-5, result
        assert result["pinned"], result  # the gradient is sharded as its parameter
        for name in ("q_proj", "k_proj"):
            assert result["split"][f"elva/decoder/layers/{name}/kernel"] == CASES[case], case


def test_adams_moments_are_sharded_as_their_parameters(tiny_run):
    """On a mesh of one device, where every sharding still has its axes."""
    config = tiny_run.get_config()
    config.stages.sft.optimizer.name = "adamw"
    setup = set_up(make_task(config, "sft"), make_mesh(config.mesh), 8)
    moments = {
        key_path(path): list(leaf.sharding.spec)
        for path, leaf in jax.tree_util.tree_leaves_with_path(setup.shapes.opt_state)
    }
    found = [
        spec
        for path, spec in moments.items()
        if path.endswith("mu/elva/decoder/layers/q_proj/kernel")
    ]
    assert found == [[None, "fsdp", "tensor"]]


def test_dimensions_that_the_mesh_does_not_divide_are_not_split():
    """Two key-value heads over four devices, although their flat kernel could be split."""
    boxed = {
        "w": nn.LogicallyPartitioned(
            jax.ShapeDtypeStruct((64, 64), jnp.float32), ("embed", "kv_heads")
        )
    }
    shape = {"data": 1, "fsdp": 2, "context": 1, "tensor": 4}
    mesh = AbstractMesh(tuple(shape.values()), tuple(shape))
    assert list(parameter_shardings(boxed, mesh, {"kv_heads": 2})["w"].spec) == ["fsdp", None]
    assert list(parameter_shardings(boxed, mesh, {"kv_heads": 4})["w"].spec) == ["fsdp", "tensor"]
