"""Chains of tokens along tubes, in arrays of static length: order, successors, runs, their means.

A stable sort by tube makes every chain contiguous, and with it every run of merged tokens:

    token        0   1   2   3   4   5
    tube         a   b   a   b   a   b
    successor    2   3   4   5   -   -      the next token of the same tube
    order        0   2   4   1   3   5      the tokens sorted by tube: a a a b b b
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from elva_jax.utils.arrays import AnyArray
from elva_jax.video.layout import TokenLayout


def sort_by_tube(
    tube: Int[AnyArray, " S"], mergeable: Bool[Array, " S"]
) -> tuple[Int32[Array, " S"], Int32[Array, " S"]]:
    """The tubes in increasing order, then all that never merges; and the token at each place."""
    key_S = jnp.where(mergeable, tube, jnp.iinfo(jnp.int32).max)
    index_S = jnp.arange(tube.shape[0], dtype=jnp.int32)
    tube_S, order_S = jax.lax.sort((key_S, index_S), num_keys=1, is_stable=True)
    return tube_S, order_S


def unsort(order: Int32[Array, " S"], values: Int32[Array, " S"]) -> Int32[Array, " S"]:
    """The inverse of values[order]; `order` is a permutation."""
    return jnp.zeros_like(values).at[order].set(values, unique_indices=True)


def successors(
    tube: Int32[Array, " S"], order: Int32[Array, " S"], mergeable: Bool[Array, " S"]
) -> Int32[Array, " S"]:
    """The next token of the same tube, S where there is none."""
    length = tube.shape[0]
    same_S = (tube == jnp.roll(tube, -1)) & mergeable[order]
    same_S = same_S & (jnp.arange(length) < length - 1)
    return unsort(order, jnp.where(same_S, jnp.roll(order, -1), length))


def last_of_run(order: Int32[Array, " S"], merged: Bool[Array, " S"]) -> Int32[Array, " S"]:
    """The last member of every token's run; the token itself where it is alone."""
    length = order.shape[0]
    place_S = jnp.arange(length, dtype=jnp.int32)
    # In tube order a run is contiguous: it ends at the next token that does not merge.
    end_S = jax.lax.cummin(jnp.where(merged[order], length - 1, place_S), reverse=True)
    return unsort(order, order[end_S])


def first_of_run(order: Int32[Array, " S"], merged: Bool[Array, " S"]) -> Int32[Array, " S"]:
    """The first member of every token's run; the token itself where it is alone."""
    place_S = jnp.arange(order.shape[0], dtype=jnp.int32)
    # In tube order a run begins after a token that does not merge.
    joins_S = jnp.roll(merged[order], 1) & (place_S > 0)
    return unsort(order, order[jax.lax.cummax(jnp.where(joins_S, 0, place_S))])


def place_in_group(values: Int32[Array, " S"]) -> Int32[Array, " S"]:
    """How many equal entries stand before each one of a sorted array."""
    index_S = jnp.arange(values.shape[0], dtype=jnp.int32)
    first_S = (values != jnp.roll(values, 1)) | (index_S == 0)
    return index_S - jax.lax.cummax(jnp.where(first_S, index_S, 0))


def weighted_means(
    x: Float[AnyArray, "S D"],
    size: Float32[AnyArray, " S"],
    survivor: Int32[Array, " S"],
    capacity: int,
) -> tuple[Float[Array, "C D"], Float32[Array, " C"]]:
    """Size-weighted means and sizes of the tokens that share a survivor; C and above is dropped."""

    def total(values, dtype):
        zeros = jnp.zeros((capacity, *values.shape[1:]), dtype)
        return zeros.at[survivor].add(values, mode="drop")

    size_C = total(size, jnp.float32)
    alone_C = total(jnp.ones_like(survivor), jnp.int32) == 1
    place_S = jnp.minimum(survivor, capacity - 1)
    total_S = size_C[place_S]
    # A token alone has weight exactly 1, so that its features come out bit for bit.
    weight_S = jnp.where(
        alone_C[place_S] | (total_S == 0), 1.0, size / jnp.where(total_S == 0, 1.0, total_S)
    )
    x_CxD = total(x.astype(jnp.float32) * weight_S[:, None], jnp.float32)
    return x_CxD.astype(x.dtype), size_C


def compact(
    layout: TokenLayout, kept: Bool[Array, " S"], index: Int32[Array, " S"], capacity: int
) -> TokenLayout:
    """The kept tokens' fields [C], then padding."""
    length = kept.shape[0]
    token_S = jnp.arange(length, dtype=jnp.int32)
    # What is not kept gets places beyond the end, all different, as unique_indices promises.
    place_S = jnp.where(kept, index, capacity + token_S)
    source_C = jnp.full(capacity, length, jnp.int32)
    source_C = source_C.at[place_S].set(token_S, mode="drop", unique_indices=True)
    return TokenLayout(
        *(
            jnp.take(field, source_C, axis=0, mode="fill", fill_value=fill)
            for field, fill in zip(layout, TokenLayout.pad_values(), strict=True)
        )
    )
