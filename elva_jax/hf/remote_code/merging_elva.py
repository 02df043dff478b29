"""Hierarchical token merging (arXiv 2503.18422, section 3.2) in PyTorch.

A token joins the next one at the same grid position (its tube) if the two are similar. A run of
such tokens becomes one token with their size-weighted mean, in the place and at the position of the
last one, because a causal decoder must not look ahead (or of the first one, as in FrameFusion):

    tube 0:  a0 ~ a1   b2 ~ b3 ~ b4      (~ similar)
    result:       a1             b4      a1 = mean(a0, a1), size 2; b4 = mean(b2, b3, b4), size 3
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import torch

# Cosines are rounded to this step before they are ranked, so that rounding errors do not order the
# pairs of a still picture.
EQUAL = 2.0**-18
NO_TUBE = torch.iinfo(torch.int64).max


class Tokens(NamedTuple):
    """A batch of sequences between decoder layers, with padding anywhere."""

    x: torch.Tensor  # [B, S, D]
    valid: torch.Tensor  # [B, S] bool; False for padding
    position: torch.Tensor  # [B, S] RoPE position
    tube: torch.Tensor  # [B, S] int64 of the tokens that may merge, -1 for all others
    size: torch.Tensor  # [B, S] float32, number of original tokens in each
    index: torch.Tensor  # [B, S] int64, index of the original token; -1 for padding


def merge_tokens(
    tokens: Tokens, policy: str, threshold: float, ratio: float, survivor: str = "last"
) -> Tokens:
    """Merges similar neighbors in every sequence and moves the survivors to its end.

    Args:
      tokens: output of the layer before.
      policy: 'threshold' merges every pair whose cosine is above `threshold`; 'ratio' merges the
        most similar pairs until at most ceil(ratio * n) of n mergeable tokens are left (or one per
        tube); 'both' does the first, then the second; 'pool' ends runs by count: token i (from 0)
        of a tube ends one if floor((i + 1) * ratio) > floor(i * ratio), or if it is the last.
      threshold: the cosine above which a pair merges.
      ratio: share that is kept.
      survivor: the member of a run, 'last' or 'first', whose place and position the mean takes.

    Returns:
      Tokens [B, C] of the survivors, where C is the largest number in one sequence; others are
      padded on the left. Gradients flow through the means, not through the choice. A token that
      merges with nothing keeps its features bit for bit.
    """
    x, valid, _, tube, size, _ = tokens
    batch, length = valid.shape
    order, has_next, next_ = _successors(tube)
    if policy == "pool":
        merged = has_next & ~_ends_by_count(tube, order, ratio)
    else:
        merged = _choose(similarity(x, next_), has_next, tube >= 0, policy, threshold, ratio)
    member = (_last_of_run if survivor == "last" else _first_of_run)(order, merged)
    kept = valid & (member == torch.arange(length, device=x.device))
    survivors = kept.sum(1, keepdim=True)
    count = int(survivors.max())

    place = kept.cumsum(1) - 1 + count - survivors
    # [B, S]; slot `count` collects padding, and is cut off again.
    target = torch.where(valid, place.gather(1, member), count)
    rows = torch.arange(batch, device=x.device)[:, None]
    flat = (target + rows * (count + 1)).flatten()

    def total(values):
        out = values.new_zeros(batch * (count + 1), *values.shape[2:])
        return out.index_add(0, flat, values.flatten(0, 1)).unflatten(0, (batch, count + 1))

    new_size, members = total(size), total(torch.ones_like(size))
    alone = members.gather(1, target) == 1
    weight = torch.where(alone, 1.0, size / new_size.gather(1, target).clamp(min=1.0))
    means = total(x.float() * weight[..., None])[:, :count].to(x.dtype)

    source = torch.full((batch, count + 1), length, device=x.device)
    source.scatter_(
        1, torch.where(kept, place, count), torch.arange(length, device=x.device).expand(batch, -1)
    )
    source = source[:, :count]

    def pick(values, fill):
        padded = torch.cat([values, values.new_full((batch, 1), fill)], dim=1)
        return padded.gather(1, source)

    return Tokens(
        x=means,
        valid=pick(valid, False),
        position=pick(tokens.position, 0),
        tube=pick(tube, -1),
        size=new_size[:, :count],
        index=pick(tokens.index, -1),
    )


@torch.no_grad()
def similarity(x: torch.Tensor, next_: torch.Tensor) -> torch.Tensor:
    """float32 [B, S]: cosine of every token and token `next_`; 0 if either is the zero vector."""
    x = x.float()
    norm = x.square().sum(-1).sqrt()
    dot = (x * x.gather(1, next_[..., None].expand_as(x))).sum(-1)
    scale = norm * norm.gather(1, next_)
    return torch.where(scale == 0, 0.0, dot / torch.where(scale == 0, 1.0, scale))


def _successors(tube: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens sorted by tube and place, whether each has a successor in its tube, and its index."""
    key, order = torch.where(tube >= 0, tube, NO_TUBE).sort(dim=1, stable=True)
    follows = torch.zeros_like(tube, dtype=torch.bool)
    follows[:, :-1] = (key[:, :-1] == key[:, 1:]) & (key[:, :-1] != NO_TUBE)
    has_next = torch.zeros_like(follows).scatter(1, order, follows)
    next_ = torch.zeros_like(order).scatter(
        1, order, torch.where(follows, order.roll(-1, dims=1), order)
    )
    return order, has_next, next_


def _choose(
    similarity, has_next, mergeable, policy: str, threshold: float, ratio: float
) -> torch.Tensor:
    """bool [B, S]: the tokens that merge into their successor."""
    above = has_next & (similarity > threshold)
    if policy == "threshold":
        return above
    exact = _exact(ratio)
    entering = mergeable.sum(1, keepdim=True)
    quota = entering + torch.div(
        -entering * exact.numerator, exact.denominator, rounding_mode="floor"
    )
    if policy == "both":
        quota = torch.maximum(quota, above.sum(1, keepdim=True))
        # Cosines span 2, so pairs above the threshold come first.
        similarity = similarity + 4.0 * above
    # Most similar first, equal ones in the order of the sequence, NaN last.
    key = torch.where(has_next, -(similarity.nan_to_num(nan=-2.0) / EQUAL).round(), torch.inf)
    order = key.argsort(dim=1, stable=True)
    rank = torch.zeros_like(order).scatter(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return has_next & (rank < quota)


def _ends_by_count(tube: torch.Tensor, order: torch.Tensor, ratio: float) -> torch.Tensor:
    """bool [B, S]: the tokens that end a run of the pool policy by their place in the tube."""
    exact = _exact(ratio)
    index = torch.arange(tube.shape[1], device=tube.device).expand_as(tube)
    by_tube = tube.gather(1, order)
    first = torch.ones_like(by_tube, dtype=torch.bool)
    first[:, 1:] = by_tube[:, 1:] != by_tube[:, :-1]
    place = index - torch.where(first, index, 0).cummax(dim=1).values
    ends = (
        place + 1
    ) * exact.numerator // exact.denominator > place * exact.numerator // exact.denominator
    return torch.zeros_like(first).scatter(1, order, ends)


def _exact(ratio: float) -> Fraction:
    """A ratio as written in decimals, so that the ceiling of 0.1 of 30 tokens is 3, not 4."""
    return Fraction(ratio).limit_denominator(10_000)


def _last_of_run(order: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
    """int64 [B, S]: the last member of every token's run, or the token itself."""
    length = order.shape[1]
    place = torch.arange(length, device=order.device).expand_as(order)
    ends = torch.where(merged.gather(1, order), length - 1, place)
    end = ends.flip(1).cummin(dim=1).values.flip(1)
    return torch.zeros_like(order).scatter(1, order, order.gather(1, end))


def _first_of_run(order: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
    """int64 [B, S]: the first member of every token's run, or the token itself."""
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    joins = torch.zeros_like(merged)
    joins[:, 1:] = merged.gather(1, order)[:, :-1]
    first = torch.where(joins, 0, place).cummax(dim=1).values
    return torch.zeros_like(order).scatter(1, order, order.gather(1, first))
