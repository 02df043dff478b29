"""A conversation about videos: every turn goes on from the keys and values of those before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from elva_jax.data import conversation
from elva_jax.inference import decode
from elva_jax.inference.batching import grid_length, split_prompt, text_tokens
from elva_jax.inference.model import GREEDY, Answer, Generator, Prefilled, check_question, pieces
from elva_jax.inference.sampling import Sampling
from elva_jax.video.clip import Visual
from elva_jax.video.layout import Clip, Text


class Chat:
    """One conversation.

    Args:
      generator: the model.
      merging: whether its merging layers act.
      max_new_tokens: longest answer.
      sampling: how tokens are chosen; the seed goes up by one a turn.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        merging: bool = True,
        max_new_tokens: int = 512,
        sampling: Sampling = GREEDY,
    ):
        self._generator = generator
        self._merging, self._most, self._sampling = merging, max_new_tokens, sampling
        self._parts: list[Text | Clip] = []  # the conversation so far, as the model reads it
        self._media: list[Visual] = []
        self._prefilled: Prefilled | None = None
        self._state: decode.State | None = None  # behind the last answer

    def ask(self, question: str, media: Sequence[Visual] = ()) -> Answer:
        """Asks a question, with more videos or images if any, and returns the answer.

        Raises:
          LayoutError: an empty question, or a conversation longer than RoPE can be stretched for.
          DataError: markers in the question that do not match its media.
        """
        *_, answer = self._turn(question, media)
        return answer

    def stream(self, question: str, media: Sequence[Visual] = ()) -> Iterator[str]:
        """As `ask`; the answer comes piece by piece. A turn whose answer is not read to its end never happened."""
        yield from pieces(self._turn(question, media))

    def _turn(self, question: str, media: Sequence[Visual]) -> Iterator[Answer]:
        generator = self._generator
        if self._parts:
            check_question(question)
            parts = conversation.follow_up(
                question, [item.clip for item in media], generator.tokenizer
            )
        else:
            parts = generator.prompt_parts(question, media)
        room = grid_length(self._most, 8)
        state, self._state = (
            self._state,
            None,
        )  # it is used up below; a turn that is broken off starts from the text again
        tokens = text_tokens(parts)
        if state is not None and not media and self._fits(state, len(tokens)):
            state = self._continue(state, tokens, room)
        else:
            everything, seen = [*self._parts, *parts], [*self._media, *media]
            self._prefilled = generator.prefill_parts(
                [everything], [seen], merging=self._merging, room=self._most
            )
            ids = split_prompt(everything).question
            state = generator.begin(self._prefilled, [[ids]], room, sampling=self._sampling)
        for answers, behind in generator.follow(
            self._prefilled, state, [1], self._most, room, self._sampling, 1
        ):
            answer, fed = answers[0][0], int(behind.step)
            yield answer
        # What a stop string cut off was fed already; the next turn must not see it.
        self._state = decode.forget(behind, fed - len(answer.tokens))
        self._parts += [*parts, *([Text(answer.tokens)] if answer.tokens else [])]
        self._media += media
        self._sampling = dataclasses.replace(self._sampling, seed=self._sampling.seed + 1)

    def _fits(self, state: decode.State, tokens: int) -> bool:
        """Whether so many more tokens and an answer stay within the length that the conversation was prefilled for."""
        return (
            int(state.position[0, 0]) + tokens + self._most
            <= self._prefilled.prefix.config.decoder.max_position
        )

    def _continue(self, state: decode.State, tokens: Sequence[int], room: int) -> decode.State:
        """Feeds the next question behind the last answer, in a larger tail where the old one is full."""
        queries = grid_length(len(tokens))
        needed = int(state.slot) + queries + room
        if needed > state.seen.shape[-1]:
            state = decode.grow(state, grid_length(needed))
        padded = np.zeros((1, 1, queries), np.int32)
        padded[0, 0, : len(tokens)] = tokens
        return self._generator.ask(
            self._prefilled, state, padded, np.full((1, 1), len(tokens), np.int32), self._sampling
        )
