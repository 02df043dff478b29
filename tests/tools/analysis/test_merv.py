"""Tests of MERV's accounting against its paper's cells, in multiply-accumulates."""

import dataclasses
import math

import jax
import pytest

from elva_jax.config.schema import MervConfig
from elva_jax.models import flops
from elva_jax.models.merv.fusion import Fusion
from elva_jax.tools.analysis import merv
from elva_jax.tools.analysis.parameters import count_tower


@pytest.mark.parametrize("fusion", merv.CELLS)
def test_cells_of_the_paper_come_out_to_the_last_digit(fusion):
    cell, config = merv.CELLS[fusion], merv.with_fusion(merv.MERV_7B, fusion)
    total = merv.published_macs(config, cell.text_tokens)["total"]
    assert f"{total / 1e12:.2f}" == f"{cell.tera:.2f}"
    assert round(merv.text_tokens_of(config, cell.tera * 1e12)) == cell.text_tokens


@pytest.mark.parametrize(
    ("part", "tera"),
    [
        ("languagebind", "1.712"),
        ("dinov2", "1.317"),
        ("vivit", "0.452"),
        ("siglip", "0.280"),
        ("projectors", "0.0150"),
        ("fusion", "0.00014"),
    ],
)
def test_every_part_is_counted(part, tera):
    digits = len(tera.partition(".")[2])
    count = merv.published_macs(merv.MERV_7B, 865)[part]
    assert f"{count / 1e12:.{digits}f}" == tera


def test_with_one_text_only_the_longest_sequence_costs_more():
    totals = {
        fusion: merv.published_macs(merv.with_fusion(merv.MERV_7B, fusion), 865)["total"]
        for fusion in merv.CELLS
    }
    assert {name: round(total / 1e12, 2) for name, total in totals.items()} == {
        "attention": 17.19,
        "sequence": 43.01,
        "channels": 17.26,
        "scalar": 17.19,
    }


def test_encoders_together_and_channels():
    front = flops.merv_front(merv.MERV_7B, published=True)
    assert f"{sum(front.encoders.values()) / 2e12:.3f}" == "3.760"
    channels = flops.merv_fusion(merv.with_fusion(merv.MERV_7B, "channels"))
    assert f"{channels / 2e12:.4f}" == "0.0687"


def test_decoder_per_token_and_per_pair():
    one, two = (merv.published_macs(merv.MERV_7B, n - 1024) for n in (1, 2))
    assert (one["decoder attention"], two["decoder attention"]) == (262_144, 4 * 262_144)
    assert f"{one['decoder linear'] / 1e9:.5f}" == "6.60734"


def test_what_runs_leaves_out_what_feeds_nothing():
    """The last of 24, 24 and 12 blocks, not ViViT's; and half of the fusion's products."""
    ran, published = (flops.merv_front(merv.MERV_7B, published=flag) for flag in (False, True))
    for name, blocks in (("languagebind", 24), ("dinov2", 24), ("siglip", 12)):
        tower = merv.ENCODERS[name]
        embedding = flops.vision_tower(tower, 16, 0)
        share = (ran.encoders[name] - embedding) / (published.encoders[name] - embedding)
        assert share == pytest.approx((blocks - 1) / blocks)
    assert ran.encoders["vivit"] == published.encoders["vivit"]
    assert ran.fusion < 0.6 * published.fusion


def test_parameters_are_those_of_the_published_checkpoint():
    parts = merv.front_parameters(merv.MERV_7B)
    assert {name: f"{count / 1e6:.2f}" for name, count in parts.items()} == {
        "projectors": "14.70",
        "fusion": "22.03",
        "unused value projection": "12.59",
        "unused output projection": "9.44",
    }
    assert parts["fusion"] == 3072 + (3072**2 + 3072) + (3072 * 4096 + 3072)
    assert parts["unused value projection"] - 3072 == 12_582_912


def test_encoders_have_the_parameters_of_their_checkpoints():
    """Sums over the shapes of the published files, without what is not read from them."""
    large = 24 * (4 * (1024**2 + 1024) + (2 * 1024 * 4096 + 5 * 1024) + 4 * 1024)
    base = 12 * (4 * (768**2 + 768) + (2 * 768 * 3072 + 5 * 768) + 4 * 768)
    pooling = 4 * (768**2 + 768) + (2 * 768 * 3072 + 5 * 768) + 3 * 768  # SigLIP's head
    temporal = 24 * (4 * (1024**2 + 1024) + 2 * 1024 + 8 * 1024)
    expected = {
        "languagebind": large + temporal + 588 * 1024 + 258 * 1024 + 4 * 1024,
        "dinov2": large + 24 * 2048 + 589 * 1024 + 1370 * 1024 + 5 * 1024 + 2 * 1024,
        "vivit": base + 1537 * 768 + 3138 * 768 + 2 * 768,
        "siglip": base + 769 * 768 + 196 * 768 + 2 * 768 + pooling,
    }
    assert {name: count_tower(tower) for name, tower in merv.ENCODERS.items()} == expected


@pytest.mark.parametrize("fusion", merv.CELLS)
def test_fusions_have_the_parameters_of_their_modules(fusion):
    decoder = dataclasses.replace(merv.MERV_7B, hidden_size=12)
    config = merv.merv_on(decoder, MervConfig(fusion=fusion, fusion_width=20))
    tokens = [jax.ShapeDtypeStruct((1, 5, 12), "float32")] * 4
    tree = jax.eval_shape(Fusion(config).init, jax.random.key(0), tokens)
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    assert merv.front_parameters(config)["fusion"] == size


def test_one_encoder_alone():
    one = dataclasses.replace(merv.MERV_7B, encoders=merv.MERV_7B.encoders[3:])
    front = flops.merv_front(one, published=True)
    assert list(front.encoders) == ["siglip"]
    assert merv.front_parameters(one)["projectors"] == 769 * 4096
