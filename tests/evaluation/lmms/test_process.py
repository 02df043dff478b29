"""Ranks, the response cache's key, and opening a saved step; without lmms-eval."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from elva_jax import testing
from elva_jax.checkpoints.save import save_weights
from elva_jax.config.serialize import config_to_dict
from elva_jax.errors import ConfigError, ElvaError
from elva_jax.evaluation.lmms.opened import open_options
from elva_jax.evaluation.lmms.options import parse_options
from elva_jax.evaluation.lmms.ranks import rank_devices
from elva_jax.evaluation.lmms.response_cache import NOTE, key_by_weights, mend

REPO = Path(__file__).parents[3]


def test_ranks_divide_the_gpus_that_they_see(tmp_path):
    def devices(**environ):
        return rank_devices(environ, tmp_path)

    assert devices() is None
    assert devices(LOCAL_RANK="1", LOCAL_WORLD_SIZE="2") is None  # no GPU
    assert devices(LOCAL_RANK="1", LOCAL_WORLD_SIZE="2", CUDA_VISIBLE_DEVICES="3,5") == (1,)
    for number in range(4):
        (tmp_path / f"nvidia{number}").touch()
    (tmp_path / "nvidiactl").touch()
    assert devices(LOCAL_RANK="1", LOCAL_WORLD_SIZE="2") == (2, 3)
    assert devices(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1") is None
    assert devices(LOCAL_RANK="1", LOCAL_WORLD_SIZE="2", CUDA_VISIBLE_DEVICES="") is None
    with pytest.raises(ConfigError, match=r"4 GPUs do not divide among 3 .*--nproc_per_node"):
        devices(LOCAL_RANK="0", LOCAL_WORLD_SIZE="3")


class Cache:
    """The parts of lmms-eval's ResponseCache that are wrapped."""

    def __init__(self, *named):
        self.named, self.logged = named, []

    @classmethod
    def create(cls, cache_root, *, model="", model_args="", global_rank=0):
        return cls(cache_root, model, model_args, global_rank)

    def execute(self, lm, kind, requests):
        return [[1.5, True], (2.5, False), "red"]

    def _log_to_audit(self, kind, response, *, cache_key=""):
        self.logged.append((response, cache_key))


def test_the_cache_s_key_has_the_weights_of_an_elva_only(tmp_path, caplog):
    root = str(tmp_path / "cache")
    assert key_by_weights(Cache, "step1-aa", lambda *pair: pair)
    made = Cache.create(root, model="elva", model_args="pretrained=a")
    assert made.named == (root, "elva@step1-aa", "pretrained=a", 0)
    assert made.execute(None, "loglikelihood", []) == [(1.5, True), (2.5, False), "red"]
    assert made.execute(None, "generate_until", [])[0] == [1.5, True]
    other = Cache.create(root, model="llava", model_args="x")
    assert (other.named[1], other.execute(None, "loglikelihood", [])[0]) == ("llava", [1.5, True])
    assert key_by_weights(Cache, "step2-bb", lambda *pair: pair)
    Cache.create(root, model="elva_jax", model_args="pretrained=a", global_rank=1)
    assert not caplog.records
    again = Cache.create(root, model="elva_jax", model_args="pretrained=a")
    assert again.named[1] == "elva@step2-bb"
    assert "answers of other weights (step1-aa) under the same model_args" in caplog.text
    noted = json.loads((tmp_path / "cache" / NOTE).read_text())
    assert noted == {"pretrained=a": "step2-bb"}
    assert not key_by_weights(object, "step1-aa", lambda *pair: pair)


def test_what_is_empty_or_has_no_loss_is_not_for_later_runs():
    cache = Cache()
    mend(cache, lambda *pair: pair)
    inf = float("inf")
    for response in ("red", " ", (1.5, False), (inf, False), ["a", ""], ["", ""], ["a", None]):
        cache._log_to_audit("kind", response, cache_key="key")
    assert [bool(key) for _, key in cache.logged] == [True, False, True, False, True, False, False]


def test_an_exported_folder_opens_with_its_step_and_hash(tmp_path):
    testing.tiny_model().save_pretrained(tmp_path / "a")
    testing.tiny_model(seed=1).save_pretrained(tmp_path / "b")
    first = open_options(parse_options({"pretrained": tmp_path.joinpath("a").as_posix()}))
    given = {"pretrained": str(tmp_path / "a"), "weights": first.weights[:8], "longest_edge": 16}
    given |= {"dtype": "bfloat16", "quantize": "int8", "mesh": "tensor:-1"}
    given |= {"prefill_chunk": "64"}
    again = open_options(parse_options(given))
    assert (again.identity, again.model.data.longest_edge) == (f"step0-{first.weights}-int8", 16)
    assert again.model.model_config.dtype == "bfloat16"
    assert again.model.engine.prefill_chunk == 64
    with pytest.raises(ElvaError, match=f"have the hash [0-9a-f]{{16}}, not {first.weights[:8]}"):
        open_options(parse_options({**given, "pretrained": str(tmp_path / "b")}))
    with pytest.raises(ElvaError, match="is of step 0, not 5"):
        open_options(parse_options({**given, "step": 5}))


def test_a_step_of_a_run_is_chosen_by_its_number(tmp_path):
    stage = tmp_path / "video"
    for step, seed in ((3, 0), (7, 1)):
        made = testing.tiny_model(seed=seed)
        save_weights(stage, {"elva": made.params}, made.config, "video")
        (stage / "checkpoints" / "0").rename(stage / "checkpoints" / str(step))
    (tmp_path / "config.json").write_text(json.dumps(config_to_dict(made.config)))
    made.tokenizer.save_pretrained(tmp_path / "tokenizer")

    def opened(**given):
        return open_options(parse_options({"pretrained": str(tmp_path), **given}))

    newest, older = opened(), opened(step=3, stage="video")
    assert (newest.step, older.step) == (7, 3)
    assert newest.weights != older.weights
    assert opened(step=7).identity == newest.identity
    with pytest.raises(ElvaError, match="has no step 5; saved are 3, 7"):
        opened(step=5)


def test_the_entry_point_imports_nothing_heavy():
    code = "import sys, elva_jax.evaluation.lmms.manifest; print({*sys.modules} & {*sys.argv[1:]})"
    heavy = ["jax", "numpy", "lmms_eval", "torch", "transformers"]
    found = subprocess.check_output([sys.executable, "-c", code, *heavy], text=True)
    assert found.strip() == "set()"
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lmms_eval.models"] == {
        "elva": "elva_jax.evaluation.lmms.manifest:manifests"
    }
