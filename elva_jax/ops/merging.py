"""Hierarchical token merging under static shapes (paper, section 3.2): pure, differentiable through the means, linear memory.

A token joins its successor at the same grid position (its tube) where the two are similar. A run of such tokens becomes one token, their
size-weighted mean, that stands at the run's last member: a causal decoder may then use the mean without looking ahead.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp

from elva_jax.errors import ConfigError
from elva_jax.video.layout import Kind, TokenLayout

POLICIES = ("threshold", "ratio", "both", "pool")
EQUAL = (
    2.0**-18
)  # step to which cosines are rounded where they are ranked: rounding errors must not order the pairs of a still picture


@dataclasses.dataclass(frozen=True)
class MergeLayer:
    """One merging layer: it stands before decoder layer `before_layer`."""

    before_layer: int
    policy: str = "threshold"  # threshold | ratio | both (threshold first, then down to the ratio) | pool (runs cut by count)
    threshold: float = 0.6  # cosine above which neighbours merge
    ratio: float = 0.5  # share of the entering mergeable tokens that stays: of each example, under pool of each tube
    bucket: int | None = (
        None  # static token count behind this layer in training; None: no compaction
    )


@dataclasses.dataclass(frozen=True)
class Merging:
    """Where and how a decoder merges: its merging layers by increasing `before_layer`; none of them: it never merges."""

    layers: tuple[MergeLayer, ...] = ()
    merge_lines: bool = False  # whether <LINE> tokens merge along their own row index too


NO_MERGING = Merging()


class MergeStats(NamedTuple):
    """Counts of one sequence (one packed row), int32 scalars; [B] for a batch of them."""

    entering: jax.Array  # mergeable tokens that came in
    kept: jax.Array  # mergeable tokens that go out
    forced: jax.Array  # merges that only the bucket asked for
    tokens: jax.Array  # all tokens that came in, without PAD
    survivors: jax.Array  # all tokens that go out, without PAD
    overflow: jax.Array  # tokens that do not fit although all that may merge has; must be 0
    patches: jax.Array  # PATCH tokens that go out
    visual: jax.Array  # FRAME, PATCH and LINE tokens that go out
    padding: jax.Array  # places of the bucket that stay empty


class Merged(NamedTuple):
    """What a merging layer hands on; C is the bucket."""

    x: jax.Array  # [C, D] features, survivors in front in their old order, zeros behind
    layout: TokenLayout  # [C] the survivors' own fields, PAD behind
    size: jax.Array  # [C] float32, how many original tokens each stands for; 0 behind
    survivor: jax.Array  # [S] int32, where each old token is now; -1 for PAD
    stats: MergeStats


def merge(
    x_SxD: jax.Array,
    layout: TokenLayout,
    size_S: jax.Array,
    rule: MergeLayer,
    *,
    merge_lines: bool = False,
    bucket: int | None = None,
) -> Merged:
    """Merges the similar neighbours of one (unbatched) sequence and compacts the survivors to the front.

    Policies, with s the cosine between a token and the next one of its tube:
      threshold: every pair with s > rule.threshold merges.
      ratio: in every packed example the most similar pairs merge until at most ceil(rule.ratio * n) of its n entering mergeable tokens
        are left (or one a tube, where that is more).
      both: the threshold first, then more of the most similar pairs until the ratio is met.
      pool: runs are cut by count, whatever the content: token i (from 0) of a tube ends one iff floor((i + 1) r) > floor(i r), r being
        rule.ratio, and the tube's last token always does. Before layer 0 this is temporal average pooling (paper, Figure 3).
    Similarities that are equal to five decimals merge in order of position. All budgets count per packed example, so packing never changes
    a result. Only a bucket that does not hold the survivors does: then the most similar of the remaining pairs of the whole row merge too,
    counted in `stats.forced`.

    Tokens are never dropped while the bucket holds text, specials and one token a tube; one that holds what the ratios leave at most
    (`video.layout.count`) never forces a merge. Where even the former does not fit, `stats.overflow` counts the tokens without room, their
    `survivor` is -1, and all of `x` is NaN so that the mistake cannot pass unseen.

    Args:
      x_SxD: features, any float type; similarities and means are computed in float32.
      layout: integer fields of length S; tubes and segments are those of the packed row.
      size_S: float32, how many original tokens each stands for (1 before the first merge).
      rule: policy, threshold and ratio; its `bucket` is not read here.
      merge_lines: whether `<LINE>` tokens merge along their own row index too; `<FRAME>` and text never do.
      bucket: static length C of the result; None: S.

    Returns:
      Merged. A token that merges with nothing keeps its features bit for bit.

    Raises:
      ConfigError: an unknown policy, or a bucket below 1.
    """
    if rule.policy not in POLICIES:
        raise ConfigError(
            f"merge policy {rule.policy!r} is unknown; use one of {', '.join(POLICIES)}"
        )
    if bucket is not None and bucket < 1:
        raise ConfigError(
            f"a merge bucket of {bucket} holds nothing; use at least 1, or None for no compaction"
        )
    length = x_SxD.shape[0]
    capacity = length if bucket is None else bucket

    layout = TokenLayout(*(jnp.asarray(field) for field in layout))
    used_S = layout.kind != Kind.PAD
    mergeable_S = is_mergeable(layout, merge_lines)
    tube_order = _sort_by_tube(layout.tube, mergeable_S)
    next_S = _successor(tube_order, mergeable_S)
    candidate_S = next_S < length
    similarity_S = similarity(x_SxD, jnp.minimum(next_S, length - 1))

    if rule.policy == "pool":
        merged_S = candidate_S & ~_ends_by_count(tube_order, rule.ratio)
    else:
        merged_S = _choose(similarity_S, candidate_S, mergeable_S, layout.segment, rule)
    forced = jnp.zeros((), jnp.int32)
    if capacity < length:
        free_S = candidate_S & ~merged_S
        excess = _count(used_S) - _count(merged_S) - capacity
        forced_S = free_S & (_rank(similarity_S, jnp.where(free_S, 0, 1)) < excess)
        merged_S, forced = merged_S | forced_S, _count(forced_S)

    kept_S = used_S & ~merged_S
    index_S = jnp.cumsum(kept_S.astype(jnp.int32)) - 1
    last_S = _last_of_run(tube_order.order_S, merged_S)
    survivor_S = jnp.where(used_S, index_S[last_S], capacity)
    survivors = _count(kept_S)
    overflow = jnp.maximum(survivors - capacity, 0)

    x_CxD, size_C = _means(x_SxD, size_S.astype(jnp.float32), survivor_S, capacity)
    x_CxD = jnp.where(overflow > 0, jnp.full_like(x_CxD, jnp.nan), x_CxD)
    merged_layout = _compact(layout, kept_S, index_S, capacity)
    stats = MergeStats(
        entering=_count(mergeable_S),
        kept=_count(mergeable_S & kept_S),
        forced=forced,
        tokens=_count(used_S),
        survivors=survivors - overflow,
        overflow=overflow,
        patches=_count(merged_layout.kind == Kind.PATCH),
        visual=_count((merged_layout.kind != Kind.PAD) & (merged_layout.kind != Kind.TEXT)),
        padding=_count(merged_layout.kind == Kind.PAD),
    )
    survivor_S = jnp.where(survivor_S < capacity, survivor_S, -1)
    return Merged(x_CxD, merged_layout, size_C, survivor_S, stats)


def is_mergeable(layout: TokenLayout, merge_lines: bool = False) -> jax.Array:
    """bool, of the layout's shape: the tokens that may merge."""
    kinds = layout.kind == Kind.PATCH
    if merge_lines:
        kinds = kinds | (layout.kind == Kind.LINE)
    return kinds & (layout.tube >= 0)


def compose(first_S: jax.Array, second_C: jax.Array) -> jax.Array:
    """The survivor map of two merging layers in a row: old token -> place behind the second, -1 where either has none."""
    return jnp.where(first_S >= 0, second_C[jnp.maximum(first_S, 0)], -1)


def similarity(x_SxD: jax.Array, next_S: jax.Array) -> jax.Array:
    """float32 [S]: cosine between every token and token next_S, without gradient; 0 where either is the zero vector."""
    x_SxD = jax.lax.stop_gradient(x_SxD).astype(jnp.float32)
    norm_S = jnp.sqrt(jnp.sum(jnp.square(x_SxD), axis=-1))
    dot_S = jnp.sum(x_SxD * x_SxD[next_S], axis=-1)
    scale_S = norm_S * norm_S[next_S]
    return jnp.where(scale_S == 0, 0.0, dot_S / jnp.where(scale_S == 0, 1.0, scale_S))


def _count(mask: jax.Array) -> jax.Array:
    return jnp.sum(mask, dtype=jnp.int32)


class _TubeOrder(NamedTuple):
    tube_S: jax.Array  # tubes in increasing order, what never merges last
    order_S: jax.Array  # the token at each of these places; within a tube in the sequence's order


def _sort_by_tube(tube_S: jax.Array, mergeable_S: jax.Array) -> _TubeOrder:
    key_S = jnp.where(mergeable_S, tube_S, jnp.iinfo(jnp.int32).max)
    index_S = jnp.arange(tube_S.shape[0], dtype=jnp.int32)
    return _TubeOrder(*jax.lax.sort((key_S, index_S), num_keys=1, is_stable=True))


def _successor(by_tube: _TubeOrder, mergeable_S: jax.Array) -> jax.Array:
    """int32 [S]: the next token of the same tube, S where there is none."""
    tube_S, order_S = by_tube
    length = tube_S.shape[0]
    same_S = (
        (tube_S == jnp.roll(tube_S, -1)) & mergeable_S[order_S] & (jnp.arange(length) < length - 1)
    )
    return (
        jnp.zeros(length, jnp.int32)
        .at[order_S]
        .set(jnp.where(same_S, jnp.roll(order_S, -1), length), unique_indices=True)
    )


def _last_of_run(order_S: jax.Array, merged_S: jax.Array) -> jax.Array:
    """int32 [S]: the last member of every token's run, itself where it is alone."""
    length = order_S.shape[0]
    place_S = jnp.arange(length, dtype=jnp.int32)
    end_S = jax.lax.cummin(jnp.where(merged_S[order_S], length - 1, place_S), reverse=True)
    return jnp.zeros(length, jnp.int32).at[order_S].set(order_S[end_S], unique_indices=True)


def _rank(similarity_S: jax.Array, group_S: jax.Array) -> jax.Array:
    """int32 [S]: how many tokens of the same group are more similar, or as similar and earlier."""
    length = similarity_S.shape[0]
    index_S = jnp.arange(length, dtype=jnp.int32)
    # NaN compares false everywhere: such a pair merges last, after every real one.
    key_S = jnp.where(jnp.isnan(similarity_S), jnp.inf, -jnp.round(similarity_S / EQUAL))
    sorted_S, _, order_S = jax.lax.sort(
        (group_S.astype(jnp.int32), key_S, index_S), num_keys=2, is_stable=True
    )
    return (
        jnp.zeros(length, jnp.int32).at[order_S].set(_place_in_group(sorted_S), unique_indices=True)
    )


def _place_in_group(sorted_S: jax.Array) -> jax.Array:
    """int32 [S]: how many equal entries stand before each one of a sorted array."""
    index_S = jnp.arange(sorted_S.shape[0], dtype=jnp.int32)
    first_S = (sorted_S != jnp.roll(sorted_S, 1)) | (index_S == 0)
    return index_S - jax.lax.cummax(jnp.where(first_S, index_S, 0))


def _ends_by_count(by_tube: _TubeOrder, ratio: float) -> jax.Array:
    """bool [S]: the tokens that end a run of the pool policy by their place in their tube alone."""
    exact = _exact(ratio)
    place_S = _place_in_group(by_tube.tube_S)
    ends_S = (
        place_S + 1
    ) * exact.numerator // exact.denominator > place_S * exact.numerator // exact.denominator
    return jnp.zeros_like(ends_S).at[by_tube.order_S].set(ends_S, unique_indices=True)


def _exact(ratio: float) -> Fraction:
    """A ratio as it was written, in decimals: then 0.1 of 30 tokens is 3, and its ceiling not 4."""
    return Fraction(ratio).limit_denominator(10_000)


def _choose(
    similarity_S: jax.Array,
    candidate_S: jax.Array,
    mergeable_S: jax.Array,
    segment_S: jax.Array,
    rule: MergeLayer,
) -> jax.Array:
    """bool [S]: the tokens that merge into their successor by the rule alone, whatever the bucket."""
    above_S = candidate_S & (similarity_S > rule.threshold)
    if rule.policy == "threshold":
        return above_S
    length = similarity_S.shape[0]
    ratio = _exact(rule.ratio)

    def per_segment(mask_S):
        return jax.ops.segment_sum(mask_S.astype(jnp.int32), segment_S, num_segments=length + 1)

    entering_G = per_segment(mergeable_S)
    target_G = -((-entering_G * ratio.numerator) // ratio.denominator)
    quota_G = entering_G - target_G
    if rule.policy == "both":
        quota_G = jnp.maximum(quota_G, per_segment(above_S))
        similarity_S = (
            similarity_S + 4.0 * above_S
        )  # cosines span 2: what is above the threshold comes first
    group_S = jnp.where(candidate_S, segment_S, length + 1)
    return candidate_S & (_rank(similarity_S, group_S) < quota_G[segment_S])


def _means(
    x_SxD: jax.Array, size_S: jax.Array, survivor_S: jax.Array, capacity: int
) -> tuple[jax.Array, jax.Array]:
    """Size-weighted means [C, D] and sizes [C] of the tokens that share a survivor; survivor_S >= C goes nowhere."""

    def total(values, dtype):
        return (
            jnp.zeros((capacity, *values.shape[1:]), dtype).at[survivor_S].add(values, mode="drop")
        )

    size_C = total(size_S, jnp.float32)
    alone_C = total(jnp.ones_like(survivor_S), jnp.int32) == 1
    place_S = jnp.minimum(survivor_S, capacity - 1)
    total_S = size_C[place_S]
    # A token alone has weight exactly 1, so that its features come out bit for bit.
    weight_S = jnp.where(
        alone_C[place_S] | (total_S == 0), 1.0, size_S / jnp.where(total_S == 0, 1.0, total_S)
    )
    x_CxD = total(x_SxD.astype(jnp.float32) * weight_S[:, None], jnp.float32)
    return x_CxD.astype(x_SxD.dtype), size_C


def _compact(
    layout: TokenLayout, kept_S: jax.Array, index_S: jax.Array, capacity: int
) -> TokenLayout:
    """The kept tokens' fields at the front of length C, PAD behind."""
    length = kept_S.shape[0]
    source_C = jnp.full(capacity, length, jnp.int32)
    place_S = jnp.where(
        kept_S, index_S, capacity + jnp.arange(length, dtype=jnp.int32)
    )  # distinct, for unique_indices
    source_C = source_C.at[place_S].set(
        jnp.arange(length, dtype=jnp.int32), mode="drop", unique_indices=True
    )
    fill = dict.fromkeys(("patch_index", "frame", "row", "tube", "cell"), -1)
    fields = {
        name: jnp.take(field, source_C, axis=0, mode="fill", fill_value=fill.get(name, 0))
        for name, field in layout._asdict().items()
    }
    return TokenLayout(**fields)
