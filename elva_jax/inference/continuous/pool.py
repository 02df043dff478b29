"""Prefixes on the device: the pool that the running batch reads has P of them, of one class."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Int

from elva_jax.config.schema import ModelConfig
from elva_jax.inference.continuous.grid import Class
from elva_jax.inference.kv_cache import PrefixCache, split_heads
from elva_jax.utils.arrays import AnyArray

Layers = tuple[PrefixCache, ...]


@partial(jax.jit, static_argnums=(0, 1, 2))
def empty_pool(config: ModelConfig, rows: int, lengths: Class) -> Layers:
    """P = `rows` unused prefixes."""

    def layer(length: int) -> PrefixCache:
        shape = (rows, config.num_kv_heads, length, config.head_dim)
        zeros = [split_heads(jnp.zeros(shape, config.dtype)) for _ in range(2)]
        return PrefixCache(zeros[0], zeros[1], jnp.zeros((rows, length), bool))

    return tuple(map(layer, lengths))


@partial(jax.jit, donate_argnums=0)
def insert(pool: Layers, prefix: Layers, row: Int[AnyArray, ""]) -> Layers:
    """Copies a prefix, which may be shorter, into a row of the pool."""

    def one(old: PrefixCache, new: PrefixCache) -> PrefixCache:
        more = old.valid.shape[1] - new.valid.shape[1]
        valid = jnp.pad(new.valid, [(0, 0), (0, more)])
        k, v = (
            split_heads(jax.lax.dynamic_update_slice_in_dim(a, b.astype(a.dtype), length, axis=0))
            for a, b, length in ((old.k, new.k, row), (old.v, new.v, row))
        )
        return PrefixCache(k, v, jax.lax.dynamic_update_slice_in_dim(old.valid, valid, row, axis=0))

    return tuple(one(old, new) for old, new in zip(pool, prefix, strict=True))


@jax.jit
def stack(prefixes: tuple[Layers, ...]) -> Layers:
    """Prefixes of one class as a batch."""

    def one(*rows: PrefixCache) -> PrefixCache:
        k, v, valid = map(jnp.concatenate, zip(*rows, strict=True))
        return PrefixCache(split_heads(k), split_heads(v), valid)

    return tuple(one(*rows) for rows in zip(*prefixes, strict=True))


@partial(jax.jit, static_argnums=1)
def pad_layer(layer: PrefixCache, length: int) -> PrefixCache:
    """A prefix's keys and values in one layer, padded on the right."""
    more = length - layer.valid.shape[1]
    k, v = (split_heads(jnp.pad(x, [(0, 0), (0, 0), (0, more), (0, 0)])) for x in layer[:2])
    return PrefixCache(k, v, jnp.pad(layer.valid, [(0, 0), (0, more)]))


@jax.jit
def take_row(layers: Layers, row: Int[AnyArray, ""]) -> Layers:
    """One prefix of a batch."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1, axis=0), layers)
