"""One batch of rows: written answers, or likelihoods of options."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from elva_jax.evaluation.lmms.generation import Generation
from elva_jax.evaluation.lmms.rows import Row
from elva_jax.inference.batching import Lengths, grid_length
from elva_jax.inference.engine import Decoding
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.prefilled import STOP_INTERVAL, Answer, Prefilled, as_answers
from elva_jax.inference.sampling import GREEDY
from elva_jax.inference.scoring import Likelihood, option_tree

Ids = Sequence[Sequence[tuple[int, ...]]]  # token ids of the questions of each row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model says to one question.

    Attributes:
      text: the written answer.
      input_tokens: length of the prompt before merging.
      output_tokens: length of the answer.
      likelihood: of the option, where it was asked for.
      greedy: whether the model would write the option, where that was asked for.
      refused: why there is no answer; "": there is one.
    """

    text: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    likelihood: Likelihood | None = None
    greedy: bool = False
    refused: str = ""


class Steady(Lengths):
    """Lengths that do not shrink, so that few programs are compiled; prefixes are on the grid."""

    def __init__(self) -> None:
        super().__init__(steady=True)

    def __call__(self, name: str, tokens: int, smallest: int = 16) -> int:
        """The padded length for `tokens`."""
        if name in ("prefix", "questions"):
            return grid_length(tokens, smallest)
        return super().__call__(name, tokens, smallest)


class Asker:
    """Asks batches of rows.

    Args:
      model: the model.
      merging: whether its merging layers act.
    """

    def __init__(self, model: ElvaModel, *, merging: bool) -> None:
        self.model, self.merging = model, merging
        self._lengths: dict[object, Steady] = {}

    def write(self, rows: Sequence[Row], generation: Generation) -> dict[int, Reply]:
        """Written answers by the questions' numbers."""
        lengths = self._steady(rows, generation.max_new_tokens)
        prefilled = self._prefill(rows, lengths)
        ids = [[question.question for question in row.questions] for row in rows]
        answers = self._decode(prefilled, ids, generation, lengths)
        return {
            question.index: Reply(
                text=answer.text,
                input_tokens=question.prompt_tokens,
                output_tokens=len(answer.tokens),
            )
            for row, said in zip(rows, answers, strict=True)
            for question, answer in zip(row.questions, said, strict=True)
        }

    def score(self, rows: Sequence[Row]) -> dict[int, Reply]:
        """The likelihood of each question's option, by the questions' numbers."""
        lengths = self._steady(rows, 0)
        prefilled = self._prefill(rows, lengths)
        prompts = [tuple(dict.fromkeys(q.question for q in row.questions)) for row in rows]
        options = [
            [[q for q in row.questions if q.question == ids] for ids in asked]
            for row, asked in zip(rows, prompts, strict=True)
        ]
        trees = [
            [
                option_tree(ids, [q.option for q in alike], alike[0].prefix_tokens)
                for ids, alike in zip(asked, groups, strict=True)
            ]
            for asked, groups in zip(prompts, options, strict=True)
        ]
        scores = self.model.engine.score(prefilled.prefix, trees, lengths)
        written: dict[tuple[int, int], Answer] = {}
        wanted = [q for row in rows for q in row.questions if q.greedy]
        if wanted:
            most = max(len(q.option) for q in wanted)
            generation = Generation(max_new_tokens=most, sampling=GREEDY)
            answers = self._decode(prefilled, prompts, generation, lengths)
            written = {(b, g): a for b, row in enumerate(answers) for g, a in enumerate(row)}
        return {
            question.index: Reply(
                input_tokens=question.prompt_tokens,
                output_tokens=likelihood.tokens,
                likelihood=likelihood,
                greedy=question.greedy and writes(written[b, g], question.option),
            )
            for b, groups in enumerate(options)
            for g, alike in enumerate(groups)
            for question, likelihood in zip(alike, scores[b][g], strict=True)
        }

    def _steady(self, rows: Sequence[Row], max_new_tokens: int) -> Steady:
        longest = max(row.longest.prefix_tokens for row in rows)
        key = grid_length(longest), max_new_tokens
        return self._lengths.setdefault(key, Steady())

    def _prefill(self, rows: Sequence[Row], lengths: Lengths) -> Prefilled:
        # The capacity decides how RoPE is scaled: as for the longest question by itself.
        tokens = max(question.tokens for row in rows for question in row.questions)
        capacity = tokens - max(row.longest.prompt_tokens for row in rows)
        return self.model.prefill_parts(
            [row.longest.parts for row in rows],
            [row.visuals for row in rows],
            merging=self.merging,
            capacity=max(capacity, 1),
            lengths=lengths,
        )

    def _decode(
        self, prefilled: Prefilled, ids: Ids, generation: Generation, lengths: Lengths
    ) -> list[list[Answer]]:
        """The answers to questions that are given as tokens."""
        engine, sampling = self.model.engine, generation.sampling
        most = generation.max_new_tokens
        decoding = Decoding(
            max_new_tokens=most,
            capacity=lengths("answer", most, 8),
            interval=STOP_INTERVAL if sampling.stop else most,
            sampling=sampling,
        )
        state = engine.start(prefilled.prefix, ids, decoding, lengths, prefilled.prefixes)
        answers: list[list[Answer]] = []
        for progress in engine.decode(prefilled.prefix, state, list(map(len, ids)), decoding):
            answers = as_answers(self.model.tokenizer, progress, sampling)
            if all(answer.finished for row in answers for answer in row):
                break
        return answers


def writes(answer: Answer, option: tuple[int, ...]) -> bool:
    """Whether an answer of at most the option's length and its end is the option."""
    return (*answer.tokens, option[-1]) == option
