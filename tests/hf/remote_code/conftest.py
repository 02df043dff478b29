"""Fixtures: runs with random weights on disk, and the folders exported from them."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elva_jax.checkpoints import state as states
from elva_jax.checkpoints.save import Checkpoints
from elva_jax.config import schema
from elva_jax.config.serialize import config_to_dict, freeze
from elva_jax.hf.export import export
from elva_jax.models.elva import abstract_params
from elva_jax.tools.datasets.moving_shapes.tokenizer import build_for_moving_shapes


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words") / "tokenizer"
    build_for_moving_shapes(folder, ("easy",), vocab_size=500, scenes=60)
    return folder


@pytest.fixture(scope="session")
def write_run(tokenizer_dir):
    """Writes a run with random weights, large enough that attention is far from uniform."""

    def write(folder, system_prompt="Be brief.", data=None, **changes):
        c = schema.base()
        c.model.update(
            vocab_size=520, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4,
            num_kv_heads=2, head_dim=8, rope_theta=100.0,
            patch_size=8, patch_width=16, dtype="float32", max_position=400, tie_embeddings=False,
            merge_layers=(1, 2), merge_policies=("threshold", "both"),
            merge_thresholds=(0.5, 0.9), merge_ratios=(1.0, 0.6),
        )  # fmt: skip
        c.model.update(changes)
        c.stages.video = schema.stage()
        c.stages.video.data.update(num_frames=4, longest_edge=32, system_prompt=system_prompt)
        c.stages.video.data.update(data or {})
        c.curriculum = ("video",)
        shapes, rng = nn.meta.unbox(abstract_params(freeze(c).model)), np.random.default_rng(0)

        def draw(path, leaf):
            mean, width = (1.0, 0.2) if "scale" in jax.tree_util.keystr(path) else (0.0, 0.16)
            return jnp.asarray(rng.normal(mean, width, leaf.shape), jnp.float32)

        params = {
            "elva": jax.tree_util.tree_map_with_path(draw, shapes),
            "guidance": {"kernel": jnp.ones((2, 2))},
        }
        with Checkpoints(folder / "video" / "checkpoints") as checkpoints:
            checkpoints.save(7, states.create(params, optax.sgd(0.1)), {}, c, "video")
        (folder / "config.json").write_text(json.dumps(config_to_dict(c)))
        (folder / "tokenizer").symlink_to(tokenizer_dir)
        return folder

    return write


@pytest.fixture(scope="session")
def run_dir(write_run, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def exported(run_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "elva"
    export(run_dir, folder)
    return folder


@pytest.fixture(scope="session")
def model(exported):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)


@pytest.fixture(scope="session")
def processor(exported):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(exported, trust_remote_code=True)


@pytest.fixture(scope="session")
def generator(run_dir):
    from elva_jax.inference.load import load

    return load(run_dir)


@pytest.fixture(scope="session")
def params(run_dir):
    """The parameters of a run as in training."""
    from elva_jax.hf.open_model import open_run_or_folder

    return open_run_or_folder(run_dir).params["elva"]
