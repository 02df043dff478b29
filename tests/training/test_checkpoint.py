"""Saving and restoring states; what Orbax would let pass is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elva_jax.errors import CheckpointError
from elva_jax.training import state as states
from elva_jax.training.checkpoint import Checkpoints, has_checkpoint, load_run, saved_steps


def make_state(width=4, dtype=jnp.float32, names=("kernel", "bias"), optimizer=None):
    shapes = {"kernel": (3, width), "bias": (width,), "extra": (2,)}
    rng = np.random.default_rng(0)
    params = {"elva": {name: jnp.asarray(rng.normal(size=shapes[name]), dtype) for name in names}}
    return states.create(params, optimizer or optax.adam(0.1))


def target_of(state):
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), state)


def save(folder, state, steps, config, data=None):
    with Checkpoints(folder / "checkpoints", keep=2) as checkpoints:
        for step in steps:
            checkpoints.save(step, state, data or {"at": step}, config, "video")


def test_what_is_saved_comes_back(tmp_path, config):
    state = make_state()
    save(tmp_path, state, [3], config, {"at": 3, "window": [{"loss": float("nan")}]})
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest == 3
        restored, data = checkpoints.restore(target_of(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    assert data["at"] == 3
    assert np.isnan(data["window"][0]["loss"])


def test_a_save_is_a_snapshot_although_the_state_is_donated_next(tmp_path, config):
    state = make_state(width=400_000)
    first = np.array(state.params["elva"]["kernel"])
    advance = jax.jit(lambda s: s.replace(params=jax.tree.map(lambda p: p + 1, s.params)), donate_argnums=0)
    with Checkpoints(tmp_path / "checkpoints", keep=9) as checkpoints:
        for step in range(4):
            checkpoints.save(step, state, {}, config, "video")
            state = advance(state)
    for step in range(4):
        np.testing.assert_allclose(load_run(tmp_path / "checkpoints" / str(step)).params["elva"]["kernel"], first + step, atol=1e-5)


def test_the_newest_are_kept(tmp_path, config):
    save(tmp_path, make_state(), [1, 2, 5, 9], config)
    assert saved_steps(tmp_path) == [5, 9]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"width": 5}, ["elva/kernel is float32[3, 4], this run has float32[3, 5]"]),
        ({"dtype": jnp.bfloat16}, ["elva/bias is float32[4], this run has bfloat16[4]"]),
        ({"names": ("kernel",)}, ["elva/bias is not part of this run"]),
        ({"names": ("kernel", "bias", "extra")}, ["elva/extra is missing"]),
        ({"optimizer": optax.sgd(0.1, momentum=0.9)}, ["optimizer", "trace/elva/kernel is missing", "is not part of this run"]),
    ],
)
def test_another_model_is_refused(tmp_path, config, other, words):
    save(tmp_path, make_state(), [1], config)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(target_of(make_state(**other)))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_run_gives_its_weights_and_configuration(tmp_path, config):
    state = make_state()
    for stage in ("image", "video"):
        save(tmp_path / stage, state, [1, 2], config)
    (tmp_path / "config.json").write_text(config.to_json())
    for path, step in ((tmp_path, 2), (tmp_path / "video", 2), (tmp_path / "video" / "checkpoints" / "1", 1)):
        run = load_run(path)
        assert (run.stage, run.step, run.tokenizer_dir) == ("video", step, tmp_path / "tokenizer")
        assert run.config.to_dict() == config.to_dict()
        assert isinstance(run.config.curriculum, tuple)
        np.testing.assert_array_equal(run.params["elva"]["kernel"], state.params["elva"]["kernel"])


def test_what_is_no_checkpoint_is_refused(tmp_path, config):
    with pytest.raises(CheckpointError, match="no such directory"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text(config.to_json())
    with pytest.raises(CheckpointError, match="no stage of kind teacher"):
        load_run(tmp_path, kind="teacher")
    save(tmp_path / "video", make_state(), [1], config)
    for file in (tmp_path / "video" / "checkpoints" / "1" / "params").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.unlink()
    with pytest.raises(CheckpointError, match=r"video/checkpoints/1: cannot be read"):
        load_run(tmp_path)


def test_an_unfinished_save_does_not_count(tmp_path, config):
    save(tmp_path, make_state(), [4], config)
    (tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir()
    assert saved_steps(tmp_path) == [4]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest == 4
    assert has_checkpoint(tmp_path)
    assert not has_checkpoint(tmp_path / "checkpoints")
