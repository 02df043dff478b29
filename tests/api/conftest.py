"""A run of the tiny model on disk, as training leaves one."""

import json

import pytest

from elva_jax import testing
from elva_jax.checkpoints.save import save_weights
from elva_jax.config.serialize import config_to_dict


@pytest.fixture(scope="session")
def model():
    return testing.tiny_model()


@pytest.fixture(scope="session")
def run_dir(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_weights(folder / "video", {"elva": model.params}, model.config, "video")
    (folder / "config.json").write_text(json.dumps(config_to_dict(model.config)))
    model.tokenizer.save_pretrained(folder / "tokenizer")
    return folder
