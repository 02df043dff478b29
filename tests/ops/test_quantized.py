"""Products with quantized matrices against NumPy, whole and in blocks; rows of tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from elva_jax.ops import quantized


def matrix(shape, axis, dtype, group=None, scale_dtype=jnp.float32):
    """A random matrix, and what its quantized one stands for."""
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tiles = {axis: group} if group else {}
    q = qwix.quantize(
        jnp.asarray(values),
        dtype,
        channelwise_axes=(1 - axis,),
        tiled_axes=tiles,
        scale_dtype=scale_dtype,
    )
    repeats = values.shape[axis] // q.scale.shape[axis]
    scale = np.repeat(np.asarray(q.scale, np.float32), repeats, axis)
    return q, np.asarray(q.qvalue, np.float32) * scale


CASES = {
    "int8, a scale per column": ((96, 40), 0, jnp.int8, None),
    "int4 in groups": ((96, 40), 0, jnp.int4, 32),
    "a table": ((40, 96), 1, jnp.int8, None),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("block", [2**21, 700])
def test_products_equal_numpy(name, block, monkeypatch):
    shape, axis, dtype, group = CASES[name]
    q, dense = matrix(shape, axis, dtype, group)
    x = np.random.default_rng(1).normal(size=(2, 3, 96)).astype(np.float32)
    monkeypatch.setattr(quantized, "BLOCK_VALUES", block)
    y = jax.jit(lambda x, q: quantized.product(x, q, axis))(x, q)
    expected = x @ (dense if axis == 0 else dense.T)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)
    half = jnp.asarray(x, jnp.bfloat16)
    rounded, logits = (quantized.product(half, q, axis, kind) for kind in (None, jnp.float32))
    assert (rounded.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(np.asarray(rounded, np.float32), expected, rtol=0.05, atol=0.5)


def test_rows_of_a_table():
    q, dense = matrix((40, 96), 1, jnp.int8)
    index = np.array([[3, 0], [39, 3]])
    rows = quantized.rows(q, index, jnp.bfloat16)
    assert rows.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(rows, np.float32), dense[index], rtol=2e-2)


@pytest.mark.parametrize(("dtype", "group"), [(jnp.int8, None), (jnp.int4, 64)])
def test_a_decoding_loop_never_holds_widened_weights(dtype, group):
    """Beside the weights there are blocks, and on CPUs, which read int4 as int8, these."""
    size, count = 4096, 4
    q, _ = matrix((size, size), 0, dtype, group, jnp.bfloat16)

    def decode(x, matrices):
        def step(loop):
            done, x = loop
            for each in matrices:
                x = quantized.product(x, each)
            return done + 1, x

        return jax.lax.while_loop(lambda loop: loop[0] < 5, step, (0, x))

    x = jnp.ones((1, size), jnp.bfloat16)
    memory = jax.jit(decode).lower(x, [q] * count).compile().memory_analysis()
    bits = 8 if dtype == jnp.int8 else 4
    assert memory.argument_size_in_bytes < count * size * size * (bits + 0.5) / 8
    # The CPU widens in float32, a block at a time; in bfloat16 the weights are 2 bytes a value.
    read = size * size if dtype == jnp.int4 else 0
    assert memory.temp_size_in_bytes < count * (read + 4 * quantized.BLOCK_VALUES) + 2**20
