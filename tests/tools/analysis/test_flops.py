"""Tests of FLOPs against the paper's Table 5, loops over layers, and XLA's cost analysis."""

import dataclasses
import math

import pytest

from elva_jax.config.load import load
from elva_jax.config.schema import ModelConfig, TeacherConfig
from elva_jax.config.serialize import freeze
from elva_jax.errors import ConfigError
from elva_jax.inference.batching import grid_length
from elva_jax.models.elva import layer_blocks, with_merging
from elva_jax.ops.merging import MergeLayer, Merging
from elva_jax.tools.analysis import paper, prompt_flops, table5, xla
from elva_jax.tools.analysis.merv import ENCODERS, MERV_7B, merv_on

SMALL = with_merging(
    ModelConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=2048,
        num_layers=5,
        num_heads=8,
        num_kv_heads=2,
        head_dim=64,
        tie_embeddings=False,
        dtype="float32",
    ),
    Merging((MergeLayer(1), MergeLayer(3))),
)
ROWS = {(row["frames"], row["variant"]): row for row in table5.compare(None, (32, 64, 128))["rows"]}


@pytest.mark.parametrize(
    ("decoder", "billions"), [(paper.QWEN2_7B, 7.070), (paper.VICUNA_7B, 6.607)]
)
def test_linear_weights_equal_the_papers(decoder, billions):
    assert round(prompt_flops.paper_decoder(decoder, 1) / 2e9, 3) == billions


@pytest.mark.parametrize(("frames", "variant"), [key for key in ROWS if key[1] in paper.VARIANTS])
def test_accounting_of_the_paper_gives_its_cells(frames, variant):
    row = ROWS[frames, variant]
    assert row["accounting_tflops"] == pytest.approx(paper.TABLE5[frames][variant].tflops, rel=0.01)
    assert row["deviation"] == pytest.approx(row["accounting_tflops"] / row["paper_tflops"] - 1)


@pytest.mark.parametrize(
    ("frames", "free", "based"), [(32, 75.0, 259.9), (64, 146.1, 516.5), (128, 288.2, 1029.5)]
)
def test_accounting_is_exact_where_it_was_derived(frames, free, based):
    assert ROWS[frames, "encoder_free"]["accounting_tflops"] == pytest.approx(free, abs=0.06)
    assert ROWS[frames, "encoder_based"]["accounting_tflops"] == pytest.approx(based, abs=0.15)


def test_merv_has_the_same_cost_for_any_video():
    """Two FLOPs per weight for 1,024 + 257 tokens, and the encoders' 3.760 T twice."""
    costs = {ROWS[frames, "merv"]["accounting_tflops"] for frames in (32, 64, 128)}
    front = 2 * (3.760 + 0.0150 + 0.00014)
    assert costs.pop() == pytest.approx(2 * 6.60734e9 * 1281 / 1e12 + front, abs=0.002)
    assert not costs


def test_models_are_those_of_the_configs(config_dir):
    for size, decoder in (("1_5b", paper.QWEN2_1_5B), ("7b", paper.QWEN2_7B)):
        config = freeze(load(f"{config_dir}/elva.py:size={size}")).model
        assert dataclasses.replace(config, dtype="float32", remat="none") == with_merging(
            decoder, table5.MERGE
        )


@pytest.mark.parametrize("recipe", ["frozen", "full"])
def test_merv_is_that_of_its_config(config_dir, recipe):
    model = freeze(load(f"{config_dir}/merv.py:recipe={recipe},llm=llama2_7b")).model
    encoders = {
        name: dataclasses.replace(tower, init_from="", dtype="bfloat16")
        for name, tower in model.encoders
    }
    assert encoders == ENCODERS
    same = dataclasses.replace(model, dtype="float32", remat="none")
    assert merv_on(same) == dataclasses.replace(
        MERV_7B, **{name: getattr(model, name) for name in ("rope_theta", "rms_norm_eps")},
        max_position=model.max_position,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("length", "pairs"), [(1, 1), (64, 64 * 64), (130, 128 * 128 + 2 * 130), (1025, None)]
)
def test_diagonal_blocks_are_counted_completely(length, pairs):
    if pairs is None:  # tiles of 256 x 256 above 1024 tokens; the last one is padded
        pairs = 15 * 256 * 256
    assert prompt_flops.attended_pairs(length) == pairs


@pytest.mark.parametrize(("frames", "variant"), [key for key in ROWS if "merge" in key[1]])
def test_the_true_cost_is_at_the_papers_retention(frames, variant):
    """The mean over the layers, relative to all frames at 336 px with 157 tokens each."""
    tokens = ROWS[frames, variant]["tokens"]
    segment = [0] * 2 + [1] * 6 + [2] * 6 + [3] * 14  # for each of the 28 layers
    visual = [tokens[k] - table5.HEADER_TOKENS for k in segment]
    assert sum(visual) / 28 / (157 * frames) == pytest.approx(
        paper.RETENTION[frames][variant], abs=5e-4
    )
    high = frames if variant == "merge" else frames // 2
    specials, tubes = 13 * high + 5 * (frames - high), 144 + (16 if high < frames else 0)
    patches = [n - table5.HEADER_TOKENS - specials for n in tokens]
    assert patches[0] == 144 * high + 16 * (frames - high)
    assert patches[2:] == [max(math.ceil(n / 2), tubes) for n in patches[1:3]]
    assert ROWS[frames, variant]["padded"] == [grid_length(n) for n in tokens]


def test_unreachable_retention_gives_the_nearest():
    content = prompt_flops.Content(text=3, specials=10, patches=400, tubes=100)
    assert prompt_flops.tokens_at_retention(SMALL, content, 1.5) == (413, 413, 413)
    assert prompt_flops.tokens_at_retention(SMALL, content, 0.0) == (413, 113, 113)
    with pytest.raises(ConfigError, match=r"model\.merge_layers"):
        prompt_flops.tokens_at_retention(with_merging(SMALL, Merging()), content, 0.5)


def test_lengths_must_fit_the_merging_layers():
    with pytest.raises(ConfigError, match="2 for 2 merging layers"):
        prompt_flops.prefill(SMALL, (64, 32))


def test_a_merging_layer_before_the_first_layer():
    config = with_merging(SMALL, Merging((MergeLayer(0),)))
    assert len(layer_blocks(config, merging=True)) == 1
    merged, plain = prompt_flops.prefill(config, (256, 64)), prompt_flops.prefill(SMALL, (64,))
    assert merged.pop("merging") == prompt_flops.merging_layer(512, 256)
    assert plain.pop("merging") == 0
    assert merged == plain


def test_reductions_are_truncated():
    assert table5.percent_down(0.94999) == 94.9
    assert table5.percent_down(0.95) == 95.0
    assert table5.percent_down(None) is None


@pytest.mark.parametrize("lengths", [(1024,), (512, 256, 128)])
def test_prefill_flops_equal_xlas_count(lengths):
    assert abs(xla.check_prefill(SMALL, lengths).deviation) < 0.01


def test_decode_flops_equal_xlas_count():
    assert abs(xla.check_decode(SMALL, (512, 256, 128)).deviation) < 0.01


@pytest.mark.parametrize("kind", ["video", "naive"])
def test_patch_embedding_flops_equal_xlas_count(kind):
    config = dataclasses.replace(SMALL, patch_embed=kind, patch_heads=4)
    assert abs(xla.check_patch_embedding(config, 384, 512).deviation) < 0.01


def test_vision_tower_flops_equal_xlas_count():
    tower = TeacherConfig(
        image_size=224, hidden_size=512, intermediate_size=2048, num_layers=4, num_heads=8
    )
    assert abs(xla.check_vision(tower).deviation) < 0.01


def test_merging_flops_equal_xlas_count():
    """The FLOPs of sorting are omitted; they are visible only in a narrow model."""
    config = with_merging(paper.QWEN2_7B, Merging((MergeLayer(2, "both"),)))
    assert abs(xla.check_merging(config, 512).deviation) < 0.03
