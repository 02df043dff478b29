"""Rows: questions about the same media that share one prefilled prompt prefix.

    questions ─group_by_media→ groups ─read→ visuals ─rows_of→ rows ─Buckets→ batches

A row is one row of `ElvaModel.prefill`. Its questions place their media alike and need the same
scaling of RoPE, so that no answer depends on what else is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from elva_jax.data import conversation
from elva_jax.data.example import Media
from elva_jax.errors import ElvaError
from elva_jax.evaluation.benchmarks.base import Question
from elva_jax.evaluation.runner.settings import Way
from elva_jax.inference.batching import split_prompt
from elva_jax.inference.long_context import rope_factor
from elva_jax.inference.prompts import PromptReader
from elva_jax.video.clip import Visual
from elva_jax.video.layout import Clip, Text, clip_tokens

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
      prompt_tokens: length of the longest prompt.
      tokens: length of the longest prompt with all that may follow it.
      rope_factor: the scaling of RoPE that the longest one needs.
      bare_apart: whether the bare questions place the media differently from the prompts.
    """

    questions: tuple[Question, ...]
    visuals: tuple[Visual, ...]
    parts: Parts
    prefix_tokens: int
    question_tokens: tuple[int, ...]
    prompt_tokens: int
    tokens: int
    rope_factor: int
    bare_apart: bool


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
    prefix: tuple[tuple[int, ...] | None, ...]  # text tokens; None for a medium
    prefix_tokens: int
    prompt_tokens: int
    tokens: int
    rope_factor: int
    bare_apart: bool


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
    prompts: dict[object, list[_Prompt]] = {}
    refused = []
    for question in group.questions:
        try:
            prompt = _read_prompt(model, question, visuals, ways, max_new_tokens)
        except ElvaError as error:
            refused.append(Refused(question=question, reason=str(error)))
            continue
        key = prompt.prefix, prompt.rope_factor, prompt.bare_apart
        prompts.setdefault(key, []).append(prompt)
    rows = [
        _row(alike[start : start + ROW_QUESTIONS], visuals)
        for alike in prompts.values()
        for start in range(0, len(alike), ROW_QUESTIONS)
    ]
    return rows, refused


def bare_question(question: Question) -> str:
    """The prompt after which the options' texts are scored: the question alone."""
    return conversation.plain(question.text)


def _row(prompts: Sequence[_Prompt], visuals: tuple[Visual, ...]) -> Row:
    longest = max(prompts, key=lambda prompt: prompt.prompt_tokens)
    return Row(
        questions=tuple(prompt.question for prompt in prompts),
        visuals=visuals,
        parts=longest.parts,
        prefix_tokens=longest.prefix_tokens,
        question_tokens=tuple(p.prompt_tokens - p.prefix_tokens for p in prompts),
        prompt_tokens=longest.prompt_tokens,
        tokens=max(prompt.tokens for prompt in prompts),
        rope_factor=longest.rope_factor,
        bare_apart=longest.bare_apart,
    )


def _read_prompt(
    model: PromptReader,
    question: Question,
    visuals: tuple[Visual, ...],
    ways: Sequence[Way],
    max_new_tokens: int,
) -> _Prompt:
    """Renders a question in every way that it is asked.

    Raises:
      ElvaError: markers that do not match the media, no text, an empty option, or more tokens than
        the model reads.
    """
    parts = model.prompt_parts(question.prompt, visuals)
    prompt = split_prompt(parts)
    prefix, start = _texts(prompt.prefix), count_tokens(prompt.prefix)
    length = start + len(prompt.question)
    tokens, bare_apart = [length + 1], False
    if "generated" in ways:
        tokens.append(length + max_new_tokens)
    if "letter" in ways and question.options:
        tokens.append(length + 2)
    if "likelihood" in ways and question.options:
        bare = split_prompt(model.prompt_parts(bare_question(question), visuals))
        bare_apart = _texts(bare.prefix) != prefix
        options = [conversation.answer_ids(text, model.tokenizer) for text in question.options]
        most = max(map(len, options))
        tokens.append(count_tokens(bare.prefix) + len(bare.question) + most)
    return _Prompt(
        question=question,
        parts=parts,
        prefix=prefix,
        prefix_tokens=start,
        prompt_tokens=length,
        tokens=max(tokens),
        rope_factor=rope_factor(model.model_config, max(tokens)),
        bare_apart=bare_apart,
    )


def _texts(parts: Parts) -> tuple[tuple[int, ...] | None, ...]:
    return tuple(tuple(map(int, p.token_ids)) if isinstance(p, Text) else None for p in parts)


def count_tokens(parts: Parts) -> int:
    """Length of a rendered prompt, or of a part of it."""
    return sum(len(p.token_ids) if isinstance(p, Text) else clip_tokens(p) for p in parts)
