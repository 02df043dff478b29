"""Rows of videos whose keys and values are on the devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Self

from elva_jax.inference.batching import ChooseLength, split_prompt
from elva_jax.inference.engine import Engine
from elva_jax.inference.long_context import stretch_of
from elva_jax.inference.prefill import Prefix
from elva_jax.inference.prompts import PromptReader
from elva_jax.ops.merging import Merging
from elva_jax.video.clip import Visual
from elva_jax.video.layout import Clip, Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefilledRows:
    """Rows of videos after prefill, for questions given as token ids."""

    reader: PromptReader
    engine: Engine
    media: tuple[tuple[Visual, ...], ...]  # of each row
    prefixes: tuple[tuple[Text | Clip, ...], ...]  # of each row: chat header and clips
    prefix_tokens: tuple[int, ...]  # of each row, before any merging
    prefix: Prefix  # of grid_batch(rows) rows
    merging: bool | Merging  # as it was prefilled with

    @classmethod
    def of(
        cls,
        reader: PromptReader,
        engine: Engine,
        parts: Sequence[Sequence[Text | Clip]],
        media: Sequence[Sequence[Visual]],
        *,
        merging: bool | Merging,
        lengths: ChooseLength,
    ) -> Self:
        """Runs rendered prompts up to their questions; RoPE is scaled for the length of each.

        Args:
          reader: rendered them.
          engine: holds the weights.
          parts: texts and clips of each row.
          media: the clips of each row, in order.
          merging: whether the model's merging layers act, or others instead.
          lengths: chooses padded lengths.
        """
        prompts = [split_prompt(row) for row in parts]
        stretch = [stretch_of(reader.model_config, prompt.tokens) for prompt in prompts]
        rows = reader.rows([prompt.prefix for prompt in prompts], media, lengths, stretch)
        return cls(
            reader=reader,
            engine=engine,
            media=tuple(map(tuple, media)),
            prefixes=tuple(prompt.prefix for prompt in prompts),
            prefix_tokens=tuple(prompt.prefix_tokens for prompt in prompts),
            prefix=engine.prefill(rows, merging=merging, lengths=lengths),
            merging=merging,
        )

    def again(
        self, rows: Sequence[int], texts: Sequence[Sequence[int]], lengths: ChooseLength
    ) -> Self:
        """Some of the rows, prefilled for the lengths that they have with texts after them."""
        parts = [
            [*self.prefixes[row], Text(tuple(text))] for row, text in zip(rows, texts, strict=True)
        ]
        media = [self.media[row] for row in rows]
        return self.of(
            self.reader, self.engine, parts, media, merging=self.merging, lengths=lengths
        )
