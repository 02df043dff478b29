"""Tests of whole runs on real clips: weights between stages, restarts, invalid configurations."""

import json
import shutil
import sys

import jax
import numpy as np
import optax
import pytest
from PIL import Image
from rich.console import Console

from elva_jax.checkpoints import state as states
from elva_jax.checkpoints.restore import load_run
from elva_jax.checkpoints.save import Checkpoints
from elva_jax.config.serialize import config_to_dict, freeze
from elva_jax.errors import CheckpointError, ConfigError, StartError, TrainingError
from elva_jax.tasks.elva_recipe import ELVA
from elva_jax.training import plots
from elva_jax.training.metric_writers import read_metrics
from elva_jax.training.train import run
from elva_jax.utils.owner import own
from elva_jax.utils.trees import key_path


def by_path(tree):
    return {
        key_path(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def toy(tiny_run, data_dir, arg, steps=2):
    config = tiny_run.get_config(arg)
    config.data_dir = str(data_dir)
    for stage in config.stages.values():
        stage.steps = steps
        stage.optimizer.name = "adamw"
        stage.optimizer.warmup_ratio = 0.0
    return config


def still(config, name):
    """Sets the learning rate of a stage to zero, so that it ends with its initial weights."""
    config.stages[name].optimizer.learning_rate = 0.0
    return config


@pytest.fixture(scope="module")
def finished(tiny_run, data_dir, tmp_path_factory):
    """A run of teacher, image (guided) and sft (merging; not learning), and its configuration."""
    workdir = tmp_path_factory.mktemp("run")
    config = still(toy(tiny_run, data_dir, "teacher,image,sft"), "sft")
    assert run(config, workdir, ELVA) == 0
    return workdir, config


def test_each_stage_starts_from_the_previous_one(finished):
    workdir, _ = finished
    image, sft = load_run(workdir / "image"), load_run(workdir)
    assert (image.stage, sft.stage, sft.step) == ("image", "sft", 2)
    assert set(image.params) == {"elva", "guidance"}
    assert set(sft.params) == {"elva"}
    before = by_path(image.params["elva"])
    for path, leaf in by_path(sft.params["elva"]).items():
        np.testing.assert_array_equal(leaf, before[path], err_msg=path)
    assert load_run(workdir, kind="teacher").stage == "teacher"


def test_files_of_a_run(finished):
    workdir, config = finished
    for name, term in (("teacher", "sigmoid"), ("image", "tube"), ("sft", "generation")):
        lines = read_metrics(workdir / name)
        assert [line["step"] for line in lines] == [1, 2]
        assert all(np.isfinite(line[term]) for line in lines)
        assert list((workdir / name / "tensorboard").iterdir())
    assert all(line["merge/kept_mean"] < 1 for line in read_metrics(workdir / "sft"))
    # The fill counted by the pipeline and the padding counted by the model add up to 1.
    assert all(
        line["token_fill"] == pytest.approx(1 - line["padding"], abs=1e-6)
        for line in read_metrics(workdir / "image")
    )
    assert all(
        0 < line["patch_fill"] <= 1 <= line["examples"] for line in read_metrics(workdir / "image")
    )
    with Image.open(workdir / "curves.png") as picture:
        assert picture.width > picture.height
    assert (workdir / "tokenizer" / "tokenizer.json").exists()
    assert config_to_dict(load_run(workdir).config) == config_to_dict(config)


def test_finished_run_is_unchanged_and_stages_can_be_added(finished, tmp_path, capsys):
    workdir, config = shutil.copytree(finished[0], tmp_path / "run"), finished[1]
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("*/checkpoints/*")}
    config = config.copy_and_resolve_references()
    config.log.every = 5
    config.stages["more"] = config.stages.sft
    config.curriculum = (*config.curriculum, "more")
    assert run(config, workdir, ELVA, console=Console(soft_wrap=True)) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert f"more: starts from {workdir}/sft (stage sft, step 2)" in capsys.readouterr().out
    assert load_run(workdir).stage == "more"


def test_without_matplotlib_a_run_ends_well_and_says_how_to_draw(finished, monkeypatch, capsys):
    workdir, config = finished
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(config, workdir, ELVA, console=Console(soft_wrap=True)) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "curves" in line]
    assert lines == ['curves.png is not drawn: needs matplotlib; pip install "elva_jax[plots]"']
    assert plots.draw(workdir, freeze(config)) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 7),
        ("model.rope_theta", 5.0),
        ("stages.image.optimizer.learning_rate", 0.5),
        ("stages.teacher.data.max_turns", 2),
    ],
)
def test_another_configuration_is_refused(finished, key, value):
    workdir, config = finished
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError) as error:
        run(config, workdir, ELVA)
    assert f"{key} (was" in str(error.value)
    assert str(error.value).count("(was") == 1


def test_run_without_a_newer_key_continues(finished, tmp_path):
    """A missing key has its default value; another value is refused."""
    workdir, config = (
        shutil.copytree(finished[0], tmp_path / "run"),
        finished[1].copy_and_resolve_references(),
    )
    saved = json.loads((workdir / "config.json").read_text())
    for stage in saved["stages"].values():
        del stage["data"]["num_low_frames"]
    (workdir / "config.json").write_text(json.dumps(saved))
    assert run(config, workdir, ELVA) == 0
    (workdir / "config.json").write_text(json.dumps(saved))
    config.stages.sft.data.update(num_low_frames=2, low_longest_edge=16)
    with pytest.raises(ConfigError, match=r"sft\.data\.num_low_frames \(was 0, is 2\)"):
        run(config, workdir, ELVA)


def test_a_workdir_in_use_is_refused(finished):
    workdir, config = finished
    with own(workdir), pytest.raises(StartError, match="is in use by process"):
        run(config, workdir, ELVA)


def test_order_of_started_stages_is_fixed(finished):
    workdir, config = finished
    config = config.copy_and_resolve_references()
    config.curriculum = ("teacher", "sft")
    with pytest.raises(ConfigError, match=r"curriculum: .* has started teacher, image, sft"):
        run(config, workdir, ELVA)


def test_more_steps_for_a_finished_stage_are_another_stage(finished, tmp_path):
    """The refusal says how, and that works: the new stage starts from the finished one."""
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    config = finished[1].copy_and_resolve_references()
    config.stages.sft.steps = 3
    message = (
        r"run: a stage that has started keeps its length, .*: stages\.sft\.steps \(was 2, is 3\);"
        r" .* add a stage to curriculum, or .* --config\.init_from=.*run$"
    )
    with pytest.raises(ConfigError, match=message):
        run(config, workdir, ELVA)
    config.stages.sft.steps = 2
    config.stages.more = config.stages.sft.copy_and_resolve_references()
    config.curriculum = (*config.curriculum, "more")
    assert run(config, workdir, ELVA) == 0
    before, after = load_run(workdir / "sft"), load_run(workdir)
    assert after.stage == "more"
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)  # learning rate 0


def test_stage_starts_from_weights_of_another_run(finished, tiny_run, data_dir, tmp_path, capsys):
    workdir, _ = finished
    config = still(toy(tiny_run, data_dir, "sft"), "sft")
    config.init_from = str(workdir / "image" / "checkpoints" / "2")
    assert run(config, tmp_path, ELVA, console=Console(soft_wrap=True)) == 0
    assert (
        "unused: guidance/frame/bias, guidance/frame/kernel, guidance/log_temperature"
        in capsys.readouterr().out
    )
    source = by_path(load_run(workdir / "image").params["elva"])
    for path, leaf in by_path(load_run(tmp_path).params["elva"]).items():
        np.testing.assert_array_equal(leaf, source[path], err_msg=path)


def test_teacher_of_another_run_is_used(finished, tiny_run, data_dir, tmp_path, capsys):
    """A guided stage starts from one without guidance, so its heads are initialized."""
    workdir, _ = finished
    config = toy(tiny_run, data_dir, "image")
    config.init_from, config.teacher.init_from = str(workdir), str(workdir / "teacher")
    assert run(config, tmp_path, ELVA, console=Console(soft_wrap=True)) == 0
    told = capsys.readouterr().out
    assert (
        f"image: starts from {workdir} (stage sft, step 2);"
        " fresh: guidance/frame/bias, guidance/frame/kernel" in told
    )
    assert "unused" not in told


def test_weights_of_another_shape_are_refused(finished, tiny_run, data_dir, tmp_path):
    config = toy(tiny_run, data_dir, "sft")
    config.init_from = str(finished[0])
    config.model.intermediate_size = 40
    with pytest.raises(
        CheckpointError,
        match=r"down_proj/kernel is float32\[2, 48, 32\], stage sft has float32\[2, 40, 32\]",
    ):
        run(config, tmp_path, ELVA)


def test_stage_with_hybrid_resolution_trains(tiny_run, data_dir, tmp_path):
    """The stage trains, with other inputs than without hybrid resolution."""
    losses = {}
    for name, low in (("with", 2), ("without", 0)):
        config = toy(tiny_run, data_dir, "sft")
        config.stages.sft.data.update(num_low_frames=low, low_longest_edge=16)
        assert run(config, tmp_path / name, ELVA) == 0
        losses[name] = [line["loss"] for line in read_metrics(tmp_path / name / "sft")]
    assert np.isfinite(losses["with"]).all()
    assert losses["with"] != losses["without"]


def test_epochs_become_steps_and_nothing_is_printed_without_a_console(
    tiny_run, data_dir, tmp_path, capsys
):
    config = toy(tiny_run, data_dir, "teacher", steps=0)
    config.stages.teacher.epochs = 0.32  # of 24 clips, 4 per step
    assert run(config, tmp_path, ELVA) == 0
    assert capsys.readouterr().out == ""
    assert load_run(tmp_path, kind="teacher").step == 2


def test_repeated_infinite_losses_end_the_run(finished, tiny_run, data_dir, tmp_path):
    """The initial weights contain infinite values."""
    good = load_run(finished[0])
    params = jax.tree.map(lambda leaf: leaf * np.inf, good.params)
    with Checkpoints(tmp_path / "bad" / "checkpoints") as checkpoints:
        checkpoints.save(1, states.create(params, optax.identity()), {}, good.config, "bad")
    config = still(toy(tiny_run, data_dir, "sft"), "sft")
    config.init_from = str(tmp_path / "bad")
    config.log.max_bad_steps = 2
    with pytest.raises(
        TrainingError,
        match=r"sft: the loss .* not finite for 2 steps in a row, up to step 2.*lower the learning"
        " rate",
    ):
        run(config, tmp_path / "run", ELVA)
    assert not (tmp_path / "run" / "sft" / "finished.json").exists()
    assert [
        (line["loss"], line["bad_steps"]) for line in read_metrics(tmp_path / "run" / "sft")
    ] == [(None, 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.mesh.update(tensor=3), "mesh: "),
        (
            lambda c: c.model.update(vocab_size=300),
            r"model.vocab_size: 300 is less than the tokenizer's",
        ),
        (
            lambda c: c.stages.sft.optimizer.update(freeze=("no such thing",)),
            "optimizer.freeze: 'no such thing' matches no parameter",
        ),
    ],
)
def test_invalid_configurations_are_refused_before_training(
    tiny_run, data_dir, tmp_path, change, message
):
    config = toy(tiny_run, data_dir, "sft")
    change(config)
    with pytest.raises(ConfigError, match=message):
        run(config, tmp_path, ELVA)
