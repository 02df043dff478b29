"""Tests of an exported folder's PyTorch merging against ops/merging, row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from elva_jax.hf.remote_code.merging_elva import Tokens, merge_tokens
from elva_jax.ops.merging import MergeLayer, is_mergeable, merge
from elva_jax.video.layout import Clip, Kind, Text, TokenLayout, build_layout, pack

S, D = 96, 4
RULES = [
    MergeLayer(0, "threshold", 0.6),
    MergeLayer(0, "threshold", -1.0),
    MergeLayer(0, "threshold", 1.0),
    MergeLayer(0, "ratio", 0.0, 0.5),
    MergeLayer(0, "ratio", 0.0, 0.1),
    MergeLayer(0, "both", 0.9, 0.7),
    MergeLayer(0, "pool", 0.0, 0.5),
    MergeLayer(0, "pool", 0.0, 0.7),
]
compiled = jax.jit(merge, static_argnames=("rule", "merge_lines", "survivor"))


def batch(seed, rows=4):
    """Rows with two clips, several grids and an image; odd rows are padded on the left."""
    rng, layouts = np.random.default_rng(seed), []
    for _ in range(rows):
        clips = [
            Clip([((1, 2), (2, 2), (1, 1))[rng.integers(3)] for _ in range(rng.integers(1, 6))])
            for _ in range(2)
        ]
        layouts.append(build_layout([Text([7, 8]), clips[0], Text([9]), clips[1], Text([3, 4])]))
    # Dot products of small integers are exact, so many similarities are exactly equal.
    x = rng.integers(-1, 3, (rows, S, D)).astype(np.float32)
    size = rng.integers(1, 6, (rows, S)).astype(np.float32)
    return [pack([layout], S) for layout in layouts], x, size


def torch_tokens(layouts, x, size, merge_lines):
    """The same batch for PyTorch; odd rows are rolled so that their padding comes first."""
    fields = []
    for b, layout in enumerate(layouts):
        used = layout.kind != Kind.PAD
        shift = int((~used).sum()) if b % 2 else 0
        tube = np.where(
            is_mergeable(TokenLayout(*map(jnp.asarray, layout)), merge_lines=merge_lines),
            layout.tube,
            -1,
        ).astype(np.int64)
        index = np.where(used, np.arange(S), -1)
        row = (x[b], used, layout.position.astype(np.int64), tube, size[b] * used, index)
        fields.append([np.roll(values, shift, axis=0) for values in row])
    return Tokens(*(torch.from_numpy(np.stack(field)) for field in zip(*fields, strict=True)))


@pytest.mark.parametrize(
    ("merge_lines", "survivor"), [(False, "last"), (True, "last"), (True, "first")]
)
@pytest.mark.parametrize(
    "rule", RULES, ids=lambda rule: f"{rule.policy}-{rule.threshold}-{rule.ratio}"
)
def test_same_survivors_means_and_positions(rule, merge_lines, survivor):
    layouts, x, size = batch(hash((rule.threshold, rule.ratio)) % 1000)
    out = merge_tokens(
        torch_tokens(layouts, x, size, merge_lines),
        rule.policy,
        rule.threshold,
        rule.ratio,
        survivor,
    )
    options = {"rule": rule, "merge_lines": merge_lines, "survivor": survivor}
    lengths = out.valid.sum(1).numpy()
    assert out.x.shape[1] == lengths.max()
    for b, layout in enumerate(layouts):
        wanted = jax.device_get(compiled(x[b], layout, size[b], **options))
        count = int(wanted.stats.survivors)
        assert lengths[b] == count
        assert not out.valid[b, : len(out.valid[b]) - count].any()  # padding comes first
        tail = slice(out.x.shape[1] - count, None)
        np.testing.assert_array_equal(out.position[b, tail], wanted.layout.position[:count])
        np.testing.assert_array_equal(out.index[b, tail], wanted.layout.position[:count])
        np.testing.assert_array_equal(out.size[b, tail], wanted.size[:count])
        np.testing.assert_allclose(out.x[b, tail], wanted.x[:count], rtol=1e-6, atol=1e-6)
        assert (out.x[b, : tail.start] == 0).all()


def test_single_token_is_bitwise_unchanged_and_nan_merges_last():
    layouts, x, size = batch(5)
    x = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    tokens = torch_tokens(layouts, x, size, False)
    out = merge_tokens(tokens._replace(x=tokens.x.bfloat16()), "threshold", 2.0, 1.0)
    kept = tokens.valid
    assert torch.equal(out.x[out.valid], tokens.x.bfloat16()[kept])
    x[:, ::7] = np.nan
    with_nan = merge_tokens(torch_tokens(layouts, x, size, False), "ratio", 0.0, 0.6)
    for b, layout in enumerate(layouts):
        wanted = compiled(x[b], layout, size[b], rule=MergeLayer(0, "ratio", 0.0, 0.6))
        count = int(wanted.stats.survivors)
        np.testing.assert_array_equal(
            with_nan.index[b, with_nan.valid[b]], wanted.layout.position[:count]
        )


def test_gradients_flow_through_the_means():
    layouts, x, size = batch(3)
    tokens = torch_tokens(layouts, x, size, False)
    leaf = tokens.x.clone().requires_grad_()
    merge_tokens(tokens._replace(x=leaf), "threshold", 0.2, 1.0).x.sum().backward()
    assert torch.isfinite(leaf.grad).all()
    assert (leaf.grad[tokens.valid].abs().sum(-1) > 0).all()
