"""Fixtures: folders written by transformers, and parameters that we load from them."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import torch

from elva_jax.config import schema
from elva_jax.config.serialize import freeze
from elva_jax.hf import load
from elva_jax.hf.tensor_store import open_store
from elva_jax.models.build import parameter_shapes, vision_tower
from elva_jax.models.qwen2 import Qwen2
from elva_jax.utils.trees import unflatten_paths


@functools.cache
def compiled(module):
    """The module's `apply`, traced once for all folders of the same sizes."""
    return jax.jit(module.apply)


@pytest.fixture(scope="session")
def randomise():
    """Randomizes all parameters of a PyTorch model so that attention is far from uniform."""

    def fill(model):
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.2)
        return model.eval()

    return fill


@pytest.fixture(scope="session")
def edit():
    """`edit(folder, key=value)` changes the folder's config.json; None removes a key."""

    def change(folder, **values):
        file = folder / "config.json"
        config = {**json.loads(file.read_text()), **values}
        file.write_text(
            json.dumps({key: value for key, value in config.items() if value is not None})
        )

    return change


@pytest.fixture(scope="session")
def config_of():
    """The run configuration that matches a folder's config.json."""

    def read(folder):
        config = schema.base()
        group, values = load.read_config(open_store(folder).config, str(folder))
        config[group].update(values)
        config.model.dtype = "float32"
        return config

    return read


@pytest.fixture(scope="session")
def params_of(config_of):
    """The parameters of a folder as a tree, for `config` or by default its own configuration."""

    def read(folder, config=None, kind="elva", dtype=np.float32):
        config = config or config_of(folder)
        subtree = "vision" if kind == "teacher" else "elva"
        targets = load.make_targets(parameter_shapes(config, subtree), dtype)
        return unflatten_paths(load.load_params(folder, targets, config, subtree=subtree).params)

    return read


@pytest.fixture(scope="session")
def features_of(config_of, params_of):
    """Features of pixels by our vision tower with the weights of a folder."""

    def run(folder, pixels, config=None):
        config = config or config_of(folder)
        params = params_of(folder, config, "teacher")["vision"]
        return compiled(vision_tower(config))({"params": params}, pixels)

    return run


@pytest.fixture(scope="session")
def logits_of(config_of, params_of):
    """float32 logits [B, S, V] of our decoder with the weights of a folder."""

    def run(folder, ids, config=None):
        config = config or config_of(folder)
        params = params_of(folder, config)["elva"]["decoder"]
        position = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        model = freeze(config).model
        decoder = Qwen2(dataclasses.replace(model, dtype="float32"))
        return np.asarray(compiled(decoder)({"params": params}, ids, position, np.ones_like(ids)))

    return run
