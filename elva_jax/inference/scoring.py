"""Multiple choice by likelihood: a question and its options as one tree of branches.

The options share the question's keys and values; each attends to the question and to itself alone:

    question tokens ──┬── tokens of option 1
                      ├── tokens of option 2
                      └── …

The score of an option is the sum of log p(token | prefix, question, tokens before it).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from elva_jax.config.schema import ModelConfig
from elva_jax.inference.kv_cache import PrefixCache, append_tokens, empty_suffix
from elva_jax.inference.long_context import row_cos_sin
from elva_jax.inference.media import Prompt
from elva_jax.inference.params import Weights, logits
from elva_jax.utils.arrays import AnyArray

Ids = tuple[int, ...]
Options = tuple[Ids, Sequence[Ids]]  # token ids of a question, and of its options with their ends


@dataclasses.dataclass(frozen=True)
class Choice:
    """A question with the answers whose likelihoods are asked for."""

    question: Prompt
    options: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """How likely the model finds one option as its whole answer.

    Attributes:
      total: sum of the tokens' natural log-probabilities, `<|im_end|>` included.
      tokens: number of those tokens.
    """

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """The log-probability per token: the length-normalized score."""
        return self.total / self.tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptionTree:
    """A question and its options, one after the other; all but `counts` have an entry per token."""

    token: list[int]
    position: list[int]
    branch: list[int]  # 0: the question; 1 …: the option
    source: list[int]  # where each option token is predicted
    target: list[int]  # the option tokens
    counts: tuple[int, ...]  # tokens of each option

    def likelihoods(self, scores: Float[np.ndarray, " M"]) -> list[Likelihood]:
        """Sums the scores of each option's tokens."""
        parts = np.split(scores[: sum(self.counts)], np.cumsum(self.counts)[:-1])
        return [Likelihood(float(part.sum()), len(part)) for part in parts]


def option_tree(
    question: Sequence[int], options: Sequence[Sequence[int]], start: int
) -> OptionTree:
    """Lays out a question whose first token has position `start`, and its options.

    The last token of an option predicts nothing and is left out.
    """
    n = len(question)
    token, position, branch = list(question), list(range(start, start + n)), [0] * n
    source: list[int] = []
    target: list[int] = []
    for k, ids in enumerate(options, start=1):
        first = len(token)
        source += [n - 1, *range(first, first + len(ids) - 1)]
        target += ids
        token += ids[:-1]
        position += range(start + n, start + n + len(ids) - 1)
        branch += [k] * (len(ids) - 1)
    return OptionTree(
        token=token,
        position=position,
        branch=branch,
        source=source,
        target=target,
        counts=tuple(map(len, options)),
    )


class Trees(NamedTuple):
    """G option trees of each of B rows, padded."""

    token: Int[AnyArray, "B G Q"]  # a question, then its options one after the other
    position: Int[AnyArray, "B G Q"]  # every option continues from the question's end
    branch: Int[AnyArray, "B G Q"]  # 0 for the question, 1, 2 … for options, -1 for padding
    source: Int[AnyArray, "B G M"]  # the index in Q whose prediction is asked for
    stretch: Int[AnyArray, " B"]  # how RoPE is scaled for each row


@partial(jax.jit, static_argnums=0)
def branch_scores(
    config: ModelConfig,
    weights: Weights,
    prefix: tuple[PrefixCache, ...],
    trees: Trees,
    target: Int[AnyArray, "B G M"],
) -> Float32[Array, "B G M"]:
    """Log-probabilities of the option tokens of G trees per row.

    Args:
      config: the model.
      weights: its parameters.
      prefix: of every layer.
      trees: questions with their options.
      target: the token whose probability is asked for at each of `trees.source`.
    """
    scores = branch_logits(config, weights, prefix, trees)
    chosen = jnp.take_along_axis(scores, target[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(scores, axis=-1)


def branch_logits(
    config: ModelConfig, weights: Weights, prefix: tuple[PrefixCache, ...], trees: Trees
) -> Float32[Array, "B G M V"]:
    """Logits at the tokens of G trees per row that predict an option's tokens.

    A token attends to the question and to its own option.
    """
    token, position, branch, source, stretch = map(jnp.asarray, trees)
    batch, groups, queries = token.shape
    keys = branch[:, :, None, :]
    attention_mask = (
        ((keys == 0) | (keys == branch[..., None]))
        & (keys >= 0)
        & jnp.tril(jnp.ones((1, 1, queries, queries), bool))
    )
    suffix = empty_suffix(config, batch, groups, queries)
    cos_sin = row_cos_sin(config, position.reshape(batch, -1), stretch)
    x, _ = append_tokens(config, weights, prefix, suffix, 0, token, cos_sin, attention_mask)
    picked = jnp.take_along_axis(x, source[..., None], axis=2)
    return logits(config, weights, picked)
