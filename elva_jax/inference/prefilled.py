"""Videos that have been read once, for any number of questions about them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from elva_jax.errors import LayoutError
from elva_jax.inference import long_answers
from elva_jax.inference.batching import GRID, ChooseLength, split_prompt
from elva_jax.inference.detokenize import tokens_before, visible
from elva_jax.inference.engine import Decoding, Engine, Progress, Questions
from elva_jax.inference.fusion import FusionWeights, by_encoder, has_weights
from elva_jax.inference.long_context import stretch_of
from elva_jax.inference.media import Prompt
from elva_jax.inference.parts import shown
from elva_jax.inference.prefilled_rows import PrefilledRows
from elva_jax.inference.prompts import PromptReader
from elva_jax.inference.request_settings import MergingChoice, chosen_merging
from elva_jax.inference.sampling import GREEDY, Sampling
from elva_jax.inference.scoring import Choice, Likelihood, Options
from elva_jax.parallel.host_arrays import to_host
from elva_jax.utils import numbers
from elva_jax.video.clip import Visual
from elva_jax.video.layout import Clip, Text

STOP_INTERVAL = 8  # tokens between two looks at an answer that a stop string may end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """A decoded answer.

    Attributes:
      text: what the model says.
      tokens: the token ids, without the ending token.
      finished: False where max_new_tokens or the model's longest sequence cut the answer off.
    """

    text: str
    tokens: tuple[int, ...]
    finished: bool


class Prefilled(PrefilledRows):
    """Rows of videos after `ElvaModel.prefill`, for any number of questions about them."""

    @functools.cached_property
    def fusion_weights(self) -> tuple[tuple[FusionWeights | None, ...], ...]:
        """Of each video of each row: the weights of a MERV's encoders, or None without any."""
        config = self.engine.config
        if not has_weights(config):
            return tuple((None,) * len(row) for row in self.media)
        found = to_host(self.prefix.fusion)
        return tuple(
            tuple(by_encoder(config, found[b, k]) for k in range(len(row)))
            for b, row in enumerate(self.media)
        )

    def generate(
        self,
        questions: Sequence[Sequence[Prompt]],
        max_new_tokens: int = 64,
        *,
        sampling: Sampling = GREEDY,
        lengths: ChooseLength = GRID,
    ) -> list[list[Answer]]:
        """Answers the questions of each row, all decoded together.

        An answer ends at an end token, before a stop string, after `max_new_tokens`, or at the
        model's longest sequence.

        Raises:
          LayoutError: an empty question, one that places its media differently, or
            more tokens than fit the model.
        """
        if not any(questions):
            return [[] for _ in questions]
        interval = STOP_INTERVAL if sampling.stop else max_new_tokens
        *_, answers = self._answers(questions, max_new_tokens, sampling, interval, lengths)
        return answers

    def stream(
        self, question: Prompt, max_new_tokens: int = 64, *, sampling: Sampling = GREEDY
    ) -> Iterator[str]:
        """The answer about the only row, piece by piece; joined, it is what `generate` gives."""
        answers = self._answers([[question]], max_new_tokens, sampling, 1, GRID)
        yield from pieces(answer for ((answer,),) in answers)

    def score(
        self, choices: Sequence[Sequence[Choice]], *, lengths: ChooseLength = GRID
    ) -> list[list[list[Likelihood]]]:
        """The likelihood of every option of every question of each row as the whole answer.

        Raises:
          LayoutError: an empty question or option, a question without options, or more tokens than
            fit the model.
        """
        ids = [[self._choice(b, choice) for choice in row] for b, row in enumerate(choices)]
        return self.score_ids(ids, lengths)

    def score_ids(
        self, choices: Sequence[Sequence[Options]], lengths: ChooseLength = GRID
    ) -> list[list[list[Likelihood]]]:
        """`score` of token ids: per row, questions with their options."""
        return long_answers.score(self, choices, lengths)

    def decode(
        self, questions: Questions, decoding: Decoding, lengths: ChooseLength = GRID
    ) -> Iterator[Progress]:
        """The answers to questions given as token ids, after every interval; at the end `last`."""
        return long_answers.decode(self, questions, decoding, lengths)

    def _answers(
        self,
        questions: Sequence[Sequence[Prompt]],
        max_new_tokens: int,
        sampling: Sampling,
        interval: int,
        lengths: ChooseLength,
    ) -> Iterator[list[list[Answer]]]:
        """The answers so far, after every `interval` tokens."""
        numbers.TOKENS.check("max_new_tokens", max_new_tokens)
        ids = [[self._question(b, text) for text in row] for b, row in enumerate(questions)]
        decoding = Decoding(
            max_new_tokens=max_new_tokens,
            capacity=lengths("answer", max_new_tokens, 8),
            interval=interval,
            sampling=sampling,
        )
        for progress in self.decode(ids, decoding, lengths):
            answers = as_answers(self.reader.tokenizer, progress, sampling)
            yield answers
            if all(answer.finished for row in answers for answer in row):
                return

    def _question(self, row: int, question: Prompt) -> tuple[int, ...]:
        """Token ids of a question after the row's prefix."""
        prompt = split_prompt(self.reader.prompt_parts(question, self.media[row]))
        if prompt.prefix != self.prefixes[row]:
            raise LayoutError(
                f"the question '{shown(question)}' places its media differently from the prefilled"
                " prompt; prefill with this question"
            )
        stretch_of(self.reader.model_config, self.prefix_tokens[row] + len(prompt.question))
        return prompt.question

    def _choice(self, row: int, choice: Choice) -> Options:
        question = self._question(row, choice.question)
        if not choice.options or not all(option.strip() for option in choice.options):
            raise LayoutError(
                f"the question '{shown(choice.question)}' needs options, none of them empty"
            )
        return question, [self.reader.answer_ids(option) for option in choice.options]


class Prefilling(PromptReader):
    """Reads media and runs them through the decoder; the base of `ElvaModel`."""

    engine: Engine

    def prefill(
        self,
        media: Sequence[Sequence[Visual]],
        *,
        prompts: Sequence[Prompt] | None = None,
        merging: MergingChoice = True,
        lengths: ChooseLength = GRID,
    ) -> Prefilled:
        """Runs the videos of several rows through the decoder, once for all questions about them.

        Args:
          media: the videos and images of each row, in order; () for none.
          prompts: per row, a question that says where its media stand; None: before every question.
          merging: whether the model's merging layers act, or others instead.
          lengths: chooses padded lengths.

        Raises:
          LayoutError: no rows, an empty prompt, or more tokens than RoPE can be scaled for.
          DataError: places that do not match the media.
        """
        if not media:
            raise LayoutError("nothing to do: the batch has no rows")
        prompts = prompts or ["?"] * len(media)
        parts = [self.prompt_parts(text, row) for text, row in zip(prompts, media, strict=True)]
        return self.prefill_parts(parts, media, merging=merging, lengths=lengths)

    def prefill_parts(
        self,
        parts: Sequence[Sequence[Text | Clip]],
        media: Sequence[Sequence[Visual]],
        *,
        merging: MergingChoice = True,
        lengths: ChooseLength = GRID,
    ) -> Prefilled:
        """`prefill` of rendered prompts; the clips of a row's parts are its media in order."""
        chosen = chosen_merging(merging, self.merging_profiles)
        return Prefilled.of(self, self.engine, parts, media, merging=chosen, lengths=lengths)


def as_answers(
    tokenizer: PreTrainedTokenizerBase, progress: Progress, sampling: Sampling
) -> list[list[Answer]]:
    """The answers of each row as far as they have been decoded."""

    def one(ids, ended):
        final = ended or progress.last
        text, stopped = visible(tokenizer, ids, sampling.stop, final=final)
        kept = ids[: tokens_before(tokenizer, ids, sampling.stop)] if stopped else ids
        return Answer(text=text, tokens=kept, finished=ended or stopped)

    return [
        [one(*answer) for answer in zip(tokens, ended, strict=True)]
        for tokens, ended in zip(progress.tokens, progress.ended, strict=True)
    ]


def pieces(answers: Iterable[Answer]) -> Iterator[str]:
    """The text that each of the growing answers adds to the one before."""
    shown = 0
    for answer in answers:
        if len(answer.text) > shown:
            yield answer.text[shown:]
            shown = len(answer.text)
