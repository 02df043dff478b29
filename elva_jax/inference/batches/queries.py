"""Questions on their way through the model, and what comes back.

    Item ─media are read→ Query ─rows, batches→ Reply

An `Item` is a question whose media have not been read. What is to be done with its prompt stands in
the `Query` that it makes of them: write an answer, score options, or both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from elva_jax.config.schema import ModelConfig
from elva_jax.inference.batching import grid_batch, split_prompt
from elva_jax.inference.long_context import stretch_of
from elva_jax.inference.prefilled import Answer
from elva_jax.inference.sampling import GREEDY, Sampling
from elva_jax.inference.scoring import Likelihood
from elva_jax.ops.merging import Merging
from elva_jax.video.clip import Visual
from elva_jax.video.layout import Clip, Text

Parts = Sequence[Text | Clip]
Ids = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
    """How an answer is written."""

    max_new_tokens: int
    sampling: Sampling = GREEDY

    @property
    def kind(self) -> Hashable:
        """Equal for answers that one call can decode; lengths and stop strings may differ."""
        sampling = dataclasses.replace(self.sampling, stop=())
        if not sampling.temperature:
            sampling = dataclasses.replace(sampling, top_p=1.0, seed=0)
        return sampling, grid_batch(self.max_new_tokens)

    @property
    def program(self) -> Hashable:
        """Equal for answers that the same compiled program may decode."""
        sampling = self.sampling
        draws, length = sampling.temperature > 0, grid_batch(self.max_new_tokens)
        return draws, draws and sampling.top_p < 1, sampling.penalizes, length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring:
    """Options whose likelihoods are measured.

    Attributes:
      question: token ids between the prompt's prefix and the options.
      options: token ids of each option with its end.
    """

    question: Ids
    options: tuple[Ids, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query:
    """One prompt with all that is wanted of it.

    Attributes:
      tag: the caller's name for it, which the reply has.
      parts: texts and clips up to where the answer begins.
      prefix: those that other prompts may share: up to the last clip.
      question: token ids of the rest.
      prefix_tokens: length of the prefix before merging.
      writing: how the answer is written; None: it is not.
      scorings: options to score, by a name under which many queries are scored together.
      merging: whether the model's merging layers act, or others instead; None: as it is for all.
      kind: only queries with the same one are asked together.
      program: equal for queries that the same compiled programs may serve.
    """

    tag: Any
    parts: Parts
    prefix: tuple[Text | Clip, ...]
    question: Ids
    prefix_tokens: int
    writing: Writing | None
    scorings: Mapping[str, Scoring]
    merging: bool | Merging | None = None
    kind: Hashable
    program: Hashable = None


def make_query(
    config: ModelConfig,
    tag: Any,
    parts: Parts,
    writing: Writing | None = None,
    scorings: Mapping[str, Scoring] | None = None,
    *,
    merging: bool | Merging | None = None,
) -> Query:
    """A query of a rendered prompt; arguments as the attributes of `Query`.

    Raises:
      LayoutError: the prompt ends with a medium, or there are more tokens than RoPE can be scaled
        for.
    """
    prompt, scorings = split_prompt(parts), scorings or {}
    start = prompt.prefix_tokens
    longest = start + len(prompt.question)
    for scoring in scorings.values():
        option = max(map(len, scoring.options))
        longest = max(longest, start + len(scoring.question) + option - 1)
    stretch_of(config, longest)
    return Query(
        tag=tag,
        parts=parts,
        prefix=prompt.prefix,
        question=prompt.question,
        prefix_tokens=start,
        writing=writing,
        scorings=scorings,
        merging=merging,
        kind=(writing.kind if writing else None, merging),
        program=(writing.program if writing else None, merging),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """A question whose media have not been read.

    Attributes:
      tag: the caller's name for it.
      name: in messages about media without a path.
      media: what it is about, in order; equal ones are read once.
      make: the query, from the media as they were read; may raise ElvaError.
      key: in journals, where it is the only one of this key.
    """

    tag: Any
    name: str
    media: tuple[Hashable, ...]
    make: Callable[[tuple[Visual, ...]], Query]
    key: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Items about the same media."""

    media: tuple[Hashable, ...]
    items: tuple[Item, ...]


def group_by_media(items: Iterable[Item], most: int) -> list[Group]:
    """Groups in the order of their first items; those without media have at most `most`."""
    found: dict[tuple[Hashable, ...], list[Item]] = {}
    for item in items:
        found.setdefault(item.media, []).append(item)
    groups = []
    for media, about in found.items():
        size = len(about) if media else most
        for start in range(0, len(about), size):
            groups.append(Group(media=media, items=tuple(about[start : start + size])))
    return groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """The model's reply to one query.

    Attributes:
      tag: as in the item.
      error: why it could not be asked; "": it could.
      fits: whether the model can take a query of this length.
      answer: the written answer; None: none was wanted.
      likelihoods: of the options of each scoring, by its name.
      tokens: length of the prompt before merging, then after each merging layer.
      seconds: the batch's time divided by its queries; reading apart.
    """

    tag: Any
    error: str = ""
    fits: bool = True
    answer: Answer | None = None
    likelihoods: Mapping[str, tuple[Likelihood, ...]] = dataclasses.field(default_factory=dict)
    tokens: tuple[int, ...] = ()
    seconds: float = 0.0
