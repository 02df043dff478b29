"""Saving and restoring states, and refusing what Orbax would accept silently."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elva_jax.checkpoints import state as states
from elva_jax.checkpoints.format import has_checkpoint, saved_steps
from elva_jax.checkpoints.restore import load_run, open_run
from elva_jax.checkpoints.save import Checkpoints
from elva_jax.config.schema import Config
from elva_jax.config.serialize import typed
from elva_jax.errors import CheckpointError


def make_state(width=4, dtype=jnp.float32, names=("kernel", "bias"), optimizer=None):
    shapes = {"kernel": (3, width), "bias": (width,), "extra": (2,)}
    rng = np.random.default_rng(0)
    params = {"elva": {name: jnp.asarray(rng.normal(size=shapes[name]), dtype) for name in names}}
    return states.create(params, optimizer or optax.adam(0.1))


def target_of(state):
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), state
    )


def save(folder, state, steps, config, data=None, keep=2, temporary=()):
    with Checkpoints(folder / "checkpoints", keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(
                step, state, data or {"at": step}, config, "video", temporary=step in temporary
            )


def test_a_saved_state_is_restored(tmp_path, config):
    state = make_state()
    save(tmp_path, state, [3], config, {"at": 3, "window": [{"loss": float("nan")}]})
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest == 3
        restored, (data,) = checkpoints.restore(target_of(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    assert data["at"] == 3
    assert np.isnan(data["window"][0]["loss"])


def test_a_save_is_a_snapshot_even_if_the_state_is_donated_next(tmp_path, config):
    state = make_state(width=400_000)
    first = np.array(state.params["elva"]["kernel"])
    advance = jax.jit(
        lambda s: s.replace(params=jax.tree.map(lambda p: p + 1, s.params)), donate_argnums=0
    )
    with Checkpoints(tmp_path / "checkpoints", keep=9) as checkpoints:
        for step in range(4):
            checkpoints.save(step, state, {}, config, "video")
            state = advance(state)
    for step in range(4):
        np.testing.assert_allclose(
            load_run(tmp_path / "checkpoints" / str(step)).params["elva"]["kernel"],
            first + step,
            atol=1e-5,
        )


@pytest.mark.parametrize(
    ("keep", "temporary", "left"),
    [
        (2, (), [5, 9]),
        (0, (), [1, 2, 5, 9]),
        (1, (2,), [9]),
        (1, (9,), [5, 9]),
        (2, (5, 9), [1, 2, 9]),
        (1, (1, 2, 5, 9), [9]),
    ],
)
def test_the_newest_steps_are_kept(tmp_path, config, keep, temporary, left):
    save(tmp_path, make_state(), [1, 2, 5, 9], config, keep=keep, temporary=temporary)
    assert saved_steps(tmp_path) == left


def test_temporary_steps_are_known_after_a_restart(tmp_path, config):
    save(tmp_path, make_state(), [1, 2, 3], config, keep=0, temporary=(3,))
    save(tmp_path, make_state(), [4], config, keep=0)
    assert saved_steps(tmp_path) == [1, 2, 4]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"width": 5}, ["elva/kernel is float32[3, 4], this run has float32[3, 5]"]),
        ({"dtype": jnp.bfloat16}, ["elva/bias is float32[4], this run has bfloat16[4]"]),
        ({"names": ("kernel",)}, ["elva/bias is not part of this run"]),
        ({"names": ("kernel", "bias", "extra")}, ["elva/extra is missing"]),
        (
            {"optimizer": optax.sgd(0.1, momentum=0.9)},
            ["optimizer", "trace/elva/kernel is missing", "is not part of this run"],
        ),
    ],
)
def test_another_model_is_refused(tmp_path, config, other, words):
    save(tmp_path, make_state(), [1], config)
    with (
        Checkpoints(tmp_path / "checkpoints") as checkpoints,
        pytest.raises(CheckpointError) as error,
    ):
        checkpoints.restore(target_of(make_state(**other)))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_run_is_loaded_with_weights_and_configuration(tmp_path, config):
    state = make_state()
    for stage in ("image", "video"):
        save(tmp_path / stage, state, [1, 2], config)
    (tmp_path / "config.json").write_text(config.to_json())
    for path, step in (
        (tmp_path, 2),
        (tmp_path / "video", 2),
        (tmp_path / "video" / "checkpoints" / "1", 1),
    ):
        run = load_run(path)
        assert (run.stage, run.step, run.tokenizer_dir) == ("video", step, tmp_path / "tokenizer")
        assert run.config == typed(Config, config)
        assert isinstance(run.config.curriculum, tuple)
        np.testing.assert_array_equal(run.params["elva"]["kernel"], state.params["elva"]["kernel"])


def test_paths_without_a_checkpoint_are_refused(tmp_path, config):
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
    with pytest.raises(
        CheckpointError,
        match=r"video/checkpoints/1: is damaged \(params/d/\w+ is missing\); there is no step "
        "before",
    ):
        load_run(tmp_path)


def test_an_unfinished_save_does_not_count(tmp_path, config):
    save(tmp_path, make_state(), [4], config)
    (tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir()
    assert saved_steps(tmp_path) == [4]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest == 4
    assert has_checkpoint(tmp_path)
    assert not has_checkpoint(tmp_path / "checkpoints")


def flip(step):
    """Flips one bit of the largest file, an array; Orbax alone restores other numbers silently."""
    file = max(
        (path for path in (step / "params").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(step):
    file = max(
        (path for path in (step / "optimizer").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    file.write_bytes(file.read_bytes()[:-7])


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


def remove_a_file(step):
    next((step / "params").rglob("manifest.ocdbt")).unlink()


def change_the_position(step):
    (step / "data" / "metadata").write_text('{"processes": [{"at": 3}]}')


def damage_a_step_without_checksums(step):
    (step / "checksums.json").unlink()
    remove_a_file(step)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip, "is not what was saved"),
        (truncate, " bytes of "),
        (empty, "params is missing"),
        (lambda step: shutil.rmtree(step / "data"), "data is missing"),
        (remove_a_file, "manifest.ocdbt is missing"),
        (change_the_position, "data/metadata is not what was saved"),
        (
            lambda step: (step / "checksums.json").write_bytes(b"{"),
            "checksums.json is not readable",
        ),
        (damage_a_step_without_checksums, "is damaged ("),
    ],
)
def test_a_damaged_step_is_replaced_by_the_one_before(tmp_path, config, damage, words):
    old, new = make_state(width=2000), make_state(width=2000)
    new = new.replace(params=jax.tree.map(lambda leaf: leaf + 1, new.params))
    save(tmp_path, old, [4], config)
    save(tmp_path, new, [8], config)
    damage(tmp_path / "checkpoints" / "8")
    reported = []
    with Checkpoints(tmp_path / "checkpoints", keep=2, report=reported.append) as checkpoints:
        restored, (data,) = checkpoints.restore(target_of(old))
        assert data == {"at": 4}
        np.testing.assert_array_equal(
            restored.params["elva"]["kernel"], old.params["elva"]["kernel"]
        )
        checkpoints.save(8, new, {"at": 8}, config, "video")
    (line,) = reported
    assert str(tmp_path / "checkpoints" / "8") in line
    assert words in line
    assert "8.corrupt" in line
    assert (tmp_path / "checkpoints" / "8.corrupt").is_dir()
    assert saved_steps(tmp_path) == [4, 8]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore(target_of(old))[1] == [{"at": 8}]


@pytest.mark.parametrize("load", [load_run, open_run])
def test_damaged_weights_are_not_loaded_for_inference(tmp_path, config, load):
    save(tmp_path, make_state(width=2000), [4, 8], config)
    truncate(tmp_path / "checkpoints" / "8")
    assert load(tmp_path).step == 8  # only the optimizer is damaged, which is not read
    flip(tmp_path / "checkpoints" / "8")
    with pytest.raises(
        CheckpointError,
        match=r"8: is damaged \(params/\S+ is not what was saved\); "
        r"give \S+/checkpoints/4, the step before$",
    ):
        load(tmp_path)
    assert load(tmp_path / "checkpoints" / "4").step == 4


def test_the_only_step_is_not_set_aside(tmp_path, config):
    """Otherwise the stage would silently start from the beginning."""
    save(tmp_path, make_state(width=2000), [4], config)
    flip(tmp_path / "checkpoints" / "4")
    with (
        Checkpoints(tmp_path / "checkpoints") as checkpoints,
        pytest.raises(CheckpointError, match=r"4: is damaged .* no other step is left"),
    ):
        checkpoints.restore(target_of(make_state(width=2000)))
    assert saved_steps(tmp_path) == [4]


@pytest.fixture
def disk():
    """disk(size): the kernel refuses to write beyond `size` bytes of a file, like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100_000, 100], ids=["arrays", "everything"])
def test_a_full_disk_leaves_the_last_good_step(tmp_path, config, disk, size):
    state = make_state(width=200_000)
    save(tmp_path, state, [4], config)
    reported = []
    with Checkpoints(
        tmp_path / "checkpoints", on_error="continue", report=reported.append
    ) as checkpoints:
        disk(size)
        checkpoints.save(8, state, {"at": 8}, config, "video")
        checkpoints.wait()
        disk(resource.RLIM_INFINITY)
        assert saved_steps(tmp_path) == [4]
        checkpoints.save(12, state, {"at": 12}, config, "video")
    # Threads of the failed save may write for a moment after it; the next save removes that, too.
    assert {entry.name for entry in (tmp_path / "checkpoints").iterdir()} == {"4", "12"}
    (line,) = reported
    assert "step 8 could not be saved (" in line
    assert "File too large" in line
    assert "step 4 is the last good one; training continues" in line
    assert saved_steps(tmp_path) == [4, 12]

    disk(size)
    with pytest.raises(
        CheckpointError,
        match=r"step 16 could not be saved .* step 12 is the last good one: free some space",
    ):
        save(tmp_path, state, [16], config)
    disk(resource.RLIM_INFINITY)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore(target_of(state))[1] == [{"at": 12}]


def test_another_mesh_restores_the_same_numbers(tmp_path):
    """From 8 devices to 4 (2 x 2, then the other axis) to 1, saving what was restored each time."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("other_devices.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path],
        env={**os.environ, **flags},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "8 devices, restored on [(2, 2), (1, 4), (1, 1)]" in done.stdout


def test_other_folders_beside_the_steps_are_no_steps(tmp_path):
    for name in ("4", "0", "007", "٣", "²", "12 ", "-1", "1e3"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert saved_steps(tmp_path) == [0, 4]
