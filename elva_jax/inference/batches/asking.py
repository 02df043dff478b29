"""One batch of rows: its queries in, a reply to each out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from elva_jax.inference.batches.buckets import Batch
from elva_jax.inference.batches.queries import Ids, Query, Reply
from elva_jax.inference.engine import Decoding, Progress
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.prefilled import STOP_INTERVAL, Answer, Prefilled, as_answers
from elva_jax.inference.scoring import Likelihood
from elva_jax.ops.merging import Merging

Likelihoods = list[list[tuple[Likelihood, ...]]]  # of each row's queries, per option


def ask(model: ElvaModel, batch: Batch, *, merging: bool | Merging) -> list[Reply]:
    """Prefills the rows of a batch once, and does with each query what it wants.

    Args:
      model: the model.
      batch: the rows, all of one kind.
      merging: whether the model's merging layers act, or others instead, where the rows do not say.
    """
    start = time.monotonic()
    rows, shapes = batch.rows, batch.shapes
    own = rows[0].merging
    padded = [*rows, *rows[-1:] * (batch.size - len(rows))]
    prefilled = model.prefill_parts(
        [row.parts for row in padded],
        [row.visuals for row in padded],
        merging=merging if own is None else own,
        lengths=shapes["prefix"],
    )
    written = _write(prefilled, batch)
    names = dict.fromkeys(name for row in rows for q in row.queries for name in q.scorings)
    scored = {name: _score(prefilled, batch, name) for name in names}
    count = sum(len(row.queries) for row in rows)
    seconds = (time.monotonic() - start) / count
    return [
        Reply(
            tag=query.tag,
            answer=written[b][g] if written else None,
            likelihoods={name: scores[b][g] for name, scores in scored.items() if scores[b][g]},
            tokens=_token_counts(prefilled, b, query),
            seconds=seconds,
        )
        for b, row in enumerate(rows)
        for g, query in enumerate(row.queries)
    ]


def _write(prefilled: Prefilled, batch: Batch) -> list[list[Answer | None]]:
    """The written answers of each row's queries; [] if none is wanted.

    Equal questions of a row are decoded once, and each query takes as many tokens as it wants.
    """
    rows = batch.rows
    columns = [_distinct(q.question for q in row.queries if q.writing) for row in rows]
    writings = [q.writing for row in rows for q in row.queries if q.writing]
    if not writings:
        return []
    most = max(writing.max_new_tokens for writing in writings)
    stops = any(writing.sampling.stop for writing in writings)
    lengths = batch.shapes["generated"]
    decoding = Decoding(
        max_new_tokens=most,
        capacity=lengths("answer", most, 8),
        interval=STOP_INTERVAL if stops else most,
        sampling=writings[0].sampling,
    )
    answers: list[list[Answer | None]] = []
    for progress in prefilled.decode([*map(list, columns)], decoding, lengths):
        answers = [
            [
                _answer(prefilled.reader.tokenizer, progress, b, columns[b], query)
                for query in row.queries
            ]
            for b, row in enumerate(rows)
        ]
        if all(answer is None or answer.finished for row in answers for answer in row):
            break
    return answers


def _answer(
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress,
    row: int,
    columns: dict[Ids, int],
    query: Query,
) -> Answer | None:
    """A query's answer as far as it is decoded, cut to the length that it wants."""
    if query.writing is None:
        return None
    column, most = columns[query.question], query.writing.max_new_tokens
    tokens = progress.tokens[row][column]
    own = dataclasses.replace(
        progress,
        tokens=[[tokens[:most]]],
        ended=[[progress.ended[row][column] and len(tokens) < most]],
        last=progress.last or len(tokens) >= most,
    )
    return as_answers(tokenizer, own, query.writing.sampling)[0][0]


def _score(prefilled: Prefilled, batch: Batch, name: str) -> Likelihoods:
    """The likelihoods of the options under one name; () for queries that have none there.

    Options after the same question of a row stand in one tree.
    """
    choices, places = [], []
    for row in batch.rows:
        options: dict[Ids, list[Ids]] = {}
        found: list[tuple[Ids, slice]] = []
        for query in row.queries:
            if (scoring := query.scorings.get(name)) is None:
                found.append(((), slice(0)))
                continue
            after = options.setdefault(scoring.question, [])
            found.append((scoring.question, slice(len(after), len(after) + len(scoring.options))))
            after += scoring.options
        choices.append(list(options.items()))
        places.append((_distinct(options), found))
    scores = prefilled.score_ids(choices, batch.shapes[name])
    return [
        [tuple(scores[b][columns[ids]][part]) if ids in columns else () for ids, part in found]
        for b, (columns, found) in enumerate(places)
    ]


def _distinct(questions: Iterable[Ids]) -> dict[Ids, int]:
    """The number of each different question."""
    return {ids: number for number, ids in enumerate(dict.fromkeys(questions))}


def _token_counts(prefilled: Prefilled, row: int, query: Query) -> tuple[int, ...]:
    """Prompt tokens before merging, then after each merging layer."""
    prefix = prefilled.prefix
    merged = [
        int(n)
        for n, block in zip(prefix.tokens[:, row], prefix.blocks, strict=True)
        if block.merge is not None
    ]
    return tuple(n + len(query.question) for n in (prefilled.prefix_tokens[row], *merged))
