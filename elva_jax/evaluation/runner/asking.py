"""One batch of rows: its questions in, a response to each out."""

from __future__ import annotations

import time
from collections.abc import Sequence

from elva_jax.data.conversation import LETTERS
from elva_jax.evaluation.benchmarks.base import Question, Response
from elva_jax.evaluation.runner.batches import Batch, BucketLengths
from elva_jax.evaluation.runner.settings import Way
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.prefilled import Prefilled
from elva_jax.inference.scoring import Choice, Likelihood

Scores = Sequence[Sequence[Sequence[Likelihood]]]  # per row and question: one per option


def ask(
    model: ElvaModel, batch: Batch, ways: Sequence[Way], max_new_tokens: int, *, merging: bool
) -> list[Response]:
    """Asks the questions of a batch in every way.

    Args:
      model: the model.
      batch: the rows.
      ways: the ways of answering; questions without options are only generated.
      max_new_tokens: length of a written answer.
      merging: whether the model's merging layers act.
    """
    start = time.monotonic()
    rows = [*batch.rows, *batch.rows[-1:] * (batch.size - len(batch.rows))]
    asked = [row.questions for row in batch.rows]
    padding: list[tuple[Question, ...]] = [()] * (batch.size - len(asked))
    shapes = batch.shapes
    # The room after the prompts decides how RoPE is scaled: as for the longest row by itself.
    capacity = max(row.tokens for row in rows) - max(row.prompt_tokens for row in rows)
    prefilled = model.prefill_parts(
        [row.parts for row in rows],
        [row.visuals for row in rows],
        merging=merging,
        capacity=max(capacity, 1),
        lengths=shapes.prefix,
    )
    counts = [_token_counts(prefilled, b, row.question_tokens) for b, row in enumerate(batch.rows)]
    answers = letters = likelihoods = None
    if "generated" in ways:
        texts = [[question.prompt for question in row] for row in [*asked, *padding]]
        answers = prefilled.generate(texts, max_new_tokens, lengths=shapes.generated)
    if "letter" in ways:
        choices = [[_letters(question) for question in row] for row in asked]
        letters = _score(prefilled, choices, len(padding), shapes.letter)
    if "likelihood" in ways:
        choices = [[Choice(q.text, q.options) for q in row] for row in asked]
        likelihoods = _score(prefilled, choices, len(padding), shapes.likelihood)
    seconds = (time.monotonic() - start) / sum(map(len, asked))
    responses = []
    for b, row in enumerate(batch.rows):
        for g, question in enumerate(row.questions):
            answer = answers[b][g] if answers else None
            responses.append(
                Response(
                    question=question,
                    text=answer.text if answer else None,
                    finished=answer.finished if answer else True,
                    letters=tuple(letters[b][g]) if letters else (),
                    likelihoods=tuple(likelihoods[b][g]) if likelihoods else (),
                    tokens=counts[b][g],
                    seconds=seconds,
                )
            )
    return responses


def _letters(question: Question) -> Choice:
    return Choice(question.prompt, tuple(LETTERS[: len(question.options)]))


def _score(
    prefilled: Prefilled, choices: Sequence[Sequence[Choice]], padding: int, lengths: BucketLengths
) -> Scores:
    """Likelihoods of the options of each question; none where there are no options."""
    with_options = [[choice for choice in row if choice.options] for row in choices]
    scored = prefilled.score([*with_options, *[()] * padding], lengths=lengths)
    found = []
    for row, scores in zip(choices, scored, strict=False):
        rest = iter(scores)
        found.append([next(rest) if choice.options else [] for choice in row])
    return found


def _token_counts(
    prefilled: Prefilled, row: int, questions: Sequence[int]
) -> list[tuple[int, ...]]:
    """Per question, prompt tokens before merging, then after each merging layer."""
    prefix = prefilled.prefix
    merged = [
        n
        for n, block in zip(prefix.tokens[:, row], prefix.blocks, strict=True)
        if block.merge is not None
    ]
    counts = [prefilled.prefix_tokens[row], *map(int, merged)]
    return [tuple(n + question for n in counts) for question in questions]
