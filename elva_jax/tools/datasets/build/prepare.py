"""Measures and packs one record of a source; a record that fails gives the reason instead."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from elva_jax.data import conversation, tokenizer
from elva_jax.data.example import Example
from elva_jax.data.record import to_record
from elva_jax.data.safe_read import Rejected, read_safely
from elva_jax.errors import RecordError
from elva_jax.tools.datasets.build import media
from elva_jax.tools.datasets.build.statistics import Measured
from elva_jax.video.layout import Clip, Text, clip_tokens
from elva_jax.video.resize import target_size

TIME_LIMIT = 600.0  # seconds per record, including transcoding


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """How tokens are counted: as a stage would read the data, with a tokenizer for the text."""

    frames: int = 32  # most frames per video
    longest_edge: int = 448  # pixels
    patch_size: int = 28  # pixels
    tokenizer: str = ""  # folder or hub name; "": text is not counted


class Preparation:
    """Prepares the examples of a source one by one; worker processes get a pickled copy.

    Args:
      examples: an opened source.
      token_settings: how tokens are counted.
      longest_edge: pixels to which larger media are transcoded; 0: no media are.
    """

    def __init__(
        self, examples: Sequence[Example], token_settings: TokenSettings, longest_edge: int = 0
    ):
        self.examples, self.token_settings = examples, token_settings
        self.longest_edge = longest_edge

    def measure(self, index: int) -> Measured | Rejected:
        """Measures an example as it is, without packing it."""
        return self._guard(index, self._measure)

    def pack(self, index: int) -> tuple[dict[str, Any], Measured] | Rejected:
        """Packs an example as a record of a built data set."""
        return self._guard(index, self._pack)

    def _guard(self, index: int, work: Callable[[Example], Any]) -> Any:
        def prepare(example: Example) -> Any:
            conversation.check(example)
            conversation.split_questions(example, len(example.media))
            return work(example)

        return read_safely(f"record {index}", TIME_LIMIT, lambda: self.examples[index], prepare)

    def _measure(self, example: Example) -> Measured:
        sizes = [media.probe(medium, example.key) for medium in example.media]
        length = sum(
            len(m.source)
            if isinstance(m.source, bytes)
            else sum(map(_bytes_under, media.paths_of(m)))
            for m in example.media
        )
        return self._measured(example, sizes, length)

    def _pack(self, example: Example) -> tuple[dict[str, Any], Measured]:
        packed = [media.pack(medium, self.longest_edge, example.key) for medium in example.media]
        length = sum(len(data) for data, _ in packed)
        if length > media.LARGEST:
            limit = f"more than {media.LARGEST >> 20} MiB together, the limit of a record"
            raise RecordError(example.key, f"its media have {limit}")
        record = to_record(example, [data for data, _ in packed])
        return record, self._measured(example, [size for _, size in packed], length)

    def _measured(self, example: Example, sizes: list[media.Size], length: int) -> Measured:
        clips = [self._clip(size) for size in sizes]
        text = None
        if name := self.token_settings.tokenizer:
            parts = conversation.render(example, _tokenizer(name), clips, example.system)
            text = sum(len(part.token_ids) for part in parts if isinstance(part, Text))
        return Measured(
            kinds=[medium.kind for medium in example.media],
            sizes=sizes,
            turns=len(example.turns),
            bytes=length,
            text_tokens=text,
            visual_tokens=sum(clip_tokens(clip) for clip in clips),
        )

    def _clip(self, size: media.Size) -> Clip:
        edge, patch = self.token_settings.longest_edge, self.token_settings.patch_size
        height, width = target_size(size.height, size.width, longest_edge=edge, patch_size=patch)
        frames = min(size.frames, self.token_settings.frames)
        return Clip([(height // patch, width // patch)] * frames)


def _bytes_under(path: Path) -> int:
    """The size of a file, or of all files of a folder of frames."""
    files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


@functools.cache
def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    return tokenizer.load(name)
