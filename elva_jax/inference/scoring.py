"""Multiple choice by likelihood: a question and its options as one tree of branches that share the question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Choice(NamedTuple):
    """A question with the answers whose likelihoods are asked for."""

    question: str
    options: tuple[str, ...]


class Likelihood(NamedTuple):
    """How likely the model finds one option as its whole answer."""

    total: float  # sum of the tokens' natural log-probabilities, `<|im_end|>` included
    tokens: int  # how many those are

    @property
    def mean(self) -> float:
        """Per token: the length-normalised score."""
        return self.total / self.tokens


class Tree(NamedTuple):
    """A question and the options behind it, one behind the other, as `extend.branch_scores` takes them."""

    token: list[int]
    position: list[int]
    branch: list[int]  # 0: the question; 1 …: the option
    source: list[int]  # where each option token is predicted
    target: list[int]  # the option tokens
    counts: tuple[int, ...]  # tokens of each option

    def likelihoods(self, scores_M: np.ndarray) -> list[Likelihood]:
        """Sums the scores of each option's tokens."""
        ends = np.cumsum(self.counts)
        return [
            Likelihood(float(scores_M[end - n : end].sum()), n)
            for end, n in zip(ends, self.counts, strict=True)
        ]


def plant(question: Sequence[int], options: Sequence[Sequence[int]], start: int) -> Tree:
    """Lays out a question that begins at position `start` and its options; an option's last token predicts nothing and is left out."""
    n = len(question)
    tree = Tree(
        list(question), list(range(start, start + n)), [0] * n, [], [], tuple(map(len, options))
    )
    for k, ids in enumerate(options, start=1):
        first = len(tree.token)
        tree.source.extend([n - 1, *range(first, first + len(ids) - 1)])
        tree.target.extend(ids)
        tree.token.extend(ids[:-1])
        tree.position.extend(range(start + n, start + n + len(ids) - 1))
        tree.branch.extend([k] * (len(ids) - 1))
    return tree
