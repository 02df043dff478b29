"""Rows: questions about the same media that share one prefilled prompt prefix.

    questions ─group_by_media→ groups ─read→ visuals ─rows_of→ rows ─Buckets→ batches

A row is one row of `ElvaModel.prefill`. Its questions need the same scaling of RoPE, so that no
answer depends on what else is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from elva_jax.data import conversation
from elva_jax.data.example import Media
from elva_jax.errors import ElvaError, LayoutError
from elva_jax.evaluation.benchmarks.base import Question
from elva_jax.evaluation.runner.settings import Way
from elva_jax.inference.batching import split_prompt
from elva_jax.inference.long_context import rope_factor
from elva_jax.inference.prompts import PromptReader
from elva_jax.video.clip import Visual
from elva_jax.video.layout import Clip, Text

ROW_QUESTIONS = 16  # most questions of a row

Parts = Sequence[Text | Clip]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Questions about the same media."""

    media: tuple[Media, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Questions that one prefilled prefix serves.

    Attributes:
      questions: the questions.
      visuals: their media.
      parts: the rendered prompt of the longest of them.
      prefix_tokens: length of the prefix, before any merging.
      question_tokens: per question, length of the prompt's rest.
      tokens: length of the longest prompt with all that may follow it.
      rope_factor: the scaling of RoPE that each of them needs.
    """

    questions: tuple[Question, ...]
    visuals: tuple[Visual, ...]
    parts: Parts
    prefix_tokens: int
    question_tokens: tuple[int, ...]
    tokens: int
    rope_factor: int

    @property
    def prompt_tokens(self) -> int:
        """Length of the longest prompt."""
        return self.prefix_tokens + max(self.question_tokens)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A question that cannot be asked, and the reason."""

    question: Question
    reason: str


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    """A question as the model reads it; see `Row`."""

    question: Question
    parts: Parts
    prefix_tokens: int
    question_tokens: int
    tokens: int
    rope_factor: int


def group_by_media(questions: Iterable[Question]) -> list[Group]:
    """Groups in the order of their first questions; questions without media in groups of a row."""
    found: dict[tuple[Media, ...], list[Question]] = {}
    for question in questions:
        found.setdefault(question.media_key, []).append(question)
    groups = []
    for media, about in found.items():
        size = len(about) if media else ROW_QUESTIONS
        for start in range(0, len(about), size):
            groups.append(Group(media=media, questions=tuple(about[start : start + size])))
    return groups


def rows_of(
    model: PromptReader,
    group: Group,
    visuals: tuple[Visual, ...],
    ways: Sequence[Way],
    max_new_tokens: int,
) -> tuple[list[Row], list[Refused]]:
    """The rows of a group, and its questions that the model cannot be asked.

    Args:
      model: reads prompts.
      group: the questions.
      visuals: the media of the group.
      ways: the ways of answering.
      max_new_tokens: length of a written answer.
    """
    prompts: dict[int, list[_Prompt]] = {}
    refused = []
    for question in group.questions:
        try:
            prompt = _read_prompt(model, question, visuals, ways, max_new_tokens)
        except ElvaError as error:
            refused.append(Refused(question=question, reason=str(error)))
            continue
        prompts.setdefault(prompt.rope_factor, []).append(prompt)
    rows = [
        _row(alike[start : start + ROW_QUESTIONS], visuals)
        for alike in prompts.values()
        for start in range(0, len(alike), ROW_QUESTIONS)
    ]
    return rows, refused


def _row(prompts: Sequence[_Prompt], visuals: tuple[Visual, ...]) -> Row:
    longest = max(prompts, key=lambda prompt: prompt.question_tokens)
    return Row(
        questions=tuple(prompt.question for prompt in prompts),
        visuals=visuals,
        parts=longest.parts,
        prefix_tokens=longest.prefix_tokens,
        question_tokens=tuple(prompt.question_tokens for prompt in prompts),
        tokens=max(prompt.tokens for prompt in prompts),
        rope_factor=longest.rope_factor,
    )


def _read_prompt(
    model: PromptReader,
    question: Question,
    visuals: tuple[Visual, ...],
    ways: Sequence[Way],
    max_new_tokens: int,
) -> _Prompt:
    """Renders a question, and measures what follows in every way that it is asked.

    Raises:
      ElvaError: no text, options that cannot be scored, or more tokens than the model reads.
    """
    if not all(option.strip() for option in question.options):
        raise LayoutError(f"the question '{question.text[:60]}' has an empty option")
    if "letter" in ways and len(question.options) > len(conversation.LETTERS):
        raise LayoutError(
            f"the question '{question.text[:60]}' has {len(question.options)} options, more than"
            " there are letters; ask it by --answers generated,likelihood"
        )
    parts = model.prompt_parts(question.prompt, visuals)
    prompt = split_prompt(parts)
    start = prompt.prefix_tokens
    length = start + len(prompt.question)
    tokens = [length + 2]  # a letter and the end
    if "generated" in ways:
        tokens.append(length + max_new_tokens)
    if "likelihood" in ways and question.options:
        bare = split_prompt(model.prompt_parts(question.text, visuals))
        options = [conversation.answer_ids(text, model.tokenizer) for text in question.options]
        tokens.append(start + len(bare.question) + max(map(len, options)))
    return _Prompt(
        question=question,
        parts=parts,
        prefix_tokens=start,
        question_tokens=len(prompt.question),
        tokens=max(tokens),
        rope_factor=rope_factor(model.model_config, max(tokens)),
    )
