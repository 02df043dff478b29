"""Tests that the paper's baselines train, pass weights between stages and answer like ELVA."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from elva_jax.checkpoints.restore import load_run
from elva_jax.checkpoints.save import save_weights
from elva_jax.cli import main
from elva_jax.config import schema
from elva_jax.config.load import load
from elva_jax.config.schema import ModelConfig, TeacherConfig
from elva_jax.errors import ConfigError, ConvertError
from elva_jax.hf.export import export
from elva_jax.models.build import parameter_shapes
from elva_jax.models.encoder_embed import EncoderEmbed
from elva_jax.parallel.mesh import make_mesh
from elva_jax.tasks.elva_recipe import ELVA
from elva_jax.tasks.initial_weights import initial_weights
from elva_jax.tasks.registry import make_task
from elva_jax.training.metric_writers import read_metrics
from elva_jax.training.optimizer import join_frozen, make_optimizer, trained_part
from elva_jax.training.setup import set_up
from elva_jax.training.train import run
from elva_jax.utils.trees import flatten_paths, unflatten_paths
from elva_jax.video.layout import Clip, Text, build_layout

TOWER = "elva/patch_embed/tower/"


def ablation(config_dir, data_dir, variant, *stages):
    """A tiny configuration of an ablation: one decoder layer and four steps per stage."""
    config = load(f"{config_dir}/ablations.py:variant={variant},size=tiny")
    config.curriculum, config.data_dir, config.log.every, config.model.num_layers = (
        stages,
        str(data_dir),
        1,
        1,
    )
    for stage in config.stages.values():
        stage.steps, stage.batch_size, stage.optimizer.name = 4, 2, "adamw"
    return config


@pytest.fixture(scope="module")
def config_dir():
    from pathlib import Path

    return Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def pooled(config_dir, data_dir, tmp_path_factory):
    """A run of ELVA with temporal pooling instead of merging, without guidance."""
    workdir = tmp_path_factory.mktemp("pooled")
    assert run(ablation(config_dir, data_dir, "figure3_pool_50", "sft"), workdir, ELVA) == 0
    return workdir


@pytest.fixture(scope="module")
def teacher(config_dir, data_dir, tmp_path_factory):
    """A teacher with random weights: its folder, and its parameters by path."""
    config = ablation(config_dir, data_dir, "baseline_encoder", "teacher")
    folder, rng = tmp_path_factory.mktemp("teacher"), np.random.default_rng(0)
    shapes = parameter_shapes(config, "vision")
    params = {
        path: rng.normal("scale" in path, 0.2, shape).astype(np.float32)
        for path, shape in shapes.items()
    }
    save_weights(folder, unflatten_paths(params), config, "teacher")
    return folder, {path.removeprefix("vision/"): leaf for path, leaf in params.items()}


@pytest.fixture(scope="module")
def encoder(config_dir, data_dir, teacher, tmp_path_factory):
    """A run of the encoder-based model."""
    workdir, config = (
        tmp_path_factory.mktemp("encoder"),
        ablation(config_dir, data_dir, "baseline_encoder", "sft"),
    )
    config.teacher.init_from = str(teacher[0])
    assert run(config, workdir, ELVA) == 0
    return workdir


def losses(workdir):
    return [line["generation"] for line in read_metrics(workdir / "sft")]


def test_pooling_baseline_trains(pooled):
    lines = read_metrics(pooled / "sft")
    assert len(lines) == 4
    assert np.isfinite(losses(pooled)).all()
    # Half of the patches of a video, all patches of an image.
    assert all(0.5 <= line["merge/kept_0"] <= 1 for line in lines)
    assert any(line["merge/kept_0"] < 1 for line in lines)
    assert all(line["merge/forced_0"] == 0 for line in lines)


def test_encoder_based_model_trains_after_a_frozen_teacher(encoder, teacher):
    assert len(losses(encoder)) == 4
    assert np.isfinite(losses(encoder)).all()
    got = flatten_paths(load_run(encoder).params["elva"]["patch_embed"])
    assert {path.removeprefix("tower/") for path in got if path.startswith("tower/")} == set(
        teacher[1]
    )
    for path, leaf in teacher[1].items():
        np.testing.assert_array_equal(got[f"tower/{path}"], leaf, err_msg=path)
    assert np.abs(got["fc1/bias"]).max() > 0  # it was initialized to zero


def test_encoder_based_model_answers_and_cannot_be_exported(encoder, tmp_path, capsys):
    for i, value in enumerate((0, 200)):
        Image.fromarray(np.full((40, 60, 3), value, np.uint8)).save(tmp_path / f"{i}.png")
    words = [
        "generate",
        "--checkpoint",
        str(encoder),
        "--video",
        str(tmp_path),
        "--prompt",
        "How many?",
        "--max-new-tokens",
        "2",
    ]
    assert main(words) == 0
    assert capsys.readouterr().err == ""
    with pytest.raises(
        ConvertError, match=r"model\.patch_embed = encoder; the PyTorch side has no encoder"
    ):
        export(encoder, tmp_path / "out")


def test_tower_is_added_to_weights_without_one(config_dir, data_dir, pooled, teacher, tmp_path):
    config = ablation(config_dir, data_dir, "baseline_encoder", "sft")
    config.init_from, config.teacher.init_from = str(pooled), str(teacher[0])
    setup, lines = set_up(make_task(config, "sft"), make_mesh(config.mesh), 4), []
    params = initial_weights(setup, tmp_path, lines.append)
    told = "\n".join(lines)
    assert f"sft: takes its vision tower from {teacher[0]}" in told
    assert (
        f"sft: starts from {pooled} (stage sft, step 4); fresh: elva/patch_embed/fc1/bias" in told
    )
    assert "tower/" not in told
    assert {path for path in params if path.startswith(TOWER)} == {
        TOWER + path for path in teacher[1]
    }
    np.testing.assert_array_equal(params[f"{TOWER}patch_kernel"], teacher[1]["patch_kernel"])
    config.teacher.init_from = ""
    setup = set_up(make_task(config, "sft"), make_mesh(config.mesh), 4)
    with pytest.raises(
        ConfigError,
        match=rf"teacher\.init_from: stage sft needs a vision tower, which {pooled} does not have",
    ):
        initial_weights(setup, tmp_path, lines.append)


def test_a_frozen_tower_costs_no_backward_pass():
    """The gradient has as many matrix products as if the features of the tower were a constant."""
    tower = TeacherConfig(
        image_size=32, patch_size=8, hidden_size=16, intermediate_size=32, num_layers=4, num_heads=2
    )
    module = EncoderEmbed(
        ModelConfig(
            hidden_size=8, patch_size=8, patch_embed="encoder", dtype="float32", tower=tower
        )
    )
    layout = jax.tree.map(
        lambda field: field[None], build_layout([Clip(((4, 4),) * 2, bare=True), Text((1,))])
    )
    patches = np.random.default_rng(0).integers(0, 256, (1, 32, 8 * 8 * 3), np.uint8)
    params = {
        "elva": {
            "patch_embed": nn.meta.unbox(
                jax.eval_shape(module.init, jax.random.key(0), patches, layout)
            )["params"]
        }
    }
    settings = schema.optimizer()
    settings.freeze = (f"^{TOWER}",)
    labels = make_optimizer(settings, 4, params).labels

    def loss(params):
        return jnp.sum(
            jnp.square(module.apply({"params": params["elva"]["patch_embed"]}, patches, layout))
        )

    def with_constant_tower(projector, tower):
        return loss({"elva": {"patch_embed": {**projector, "tower": tower}}})

    def products(function, *inputs):
        return str(jax.make_jaxpr(jax.grad(function))(*inputs)).count("dot_general[")

    projector = dict(params["elva"]["patch_embed"])
    tower = projector.pop("tower")
    constant = products(with_constant_tower, projector, tower)
    assert (
        products(
            lambda moving, whole: loss(join_frozen(moving, whole)),
            trained_part(params, labels),
            params,
        )
        == constant
        > 0
    )
    assert products(loss, params) > 1.5 * constant
