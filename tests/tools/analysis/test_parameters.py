"""Tests of parameter counts against the paper's Table 3 and Qwen2's published sizes."""

import dataclasses

import jax
import pytest

from elva_jax.config.schema import ModelConfig
from elva_jax.tools.analysis.parameters import abstract_parameters, count_parameters

SIZES = {
    "1.5b": ModelConfig(),
    "7b": ModelConfig(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_heads=28,
        num_kv_heads=4,
        tie_embeddings=False,
    ),
}


@pytest.mark.parametrize(
    ("size", "kind", "millions", "digits"),
    [
        ("7b", "naive", 6.08, 2),
        ("7b", "video", 9.2, 1),
        ("1.5b", "naive", 3.98, 2),
        ("1.5b", "video", 7.13, 2),
    ],
)
def test_patch_embedding_size_equals_the_papers(size, kind, millions, digits):
    config = dataclasses.replace(SIZES[size], patch_embed=kind)
    assert round(count_parameters(config)["patch_embed"] / 1e6, digits) == millions


@pytest.mark.parametrize(("size", "total"), [("1.5b", 1_543_714_304), ("7b", 7_615_616_512)])
def test_decoder_size_equals_qwen2(size, total):
    counts = count_parameters(SIZES[size])
    assert counts["total"] - counts["patch_embed"] == total


def test_every_layer_leaf_is_stacked_and_float32():
    tree = abstract_parameters(dataclasses.replace(SIZES["1.5b"], num_layers=3))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(tree["decoder"]["layers"])} == {3}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} == {"float32"}
