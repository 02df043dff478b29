"""Evaluations with quantized weights, and `elva bench quantization`, on real records."""

import json

import jax
import numpy as np
import pytest

import elva_jax
from elva_jax.cli import main
from elva_jax.data.conversation import answer_ids
from elva_jax.errors import ConfigError
from elva_jax.evaluation.models import open_elva
from elva_jax.evaluation.questions import read_split
from elva_jax.inference.batching import Lengths
from elva_jax.tools.bench.quantization import answer_logits

NAME = "moving_shapes/small"


def test_the_bench_counts_every_token_and_the_record_names_the_weights(
    generator, data_dir, tmp_path, capsys
):
    generator.save_pretrained(tmp_path / "model")
    where = ["--checkpoint", str(tmp_path / "model"), "--data-dir", str(data_dir)]
    what = ["--data", NAME, "--limit", "2"]
    file, weights = tmp_path / "bench.json", ["--weights", "int4"]
    assert main(["bench", "quantization", *where, *what, *weights, "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    videos = read_split(NAME, "test", data_dir, 2)
    questions = [item for video in videos for item in video.questions]
    tokens = sum(len(answer_ids(item.answer, generator.tokenizer)) for item in questions)
    plain, int4 = report["rows"]
    assert (plain["weights"], int4["weights"]) == ("float32", "int4")
    assert (report["questions"], int4["tokens"]) == (len(questions), tokens)
    assert int4["bytes"] < plain["bytes"] / 2
    assert 0 < int4["kl"]["mean"] < int4["kl"]["max"]
    assert f"{len(questions)} questions, {tokens} tokens of answers" in capsys.readouterr().out
    options = ["--no-baselines", "--json", str(file)]
    assert main(["evaluate", *where, *what, *weights, *options]) == 0
    assert json.loads(file.read_text())["settings"]["weights"] == "int4"

    # Its distributions are those that options are scored with.
    model = elva_jax.load(tmp_path / "model")
    config = elva_jax.EvalConfig(
        dataset=NAME, data_dir=data_dir, limit=2, letters=False, baselines=False
    )
    items = elva_jax.evaluate(model, config).predictions
    seen = [(model.read_media(video.source, name=video.key), video) for video in videos]
    logits, valid = answer_logits(model, seen, Lengths(steady=True), merging=True)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    at = [(b, g) for b, video in enumerate(videos) for g in range(len(video.questions))]
    for place, item in zip(at, items, strict=True):
        ids = answer_ids(item.question.answer, model.tokenizer)
        assert valid[place].sum() == len(ids)
        scored = item.log_likelihoods[item.question.options.index(item.question.answer)]
        found = log_probs[place][np.arange(len(ids)), ids].sum()
        np.testing.assert_allclose(found, scored, rtol=1e-4)


def test_other_weights_than_those_of_the_model_are_refused(generator):
    with pytest.raises(ConfigError, match="the model that was passed has float32, not int8"):
        open_elva(generator, weights="int8")


def test_other_chunks_than_those_of_the_model_are_refused(generator):
    with pytest.raises(ConfigError, match="the model that was passed has None, not 64"):
        open_elva(generator, prefill_chunk=64)
