"""Hierarchical token merging under static shapes (paper, section 3.2).

With f_i the token of frame i at one grid position (its tube), and f_(i+1) its successor there:

    s_i = cos(f_i, f_(i+1))
    M_i = 0 where the policy merges the pair, such as s_i > tau;  else 1: the token stays

A run of merged tokens, with the token that ends it, becomes their mean, weighted by the number n_i
of original tokens in each:  f = sum(n_i f_i) / sum(n_i).

    frame       1       2       3       4       5
    tube       f_1 --- f_2 --- f_3     f_4 --- f_5         tau = 0.6
    s_i            0.9     0.8     0.2     0.7
    becomes           (f_1 + f_2 + f_3) / 3    (f_4 + f_5) / 2
                                 at 3             at 5

The mean stands at the run's last member and keeps that member's position: a causal decoder may use
it without looking ahead. Gradients flow through the means, not through the choice of the pairs.

With `survivor = "first"`, as in FrameFusion (arXiv 2501.01986), it stands at the first member, here
at 1 and at 4. Attention stays causal by index, but such a mean has content of later frames, so that
tokens of earlier frames look ahead. This stays within a clip: text before it sees none of it, and
text after it sees all of it anyway.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from elva_jax.errors import ConfigError
from elva_jax.ops.similarity import similarity
from elva_jax.ops.tube_runs import (
    compact,
    first_of_run,
    last_of_run,
    place_in_group,
    sort_by_tube,
    successors,
    unsort,
    weighted_means,
)
from elva_jax.utils import numbers
from elva_jax.utils.arrays import AnyArray
from elva_jax.video.layout import Kind, TokenLayout

# Cosines are rounded to this step where they are ranked. Otherwise rounding errors, which differ
# between machines, would order the pairs of a still picture.
SIMILARITY_STEP = 2.0**-18


class Neighbors(NamedTuple):
    """The input of a merge policy: every token of a packed sequence, and its successor.

    The successor of a token is the next token of its tube.
    """

    similarity: Float32[Array, " S"]  # cosine with the successor; meaningless without one
    has_successor: Bool[Array, " S"]
    mergeable: Bool[Array, " S"]  # patches (and <LINE> where asked for), never text or <FRAME>
    segment: Int[AnyArray, " S"]  # which packed example, from 1; 0 is padding
    place: Int32[Array, " S"]  # the token's place in its tube, from 0


# Which tokens merge into their successor, bool [S]; whatever it says of others is ignored.
Policy = Callable[[Neighbors, "MergeLayer"], jax.Array]
Survivor = Literal["last", "first"]  # the member of a run at which its mean stands


@dataclasses.dataclass(frozen=True)
class MergeLayer:
    """One merging layer, in front of decoder layer `before_layer`.

    `policy` is a name in `POLICIES`, or a function of one's own. It must be hashable and pure: the
    layer is part of a compiled program's key.

    Example:
      >>> import elva_jax
      >>> def every_other(neighbors, rule):
      ...     return neighbors.place % 2 == 0
      >>> elva_jax.MergeLayer(before_layer=2, policy=every_other).before_layer
      2
    """

    before_layer: int
    policy: str | Policy = "threshold"  # threshold | ratio | both | pool, or a function
    threshold: float = 0.6  # cosine above which neighbors merge
    ratio: float = 0.5  # share of the entering mergeable tokens that stays, see `merge`

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        numbers.whole(0).check("before_layer", self.before_layer)
        numbers.real(-numbers.LARGEST_FLOAT).check("threshold", self.threshold)
        numbers.real(0, 1).check("ratio", self.ratio)


@dataclasses.dataclass(frozen=True)
class Merging:
    """Where and how a decoder merges: its merging layers by increasing `before_layer`.

    Example:
      >>> from elva_jax import MergeLayer, Merging
      >>> layers = (MergeLayer(2, threshold=0.7), MergeLayer(8, "both", ratio=0.5))
      >>> len(Merging(layers).layers)
      2
    """

    layers: tuple[MergeLayer, ...] = ()
    merge_lines: bool = False  # whether <LINE> tokens merge along their own row index too
    survivor: Survivor = "last"


NO_MERGING = Merging()


class MergeStats(NamedTuple):
    """Counts of one packed sequence, int32 scalars; [B] for a batch of them."""

    entering: Int32[Array, "*B"]  # mergeable tokens before
    kept: Int32[Array, "*B"]  # mergeable tokens after
    forced: Int32[Array, "*B"]  # merges that were made only to fit into the bucket
    tokens: Int32[Array, "*B"]  # all tokens before, without padding
    survivors: Int32[Array, "*B"]  # all tokens after, without padding
    overflow: Int32[Array, "*B"]  # tokens that do not fit although all pairs merged: must be 0
    patches: Int32[Array, "*B"]  # PATCH tokens after
    visual: Int32[Array, "*B"]  # FRAME, PATCH and LINE tokens after
    padding: Int32[Array, "*B"]  # places of the bucket that stay empty


class Merged(NamedTuple):
    """The sequence after a merging layer; C is the bucket, or S without one."""

    x: Float[Array, "C D"]  # survivors in their old order, then zeros
    layout: TokenLayout  # [C] the survivors' own fields, then padding
    size: Float32[Array, " C"]  # how many original tokens each stands for; 0 at padding
    survivor: Int32[Array, " S"]  # where each old token is now; -1 at padding
    stats: MergeStats


def merge(
    x: Float[AnyArray, "S D"],
    layout: TokenLayout,
    size: Float[AnyArray, " S"],
    rule: MergeLayer,
    *,
    merge_lines: bool = False,
    survivor: Survivor = "last",
    bucket: int | None = None,
) -> Merged:
    """Merges similar neighbors of one (unbatched) sequence and moves the survivors to the front.

    Policies, with s the cosine between a token and the next one of its tube:
      threshold: every pair with s > rule.threshold merges.
      ratio: in every packed example the most similar pairs merge until at most ceil(rule.ratio * n)
        of its n mergeable tokens are left (or one per tube, where that is more).
      both: the threshold first, then more of the most similar pairs until the ratio is met.
      pool: runs are cut by count, whatever they show: token i (from 0) of a tube ends a run where
        floor((i + 1) r) > floor(i r), with r = rule.ratio, and so does the tube's last token.
        Before layer 0 this is temporal average pooling (paper, Figure 3).
      a function: takes `Neighbors` and the rule, and returns which tokens merge into their
        successor, bool [S]; `rank_in_group` and `count_per_segment` help to write one.

    Similarities that are equal to five decimals merge in order of position. The named policies
    decide per packed example, so packing never changes a result. Only a bucket that is too small
    does: then the most similar of the remaining pairs of the whole row merge too (`stats.forced`).

    No token is ever dropped while the bucket holds text, specials and one token per tube; one that
    holds what the ratios leave at most (`video.counts.count`) never forces a merge. In a smaller
    bucket, `stats.overflow` counts the tokens that do not fit, their `survivor` is -1, and all of
    `x` is NaN, so that the mistake cannot go unnoticed.

    Args:
      x: features, of any float type; similarities and means are computed in float32.
      layout: fields [S], with the tubes and segments of the packed sequence.
      size: how many original tokens each one stands for, 1 before the first merging layer.
      rule: policy, threshold and ratio; its `before_layer` is not read here.
      merge_lines: whether `<LINE>` tokens merge along their own row index too.
      survivor: the member of a run at which its mean stands, with that member's fields.
      bucket: static length C of the result; None: S.

    Returns:
      The merged sequence. A token that merges with nothing keeps its features bit for bit.

    Raises:
      ConfigError: an unknown policy or survivor, a policy that returns no bool [S], or a bucket
        below 1.

    Example:
      Two frames of one patch, `<FRAME> patch <LINE>` each, with the same features:

      >>> import jax.numpy as jnp
      >>> from elva_jax.ops.merging import MergeLayer, merge
      >>> from elva_jax.video.layout import Clip, build_layout
      >>> layout = build_layout([Clip([(1, 1), (1, 1)])])
      >>> merged = merge(jnp.ones((6, 4)), layout, jnp.ones(6), MergeLayer(0, "threshold", 0.6))
      >>> merged.survivor.tolist()  # tokens 1 and 4, the two patches, are now token 3
      [0, 3, 1, 2, 3, 4]
      >>> merged.size.tolist()
      [1.0, 1.0, 1.0, 2.0, 1.0, 0.0]
    """
    if bucket is not None and bucket < 1:
        raise ConfigError(
            f"a merge bucket of {bucket} holds nothing; use at least 1, or None for no compaction"
        )
    length = x.shape[0]
    layout = jax.tree.map(jnp.asarray, layout)
    other_S = jnp.minimum(successor(layout, merge_lines=merge_lines), length - 1)
    score_S = similarity(x, other_S)
    chosen = choose(
        layout, score_S, rule, merge_lines=merge_lines, survivor=survivor, bucket=bucket
    )
    capacity = chosen.layout.kind.shape[0]
    place_S = jnp.where(chosen.survivor >= 0, chosen.survivor, capacity)
    x_CxD, size_C = weighted_means(x, size.astype(jnp.float32), place_S, capacity)
    x_CxD = jnp.where(chosen.stats.overflow > 0, jnp.full_like(x_CxD, jnp.nan), x_CxD)
    return Merged(x_CxD, chosen.layout, size_C, chosen.survivor, chosen.stats)


class Chosen(NamedTuple):
    """The outcome of a merging layer without the features; fields as in `Merged`."""

    layout: TokenLayout
    survivor: Int32[Array, " S"]
    stats: MergeStats


def successor(layout: TokenLayout, *, merge_lines: bool = False) -> Int32[Array, " S"]:
    """The next token of each token's tube in an unbatched layout, S where there is none."""
    mergeable_S = is_mergeable(layout, merge_lines=merge_lines)
    tube_S, order_S = sort_by_tube(layout.tube, mergeable_S)
    return successors(tube_S, order_S, mergeable_S)


def choose(
    layout: TokenLayout,
    similarity: Float32[Array, " S"],
    rule: MergeLayer,
    *,
    merge_lines: bool = False,
    survivor: Survivor = "last",
    bucket: int | None = None,
) -> Chosen:
    """The part of `merge` that needs no features but the cosine of each token and its successor."""
    policy, member_of_run = _policy(rule), _survivor(survivor)
    length = layout.kind.shape[0]
    capacity = length if bucket is None else bucket
    used_S = layout.kind != Kind.PAD
    mergeable_S = is_mergeable(layout, merge_lines=merge_lines)
    tube_S, order_S = sort_by_tube(layout.tube, mergeable_S)
    neighbors = Neighbors(
        similarity=similarity,
        has_successor=successors(tube_S, order_S, mergeable_S) < length,
        mergeable=mergeable_S,
        segment=layout.segment,
        place=unsort(order_S, place_in_group(tube_S)),
    )
    chosen_S = policy(neighbors, rule)
    if chosen_S.shape != (length,) or chosen_S.dtype != bool:
        raise ConfigError(
            f"merge policy {rule.policy}: returned {chosen_S.dtype} {list(chosen_S.shape)}; "
            f"return bool [{length}], which tokens merge into their successor"
        )
    merged_S = neighbors.has_successor & chosen_S
    forced = jnp.zeros((), jnp.int32)
    if capacity < length:
        excess = _count(used_S) - _count(merged_S) - capacity
        free_S = neighbors.has_successor & ~merged_S
        rank_S = rank_in_group(neighbors.similarity, jnp.where(free_S, 0, 1))
        forced_S = free_S & (rank_S < excess)
        merged_S, forced = merged_S | forced_S, _count(forced_S)

    stands_S = member_of_run(order_S, merged_S)
    kept_S = used_S & (stands_S == jnp.arange(length))
    index_S = jnp.cumsum(kept_S.astype(jnp.int32)) - 1
    survivor_S = jnp.where(used_S, index_S[stands_S], capacity)
    survivors = _count(kept_S)
    overflow = jnp.maximum(survivors - capacity, 0)
    merged_layout = compact(layout, kept_S, index_S, capacity)
    kind_C = merged_layout.kind
    stats = MergeStats(
        entering=_count(mergeable_S),
        kept=_count(mergeable_S & kept_S),
        forced=forced,
        tokens=_count(used_S),
        survivors=survivors - overflow,
        overflow=overflow,
        patches=_count(kind_C == Kind.PATCH),
        visual=_count((kind_C != Kind.PAD) & (kind_C != Kind.TEXT)),
        padding=_count(kind_C == Kind.PAD),
    )
    return Chosen(merged_layout, jnp.where(survivor_S < capacity, survivor_S, -1), stats)


def is_mergeable(layout: TokenLayout, *, merge_lines: bool = False) -> Bool[Array, "*S"]:
    """The tokens that may merge, in the layout's shape."""
    kinds = layout.kind == Kind.PATCH
    if merge_lines:
        kinds = kinds | (layout.kind == Kind.LINE)
    return kinds & (layout.tube >= 0)


def compose(first: Int[AnyArray, " S"], second: Int[AnyArray, " C"]) -> Int[Array, " S"]:
    """The survivor map of two merging layers in a row; -1 where either has no place for a token."""
    return jnp.where(first >= 0, second[jnp.maximum(first, 0)], -1)


def rank_in_group(similarity: Float[Array, " S"], group: Int[Array, " S"]) -> Int32[Array, " S"]:
    """How many tokens of the same group are more similar, or as similar and earlier."""
    # A NaN compares false with everything. As +inf here, its pair merges last, after all real ones.
    key_S = jnp.where(jnp.isnan(similarity), jnp.inf, -jnp.round(similarity / SIMILARITY_STEP))
    index_S = jnp.arange(similarity.shape[0], dtype=jnp.int32)
    sorted_S, _, order_S = jax.lax.sort(
        (group.astype(jnp.int32), key_S, index_S), num_keys=2, is_stable=True
    )
    return unsort(order_S, place_in_group(sorted_S))


def count_per_segment(mask: Bool[Array, " S"], segment: Int[AnyArray, " S"]) -> Int32[Array, " G"]:
    """How many tokens of each segment are marked, indexed by segment number; G = S + 1."""
    return jax.ops.segment_sum(mask.astype(jnp.int32), segment, mask.shape[0] + 1)


def _by_threshold(neighbors: Neighbors, rule: MergeLayer) -> Bool[Array, " S"]:
    return neighbors.has_successor & (neighbors.similarity > rule.threshold)


def _by_ratio(neighbors: Neighbors, rule: MergeLayer) -> Bool[Array, " S"]:
    return _most_similar_per_segment(neighbors, _quota(neighbors, rule))


def _by_threshold_then_ratio(neighbors: Neighbors, rule: MergeLayer) -> Bool[Array, " S"]:
    above_S = _by_threshold(neighbors, rule)
    above_G = count_per_segment(above_S, neighbors.segment)
    # Cosines span 2: with 4 added, the pairs above the threshold rank before all others.
    raised = neighbors._replace(similarity=neighbors.similarity + 4.0 * above_S)
    return _most_similar_per_segment(raised, jnp.maximum(_quota(neighbors, rule), above_G))


def _by_count(neighbors: Neighbors, rule: MergeLayer) -> Bool[Array, " S"]:
    """Temporal pooling: token i of a tube ends a run where floor((i + 1) r) > floor(i r)."""
    exact, place_S = _exact(rule.ratio), neighbors.place
    before_S = place_S * exact.numerator // exact.denominator
    return (place_S + 1) * exact.numerator // exact.denominator <= before_S


POLICIES: Mapping[str, Policy] = {
    "threshold": _by_threshold,
    "ratio": _by_ratio,
    "both": _by_threshold_then_ratio,
    "pool": _by_count,
}


def _policy(rule: MergeLayer) -> Policy:
    if callable(rule.policy):
        return rule.policy
    if rule.policy not in POLICIES:
        raise ConfigError(
            f"merge policy {rule.policy!r} is unknown; use one of {', '.join(POLICIES)}, "
            "or a function"
        )
    return POLICIES[rule.policy]


def _survivor(name: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    if name not in ("last", "first"):
        raise ConfigError(f"merge survivor {name!r} is unknown; use last or first")
    return last_of_run if name == "last" else first_of_run


def _quota(neighbors: Neighbors, rule: MergeLayer) -> Int32[Array, " G"]:
    """How many pairs must merge in each segment for the ratio of its mergeable tokens to stay."""
    ratio = _exact(rule.ratio)
    entering_G = count_per_segment(neighbors.mergeable, neighbors.segment)
    return entering_G + (-entering_G * ratio.numerator) // ratio.denominator


def _exact(ratio: float) -> Fraction:
    """A ratio as it was written, in decimals: then 0.1 of 30 tokens is 3, and its ceiling not 4."""
    return Fraction(ratio).limit_denominator(10_000)


def _most_similar_per_segment(neighbors: Neighbors, quota: Int32[Array, " G"]) -> Bool[Array, " S"]:
    """The most similar pairs of each segment, as many as its quota says."""
    no_segment = neighbors.segment.shape[0] + 1
    group_S = jnp.where(neighbors.has_successor, neighbors.segment, no_segment)
    return rank_in_group(neighbors.similarity, group_S) < quota[neighbors.segment]


def _count(mask: Bool[Array, " S"]) -> Int32[Array, ""]:
    return jnp.sum(mask, dtype=jnp.int32)
