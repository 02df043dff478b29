"""Questions as token rows, and rows as batches of similar length.

Questions about the same media share a row, whose prefix is computed once. A batch holds only rows
with the same scaling of RoPE, so no answer depends on the other questions of its batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from elva_jax.data import conversation
from elva_jax.data.example import Example, Turn
from elva_jax.evaluation.lmms.media import media_key
from elva_jax.evaluation.lmms.requests import Ask
from elva_jax.inference.batching import grid_batch, split_prompt
from elva_jax.inference.long_context import rope_factor
from elva_jax.inference.prompts import PromptReader
from elva_jax.video.clip import Visual
from elva_jax.video.layout import Clip, Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendered:
    """One question as the model reads it.

    Attributes:
      index: its number among the questions of the window.
      parts: texts and clips up to where the answer begins.
      prefix: those that may be shared: up to the last clip.
      question: token ids of the rest.
      prefix_tokens: length of the prefix before merging.
      option: token ids of the option whose likelihood is asked for; () for a written answer.
      greedy: whether to find out if the option is what the model would write.
      tokens: length with everything that may follow.
    """

    index: int
    parts: Sequence[Text | Clip]
    prefix: tuple[Text | Clip, ...]
    question: tuple[int, ...]
    prefix_tokens: int
    option: tuple[int, ...]
    greedy: bool
    tokens: int

    @property
    def prompt_tokens(self) -> int:
        """Length up to where the answer begins."""
        return self.prefix_tokens + len(self.question)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Questions with one prefix."""

    questions: tuple[Rendered, ...]
    visuals: tuple[Visual, ...]
    rope_factor: int

    @property
    def longest(self) -> Rendered:
        """The question with the longest prompt."""
        return max(self.questions, key=lambda question: question.prompt_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """A question with its media, and what is wanted of it.

    Attributes:
      index: its number among the questions of the window.
      ask: the question.
      visuals: its media.
      option: text whose likelihood is asked for; None: a written answer.
      greedy: see `Rendered`.
    """

    index: int
    ask: Ask
    visuals: tuple[Visual, ...]
    option: str | None = None
    greedy: bool = False


def render(model: PromptReader, wish: Wish, max_new_tokens: int) -> Rendered:
    """Renders a conversation up to its last answer.

    Raises:
      DataError: an empty answer of an earlier turn, or markers that do not match the media.
      LayoutError: the prompt ends with a medium.
    """
    ask = wish.ask
    *earlier, (last, _) = ask.turns
    turns = (*(Turn(*turn) for turn in earlier), Turn(last, "answer"))
    clips = [visual.clip for visual in wish.visuals]
    system = ask.system or model.data.system_prompt
    example = Example("the prompt", (), turns)
    parts = conversation.render(example, model.tokenizer, clips, system)[:-2]
    prompt = split_prompt(parts)
    prefix_tokens = prompt.prefix_tokens
    option: tuple[int, ...] = ()
    if wish.option is not None:
        option = tuple(conversation.answer_ids(wish.option, model.tokenizer))
    after = len(option) if wish.option is not None else max_new_tokens
    return Rendered(
        index=wish.index,
        parts=parts,
        prefix=prompt.prefix,
        question=prompt.question,
        prefix_tokens=prefix_tokens,
        option=option,
        greedy=wish.greedy,
        tokens=prefix_tokens + len(prompt.question) + after,
    )


def rows_of(model: PromptReader, wishes: Sequence[tuple[Wish, Rendered]], most: int) -> list[Row]:
    """Groups questions by their media and prefix, at most `most` per row.

    Raises:
      LayoutError: more tokens than RoPE can be scaled for.
    """
    groups: dict[object, list[tuple[Wish, Rendered]]] = {}
    for wish, rendered in wishes:
        texts = tuple(
            tuple(part.token_ids) if isinstance(part, Text) else None for part in rendered.prefix
        )
        factor = rope_factor(model.model_config, rendered.tokens)
        key = tuple(map(media_key, wish.ask.media)), texts, factor
        groups.setdefault(key, []).append((wish, rendered))
    return [
        Row(
            questions=tuple(rendered for _, rendered in alike[start : start + most]),
            visuals=alike[start][0].visuals,
            rope_factor=rope_factor(model.model_config, alike[start][1].tokens),
        )
        for alike in groups.values()
        for start in range(0, len(alike), most)
    ]


def batches(rows: Sequence[Row], batch_size: int) -> Iterator[list[Row]]:
    """Rows of similar length, the longest first, with at most `batch_size` questions' worth.

    A batch is as wide as its row with the most questions, so rows with about as many go together.
    """

    def size(row: Row) -> tuple[int, int, int]:
        return row.rope_factor, grid_batch(len(row.questions)), row.longest.prompt_tokens

    batch: list[Row] = []
    for row in sorted(rows, key=size, reverse=True):
        alike = batch and size(batch[0])[:2] == size(row)[:2]
        if batch and (not alike or (len(batch) + 1) * size(row)[1] > batch_size):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
