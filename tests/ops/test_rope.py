"""RoPE against transformers."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from elva_jax.errors import ConfigError
from elva_jax.ops import rope
from elva_jax.ops.rope import RopeScaling

SCALINGS = st.builds(
    RopeScaling,
    kind=st.sampled_from(("linear", "dynamic", "yarn", "llama3")),
    factor=st.floats(1, 16),
    original_max_position=st.integers(64, 100_000),
    beta_fast=st.floats(4, 64),
    beta_slow=st.floats(0.5, 4),
    attention_factor=st.none() | st.floats(0.5, 2),
    low_freq_factor=st.floats(0.5, 4),
    high_freq_factor=st.floats(4.5, 32),
)


@given(SCALINGS, st.integers(2, 64), st.floats(1e3, 1e7), st.floats(0.1, 8))
@settings(max_examples=200)
def test_frequencies_equal_transformers(scaling, planes, theta, share):
    head_dim, seq_len = 2 * planes, int(share * scaling.original_max_position)
    parameters = {"rope_type": scaling.kind, "rope_theta": theta, "factor": scaling.factor}
    if scaling.kind == "yarn":
        parameters |= {
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "attention_factor": scaling.attention_factor,
        }
        parameters["original_max_position_embeddings"] = scaling.original_max_position
    if scaling.kind == "llama3":
        parameters |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        }
    config = Qwen2Config(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=scaling.original_max_position,
        rope_parameters=parameters,
    )
    expected, factor = ROPE_INIT_FUNCTIONS[scaling.kind](config, "cpu", seq_len=seq_len)
    got, got_factor = rope.frequencies(head_dim, theta, scaling, seq_len)
    # Both compute powers in single precision, which loses digits where the exponent is large.
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5)
    assert got_factor == pytest.approx(factor)


def test_rotation_equals_transformers():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 2, 5, 3, 8)).astype(np.float32)
    position = np.array([[0, 1, 2, 3, 4], [7, 2, 900, 4, 5]])
    frequency, _ = rope.frequencies(8, 10_000.0)
    cos, sin = rope.cos_sin(jnp.asarray(position), frequency)
    angle = torch.tensor(position)[..., None] * torch.tensor(frequency)
    angle = torch.cat([angle, angle], -1)
    expected = apply_rotary_pos_emb(
        torch.tensor(q), torch.tensor(k), angle.cos(), angle.sin(), unsqueeze_dim=2
    )
    for x, y in zip((q, k), expected, strict=True):
        np.testing.assert_allclose(rope.rotate(jnp.asarray(x), cos, sin), y.numpy(), atol=1e-4)


def test_unknown_scaling_is_refused():
    with pytest.raises(ConfigError, match=r"rope_scaling.*'ntk'.*yarn"):
        rope.frequencies(8, 1e4, RopeScaling("ntk"))
