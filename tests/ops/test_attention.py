"""Attention against PyTorch's with an explicit mask."""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from elva_jax.errors import ConfigError
from elva_jax.ops import attention
from elva_jax.ops.attention import cudnn


def random_inputs(batch, length, heads, kv_heads, width, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [
        (batch, length, heads, width),
        (batch, length, kv_heads, width),
        (batch, length, kv_heads, width),
    ]
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def reference(q, k, v, mask):
    """PyTorch's attention on [B, S, heads, width], with float64 inside."""
    q, k, v = (torch.tensor(x, dtype=torch.float64).transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.tensor(mask)[:, None], enable_gqa=True
    )
    return out.transpose(1, 2).numpy()


SEGMENTS = {
    "one": lambda s: np.ones(s, int),
    "three and padding": lambda s: np.repeat(
        [1, 2, 3, 0], [s // 2, s // 8, s // 4, s - s // 2 - s // 8 - s // 4]
    ),
    "padding alone": lambda s: np.zeros(s, int),
}


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads"), [(9, 4, 2), (64, 3, 3), (150, 6, 1), (1100, 2, 1)]
)
@pytest.mark.parametrize("kind", list(SEGMENTS))
def test_packed_attention_equals_pytorch(kind, length, heads, kv_heads):
    q, k, v = random_inputs(2, length, heads, kv_heads, 8)
    segment = np.stack([SEGMENTS[kind](length), SEGMENTS["one"](length)])
    mask = (segment[:, :, None] == segment[:, None]) & np.tril(np.ones((length, length), bool))
    out = jax.jit(attention.packed_attention)(q, k, v, segment)
    np.testing.assert_allclose(out, reference(q, k, v, mask), atol=2e-6)


@pytest.mark.parametrize("length", [9, 128, 300, 1025, 1536])
def test_a_single_example_with_padding_equals_pytorch(length):
    """The output at padding is meaningless, but finite."""
    q, k, v = random_inputs(2, length, 6, 2, 8)
    segment = np.ones((2, length), int)
    segment[1, length // 2 :] = 0
    mask = np.tril(np.ones((2, length, length), bool))
    out = np.asarray(jax.jit(partial(attention.packed_attention, single=True))(q, k, v, segment))
    expected = reference(q, k, v, mask)
    np.testing.assert_allclose(out[segment > 0], expected[segment > 0], atol=2e-6)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("length", [70, 1030])
def test_gradients_equal_pytorch(length):
    q, k, v = random_inputs(1, length, 2, 1, 4)
    segment = SEGMENTS["three and padding"](length)[None]
    mask = (segment[:, :, None] == segment[:, None]) & np.tril(np.ones((length, length), bool))
    tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (q, k, v)]
    tq, tk, tv = (x.transpose(1, 2) for x in tensors)
    torch.nn.functional.scaled_dot_product_attention(
        tq, tk, tv, torch.tensor(mask)[:, None], enable_gqa=True
    ).pow(2).sum().backward()
    got = jax.jit(
        jax.grad(
            lambda *x: jnp.sum(attention.packed_attention(*x, segment) ** 2), argnums=(0, 1, 2)
        )
    )(q, k, v)
    for x, y in zip(got, tensors, strict=True):
        np.testing.assert_allclose(x, y.grad.numpy(), atol=2e-5)


@pytest.mark.parametrize("length", [9, 1025, 1100])
def test_full_attention_equals_pytorch(length):
    q, k, v = random_inputs(2, length, 2, 2, 4)
    out = jax.jit(cudnn.full_attention)(q, k, v)
    everything = np.ones((2, length, length), bool)
    np.testing.assert_allclose(out, reference(q, k, v, everything), atol=2e-6)


def test_full_attention_never_holds_all_scores():
    """Forward and backward, by the compiler's own account."""
    length, heads = 2048, 4
    shape = jax.ShapeDtypeStruct((1, length, heads, 8), jnp.float32)
    scores = heads * length**2 * 4

    def loss(attend, *x):
        return jnp.sum(attend(*x) ** 2)

    def temporary(function):
        program = jax.jit(function).lower(shape, shape, shape).compile()
        return program.memory_analysis().temp_size_in_bytes

    # A block is an eighth of the scores; it exists with its softmax, and twice as much backward.
    assert temporary(cudnn.full_attention) < 0.3 * scores
    assert temporary(jax.grad(partial(loss, cudnn.full_attention), (0, 1, 2))) < 0.6 * scores
    assert temporary(jax.nn.dot_product_attention) >= scores


def test_large_scores_stay_finite():
    q, k, v = random_inputs(1, 12, 2, 2, 4)

    def total(q):
        return jnp.sum(attention.packed_attention(q, 1e4 * k, v, np.zeros((1, 12), int)))

    out, grad = jax.jit(jax.value_and_grad(total))(1e4 * q)
    assert np.isfinite(out)
    assert np.isfinite(grad).all()


def test_cudnn_is_refused_where_it_cannot_run():
    q, k, v = random_inputs(1, 4, 2, 2, 8)
    with pytest.raises(ConfigError, match=r"model\.attention: cudnn needs .*use auto or xla"):
        attention.packed_attention(q, k, v, np.ones((1, 4), int), implementation="cudnn")
    with pytest.raises(ConfigError, match="'flash' is unknown"):
        attention.packed_attention(q, k, v, np.ones((1, 4), int), implementation="flash")


def test_the_choice_says_why():
    assert (
        str(attention.choose_implementation(24, "float32", "auto"))
        == "xla (cudnn needs a GPU, not cpu)"
    )
    assert (
        str(attention.choose_implementation(24, "float32", "xla"))
        == "xla (as model.attention says)"
    )


def test_cudnn_takes_whole_sequences_alone(monkeypatch):
    monkeypatch.setattr(cudnn, "obstacle", lambda *_: "")
    assert attention.choose_implementation(64, "bfloat16", "auto").name == "cudnn"
    assert (
        str(attention.choose_implementation(64, "bfloat16", "auto", 2))
        == "xla (cudnn needs whole sequences, which mesh.context = 2 splits)"
    )
    with pytest.raises(
        ConfigError,
        match=r"cudnn needs whole sequences, which mesh\.context = 2 splits; use auto or xla",
    ):
        attention.choose_implementation(64, "bfloat16", "cudnn", 2)


@pytest.mark.parametrize(
    ("single", "call"), [(True, "__cudnn$fmhaSoftmax"), (False, "__cudnn$fmhaScaleBiasSoftmax")]
)
def test_cudnn_lowers_for_cuda_forward_and_backward(monkeypatch, single, call):
    """The program for a GPU, lowered without one, holds cuDNN's fused kernels.

    A single example needs no mask, packed ones may have one. JAX asks for the version of an
    installed cuDNN before it lowers, and we ask for a GPU; only those two questions are answered
    here.
    """
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(cudnn, "obstacle", lambda *_: "")
    q, kv = (jax.ShapeDtypeStruct((2, 256, heads, 128), jnp.bfloat16) for heads in (12, 2))
    segment = jax.ShapeDtypeStruct((2, 256), jnp.int32)

    def loss(q, k, v, segment):
        return jnp.sum(
            attention.packed_attention(q, k, v, segment, single=single).astype(jnp.float32)
        )

    kernels = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax")
    allowed = [
        jax.export.DisabledSafetyCheck.custom_call(kernel + suffix)
        for kernel in kernels
        for suffix in ("", "Backward")
    ]
    text = jax.export.export(jax.jit(jax.grad(loss)), platforms=["cuda"], disabled_checks=allowed)(
        q, kv, kv, segment
    ).mlir_module()
    assert f"@{call}(" in text
    assert f"@{call}Backward(" in text
