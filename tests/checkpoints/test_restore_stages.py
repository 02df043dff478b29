"""A run's config.json names stages of that run alone."""

import json

import pytest

from elva_jax.checkpoints.restore import open_run
from elva_jax.config import schema
from elva_jax.config.serialize import config_to_dict, freeze
from elva_jax.errors import CheckpointError


@pytest.mark.parametrize("name", ["../other", "/tmp", "..", ".", "", "a/../../b", "a/b"])
def test_a_stage_outside_the_run_is_refused(tmp_path, name):
    config = schema.base()
    config.stages["inside"] = schema.stage()
    config.curriculum = ("inside",)
    values = config_to_dict(freeze(config))
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="no stage of kind elva has saved"):
        open_run(tmp_path)
    values["curriculum"], values["stages"] = [name], {name: values["stages"]["inside"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="not the name of a folder") as caught:
        open_run(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
