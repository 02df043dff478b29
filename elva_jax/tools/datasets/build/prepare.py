"""One record of a source, measured and packed; what goes wrong with it becomes a reason."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from elva_jax.data import conversation
from elva_jax.data.example import Example
from elva_jax.data.record import to_record
from elva_jax.data.safe_read import Rejected, attempt
from elva_jax.errors import RecordError
from elva_jax.tools.datasets.build import media
from elva_jax.tools.datasets.build.statistics import Measured
from elva_jax.video.layout import Clip, Text, clip_tokens
from elva_jax.video.resize import target_size

TIME_LIMIT = 600.0  # seconds that a record may take, transcoding included


class Counting(NamedTuple):
    """What tokens are counted for: a stage's reading of the data, and its tokenizer."""

    frames: int = 32  # most frames of a video
    longest_edge: int = 448  # pixels
    patch_size: int = 28  # pixels
    tokenizer: str = ""  # folder or hub name; "": text is not counted


class Preparation:
    """Takes the examples of a source one by one; picklable, so that worker processes can hold one.

    Args:
      examples: an opened source.
      counting: what tokens are counted for.
      longest_edge: pixels to which larger media are transcoded; 0: none is.
    """

    def __init__(self, examples: Sequence[Example], counting: Counting, longest_edge: int = 0):
        self.examples, self.counting, self.longest_edge = examples, counting, longest_edge

    def measure(self, index: int) -> Measured | Rejected:
        """The index-th example as it is, without packing it."""
        return self._guard(index, self._measure)

    def pack(self, index: int) -> tuple[dict[str, Any], Measured] | Rejected:
        """The index-th example as a record of a built data set."""
        return self._guard(index, self._pack)

    def _guard(self, index: int, work) -> Any:
        def prepare(example: Example) -> Any:
            conversation.check(example)
            conversation.split_questions(example, len(example.media))
            return work(example)

        return attempt(f"record {index}", TIME_LIMIT, lambda: self.examples[index], prepare)

    def _measure(self, example: Example) -> Measured:
        sizes = [media.probe(medium, example.key) for medium in example.media]
        lengths = [
            len(m.source) if isinstance(m.source, bytes) else _bytes_under(Path(m.source))
            for m in example.media
        ]
        return self._measured(example, sizes, sum(lengths))

    def _pack(self, example: Example) -> tuple[dict[str, Any], Measured]:
        packed = [media.pack(medium, self.longest_edge, example.key) for medium in example.media]
        length = sum(len(data) for data, _ in packed)
        if length > media.LARGEST:
            raise RecordError(
                example.key,
                f"its media have more than {media.LARGEST >> 20} MiB together, the limit of a record",
            )
        return to_record(example, [data for data, _ in packed]), self._measured(
            example, [size for _, size in packed], length
        )

    def _measured(self, example: Example, sizes: list[media.Size], length: int) -> Measured:
        clips = [self._clip(size) for size in sizes]
        text = None
        if self.counting.tokenizer:
            parts = conversation.render(
                example, _tokenizer(self.counting.tokenizer), clips, example.system
            )
            text = sum(len(part.token_ids) for part in parts if isinstance(part, Text))
        visual = sum(clip_tokens(clip) for clip in clips)
        return Measured(
            [m.kind for m in example.media], sizes, len(example.turns), length, text, visual
        )

    def _clip(self, size: media.Size) -> Clip:
        edge, patch = self.counting.longest_edge, self.counting.patch_size
        height, width = target_size(size.height, size.width, longest_edge=edge, patch_size=patch)
        return Clip([(height // patch, width // patch)] * min(size.frames, self.counting.frames))


def _bytes_under(path: Path) -> int:
    """Of a file, or of a folder of frames."""
    return (
        sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        if path.is_dir()
        else path.stat().st_size
    )


@functools.cache
def _tokenizer(name: str):
    from elva_jax.data import tokenizer

    return tokenizer.load(name)
