"""Tests of importing an exported folder into JAX."""

import json

import jax
import numpy as np
import pytest
import torch

from elva_jax.checkpoints.restore import load_run
from elva_jax.errors import ConvertError
from elva_jax.hf.elva import from_hf_config
from elva_jax.hf.open_model import load_folder
from elva_jax.inference.load import load
from elva_jax.utils.trees import key_path

QUESTION = "What colour is the circle?"


def flat(tree):
    return {
        key_path(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value.dtype == two[name].dtype
        np.testing.assert_array_equal(value.view(np.uint8), two[name].view(np.uint8), err_msg=name)


def test_round_trip_is_bitwise_equal(exported, run_dir):
    back, run = load_folder(exported), load_run(run_dir)
    assert_equal(flat(back.params), flat({"elva": run.params["elva"]}))
    assert (back.stage, back.step) == (run.stage, run.step)
    assert back.config == run.config


@pytest.mark.parametrize("exact", [True, False])
def test_folder_saved_again_by_pytorch_is_imported(
    exported, generator, processor, videos, tmp_path, exact
):
    """Without elva_jax.json the configuration comes from other files; trained weights return."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    if not exact:
        with torch.no_grad():
            model.lm_head.weight.mul_(-1.0)
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "elva_jax.json").exists()
    back = load(tmp_path / "again")
    assert (back.model_config, back.data) == (generator.model_config, generator.data)
    head = np.asarray(generator.engine.weights.lm_head)
    np.testing.assert_array_equal(back.engine.weights.lm_head, head if exact else -head)
    if exact:
        assert back.answer(videos[2], QUESTION, max_new_tokens=16) == generator.answer(
            videos[2], QUESTION, max_new_tokens=16
        )


def test_contradicting_configuration_is_refused(exported, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    for file in exported.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"patch_heads": 1', '"patch_heads": 2'))
    with pytest.raises(ConvertError, match=r"patch_heads is 2, the run has model\.patch_heads = 1"):
        load_folder(folder)
    config.write_text(config.read_text().replace('"model_type": "elva"', '"model_type": "qwen2"'))
    with pytest.raises(ConvertError, match="not an ELVA"):
        load_folder(folder)


def test_folders_without_a_newer_key_have_its_default(exported):
    config = json.loads((exported / "config.json").read_text())
    assert from_hf_config({**config, "merge_survivor": "first"}).merge_survivor == "first"
    del config["merge_survivor"]
    assert from_hf_config(config).merge_survivor == "last"


def test_folder_is_imported_as_a_checkpoint(exported, run_dir, tmp_path, capsys):
    """No permission to run code is needed; weights and answers are the same."""
    from elva_jax.cli import main
    from elva_jax.evaluation.compare import check

    assert main(["convert", "import", str(exported), str(tmp_path / "back")]) == 0
    assert "custom code" not in capsys.readouterr().out
    assert_equal(
        flat(load_run(tmp_path / "back").params["elva"]), flat(load_run(run_dir).params["elva"])
    )
    report = check(tmp_path / "back", exported, prompt=QUESTION, new_tokens=3)
    assert report.same, report.lines
