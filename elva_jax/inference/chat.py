"""A conversation about videos: every turn continues from the keys and values of those before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from elva_jax.data import conversation
from elva_jax.data.chat_tokens import added_ids, plain_ids
from elva_jax.inference import decode
from elva_jax.inference.batching import grid_length, split_prompt, text_tokens
from elva_jax.inference.engine import Decoding, Progress
from elva_jax.inference.long_context import longest_of, most_tokens, stretch_of
from elva_jax.inference.media import Media, Prompt, as_list
from elva_jax.inference.prefilled import Answer, Prefilled, Prefilling, as_answers, pieces
from elva_jax.inference.request_settings import MergingChoice, chosen_merging
from elva_jax.inference.sampling import GREEDY, Sampling
from elva_jax.inference.stages import measured
from elva_jax.inference.trace import Trace, trace_of
from elva_jax.parallel.host_arrays import to_host
from elva_jax.utils import numbers
from elva_jax.video.clip import Visual
from elva_jax.video.hybrid import Hybrid
from elva_jax.video.layout import Clip, Text, part_tokens


class Chat:
    """One conversation; `ElvaModel.chat` starts it.

    Args:
      model: who answers.
      media: what the first question is about.
      max_new_tokens: longest answer.
      merging: whether the model's merging layers act, or others instead, or a name of theirs.
      frames: how videos are sampled.
      sampling: how tokens are chosen; the seed goes up by one per turn.
    """

    def __init__(
        self,
        model: Prefilling,
        media: Media = None,
        *,
        max_new_tokens: int = 512,
        merging: MergingChoice = True,
        frames: int | Hybrid | None = None,
        sampling: Sampling = GREEDY,
    ) -> None:
        numbers.TOKENS.check("max_new_tokens", max_new_tokens)
        self._model, self._frames = model, frames
        self._merging = chosen_merging(merging, model.merging_profiles)
        self._max_new_tokens, self._sampling = max_new_tokens, sampling
        self._next = model.read_all(media, frames)  # media that no question has been asked about
        self._parts: list[Text | Clip] = []  # the conversation so far, as the model reads it
        self._media: list[Visual] = []
        self._prompt_tokens = 0  # of the conversation up to the last answer, before any merging
        self._prefilled: Prefilled | None = None
        self._state: decode.DecodeState | None = None  # after the last answer

    def ask(self, question: Prompt, media: Media = None) -> Answer:
        """Asks a question, about more videos or images if any, and returns the answer.

        Control tokens that the model writes itself are text in the turns after.

        Raises:
          LayoutError: an empty question, or a conversation longer than RoPE can be scaled for.
          DataError: places in the question that do not match its media.
          VideoError: media that cannot be read.
        """
        *_, answer = self._turn(question, media)
        return answer

    def stream(self, question: Prompt, media: Media = None) -> Iterator[str]:
        """As `ask`, piece by piece.

        A turn whose answer is not read to its end leaves the conversation as it was.
        """
        yield from pieces(self._turn(question, media))

    def trace(self, question: Prompt, media: Media = None) -> Trace:
        """As `ask`, with tokens before and after each merging layer, time and memory."""
        sampling = self._sampling
        with measured() as seconds:
            answer = self.ask(question, media)
        prefilled = cast(Prefilled, self._prefilled)
        return trace_of(prefilled, answer, self._prompt_tokens, seconds, sampling)

    def _turn(self, question: Prompt, media: Media) -> Iterator[Answer]:
        model = self._model
        given = (*self._next, *as_list(media))
        new, question = model.read_prompt(question, given, self._frames)
        if self._parts:
            clips = [item.clip for item in new]
            asked = model.question(question)
            parts = conversation.follow_up(asked, clips, model.tokenizer, model.form)
        else:
            parts = model.prompt_parts(question, new)
        self._prompt_tokens = sum(map(part_tokens, [*self._parts, *parts]))
        for answer in self._decode(parts, new):
            yield answer
        said = answer.tokens
        if not added_ids(model.tokenizer).isdisjoint(said):
            # The next turn reads the conversation again, with the text that was shown.
            said, self._state = plain_ids(model.tokenizer, answer.text), None
        self._parts += [*parts, *([Text(said)] if said else [])]
        self._media += new
        self._next = ()
        self._sampling = dataclasses.replace(self._sampling, seed=self._sampling.seed + 1)

    def _decode(self, parts: Sequence[Text | Clip], new: Sequence[Visual]) -> Iterator[Answer]:
        """The answer to a question as it grows; after it, the state is ready for the next turn.

        Where the conversation becomes longer than RoPE is scaled for, it is read again.
        """
        engine, tokens = self._model.engine, text_tokens(parts)
        said: tuple[int, ...] = ()
        # Below the state is used up; a turn that is broken off starts from the text again.
        prefilled, state, self._state = self._prefilled, self._state, None
        if new or not self._fits(prefilled, state, len(tokens)):
            prefilled = state = None
        while True:
            decoding = self._decoding(self._max_new_tokens - len(said))
            if prefilled is None or state is None:
                whole = [*parts, *([Text(said)] if said else [])]
                self._prefilled = prefilled = self._prefill(whole, new)
                state = self._start(prefilled, [*self._parts, *whole], decoding, len(said))
            else:
                state = self._continue(prefilled, state, tokens, decoding)
            length = int(to_host(state.position)[0, 0])
            choices = longest_of(self._model.model_config, _stretch(prefilled)) - length + 1
            room = self._longest - (length - len(said)) + 1
            decoding = self._decoding(min(decoding.max_new_tokens, choices))
            for progress in engine.decode(prefilled.prefix, state, [1], decoding):
                answer = self._answer(progress, said, choices, room)
                state = progress.state
                yield answer
                if answer.finished:
                    break
            if answer.finished or len(answer.tokens) >= min(self._max_new_tokens, room):
                break
            said, state = answer.tokens, None
        # A stop string may have cut off tokens that were fed; the next turn must not see them.
        if len(answer.tokens) >= len(said):
            self._state = decode.rollback(state, int(to_host(state.step)) - len(answer.tokens))

    def _answer(self, progress: Progress, said: tuple[int, ...], choices: int, room: int) -> Answer:
        """The answer with what is new after `said`, of which the first `choices` choices count.

        The whole answer has at most `room` tokens.
        """
        ((new,),), ((ended,),) = progress.tokens, progress.ended
        tokens = said + new
        whole = dataclasses.replace(
            progress,
            tokens=[[tokens]],
            ended=[[ended and len(new) < choices]],
            last=len(tokens) >= min(self._max_new_tokens, room),
        )
        return as_answers(self._model.tokenizer, whole, self._sampling)[0][0]

    def _decoding(self, most: int) -> Decoding:
        return Decoding(
            max_new_tokens=most,
            capacity=grid_length(self._max_new_tokens, 8),
            interval=1,
            sampling=self._sampling,
        )

    @property
    def _longest(self) -> int:
        """The most tokens that may precede another one."""
        return most_tokens(self._model.model_config)

    def _fits(
        self, prefilled: Prefilled | None, state: decode.DecodeState | None, tokens: int
    ) -> bool:
        """Whether a question can follow what was prefilled, with RoPE scaled as it was there."""
        if prefilled is None or state is None:
            return False
        length = int(to_host(state.position)[0, 0]) + tokens
        return stretch_of(self._model.model_config, length) == _stretch(prefilled)

    def _prefill(self, parts: Sequence[Text | Clip], media: Sequence[Visual]) -> Prefilled:
        """Reads the whole conversation, up to the next question."""
        return self._model.prefill_parts(
            [[*self._parts, *parts]], [[*self._media, *media]], merging=self._merging
        )

    def _start(
        self, prefilled: Prefilled, parts: Sequence[Text | Clip], decoding: Decoding, step: int
    ) -> decode.DecodeState:
        """Feeds the text after the last video, which ends with `step` tokens of the answer."""
        questions = [[split_prompt(parts).question]]
        return self._model.engine.start(
            prefilled.prefix, questions, decoding, prefix_parts=prefilled.prefixes, step=step
        )

    def _continue(
        self,
        prefilled: Prefilled,
        state: decode.DecodeState,
        tokens: Sequence[int],
        decoding: Decoding,
    ) -> decode.DecodeState:
        """Feeds the next question after the last answer; a full suffix cache grows first."""
        queries = grid_length(len(tokens))
        needed = int(to_host(state.slot)) + queries + decoding.capacity
        if needed > state.filled.shape[-1]:
            state = decode.grow(state, grid_length(needed))
        padded = np.zeros((1, 1, queries), np.int32)
        padded[0, 0, : len(tokens)] = tokens
        length = np.full((1, 1), len(tokens), np.int32)
        return self._model.engine.feed(prefilled.prefix, state, padded, length, decoding.sampling)


def _stretch(prefilled: Prefilled) -> int:
    """How RoPE is scaled for the only row."""
    return int(prefilled.prefix.stretch[0])
