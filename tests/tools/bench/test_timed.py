"""Tests of the timing benchmarks on tiny models: their reports are complete and consistent."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from elva_jax.inference.params import Weights
from elva_jax.inference.prefill import embed_program
from elva_jax.models.merv.embed import MervEmbed
from elva_jax.tools.analysis.merv import merv_on
from elva_jax.tools.analysis.paper import MODELS, QWEN2_7B
from elva_jax.tools.bench.random_model import CONTENT, random_patches
from elva_jax.tools.bench.video_llm import HEADER, QUESTION, kept_share, tiny_models
from elva_jax.video.layout import Clip, Text, build_layout


def test_attention_is_compared_with_pytorch(bench):
    status, out, _, report = bench(
        "attention",
        "--lengths",
        "64,2048",
        "--heads",
        "2",
        "--kv-heads",
        "1",
        "--head-dim",
        "8",
        "--repeats",
        "1",
    )
    assert status == 0
    short, long = report["rows"]
    assert (short["length"], long["length"], short["implementation"]) == (64, 2048, "xla")
    assert set(long["seconds"]) == {"ours", "pytorch"}
    assert long["temporary_bytes"] < long["square_bytes"] / 4, "attention holds a square of scores"
    assert "2,048" in out


def test_merge_time_is_a_fraction_of_a_layer(bench, config_dir):
    status, out, _, report = bench(
        "merge", "--config", f"{config_dir}/tiny.py", "--tokens", "330", "--repeats", "1"
    )
    assert (status, report["policy"], report["rows"][0]["tokens"]) == (0, "both", 2 * 157)
    assert "share %" in out


def test_decoder_equals_transformers(bench):
    words = [
        "--hidden",
        "32",
        "--intermediate",
        "48",
        "--layers",
        "2",
        "--heads",
        "4",
        "--kv-heads",
        "2",
        "--vocabulary",
        "97",
    ]
    status, out, _, report = bench(
        "pytorch", *words, "--lengths", "24", "--new-tokens", "6", "--repeats", "1"
    )
    assert status == 0
    assert [row["same_tokens"] for row in report["rows"]] == [True]
    assert "yes" in out


@pytest.mark.parametrize("content", list(CONTENT))
def test_videos_have_the_redundancy_that_they_are_named_after(content):
    frames = random_patches([(20, 20)] * 6, 3, content).reshape(6, 400, 3)
    changed = (frames[1:] != frames[:-1]).any(axis=-1).mean()
    assert abs(changed - CONTENT[content]) < 0.03


@pytest.fixture(scope="module")
def models():
    return tiny_models("float32")


def test_five_models_are_measured_on_one_decoder(models, bench):
    words = ("--size", "tiny", "--frames", "4", "--content", "static", "--new-tokens", "3")
    status, out, _, report = bench("ttft", *words, "--repeats", "1", "--dtype", "float32")
    assert (status, report["by_content"]) == (0, [])
    results = {row["variant"]: row for row in report["rows"]}
    assert list(results) == list(models)
    assert all(f"{MODELS[name]} " in out for name in models)
    assert results["merv"]["ttft_reduction"] < 100
    for name, model in models.items():
        tokens = build_layout([Text((0,) * (HEADER + QUESTION)), model.clip(4)]).length
        assert results[name]["tokens"] == tokens
        assert results[name]["ttft"]["median"] > 0
        assert model.weights.layers is models["merge"].weights.layers or name == "encoder_based"
    assert results["encoder_based"]["tokens"] == HEADER + QUESTION + 4 * 16
    assert (
        results["merge_hr"]["tokens"]
        < results["merge"]["tokens"]
        == results["encoder_free"]["tokens"]
    )
    assert results["encoder_based"]["kept"] == results["encoder_free"]["kept"] == 1
    noise = models["merge"].measure(4, "noise", 3, 1)
    assert results["merge"]["kept"] < noise["kept"] < 1


def test_merv_reads_as_much_of_any_video(models):
    merv = models["merv"]
    question = merv.question(64, "noise", 1)
    assert question.rows().patches.shape[2] == merv.config.patch_values
    prefix = question.prefill()
    assert (prefix.length.item(), kept_share(prefix)) == (HEADER + 2 * 2 * 2, 1)
    assert merv.tokens(4) == merv.tokens(64) == HEADER + QUESTION + 2 * 2 * 2


def test_real_merv_lowers_from_shapes():
    """Four encoders in bfloat16 on one clip, before a 7B decoder's first layer."""
    config = merv_on(dataclasses.replace(QWEN2_7B, dtype="bfloat16"))
    clip = Clip(((8, 8),) * 16, bare=True)
    layout = jax.tree.map(lambda leaf: leaf[None], build_layout([clip, Text((1, 2))]))
    patches = jax.ShapeDtypeStruct((1, 1024, config.patch_values), "uint8")
    shapes = nn.unbox(jax.eval_shape(MervEmbed(config).init, jax.random.key(0), patches, layout))
    table = jax.ShapeDtypeStruct((config.vocab_size, config.hidden_size), "bfloat16")
    weights = Weights(shapes["params"], table, None, None, ())
    lowered = embed_program.lower(config, weights, patches, layout)
    embedded, weights = lowered.out_info
    assert embedded.shape == (1, 1026, 3584)
    assert embedded.dtype == "bfloat16"
    assert weights.shape == (1, 1, 4)


def test_kept_is_the_fraction_of_visual_tokens(models):
    """Before layer 0, merging keeps one frame and all marker tokens of a static video."""
    frames, marks, patches = 4, 4, 9
    whole, left = frames * (patches + marks), patches + frames * marks
    measured = models["merge"].measure(frames, "static", 1, 1)["kept"]
    assert np.isclose(measured, left / whole)
