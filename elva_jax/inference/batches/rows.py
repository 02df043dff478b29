"""Rows: queries about the same media that share one prefilled prompt prefix."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

from elva_jax.inference.batches.queries import Parts, Query
from elva_jax.inference.batching import grid_batch
from elva_jax.ops.merging import Merging
from elva_jax.video.clip import Visual
from elva_jax.video.layout import Text

MOST_QUERIES = 16  # of a row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of `ElvaModel.prefill_parts`.

    Attributes:
      queries: those that the prefix serves, of one kind.
      visuals: their media.
    """

    queries: tuple[Query, ...]
    visuals: tuple[Visual, ...]

    @property
    def longest(self) -> Query:
        """The query with the longest prompt."""
        return max(self.queries, key=lambda query: len(query.question))

    @property
    def parts(self) -> Parts:
        """The longest prompt."""
        return self.longest.parts

    @property
    def prefix_tokens(self) -> int:
        """Length of the prefix, before any merging."""
        return self.queries[0].prefix_tokens

    @property
    def width(self) -> int:
        """Columns of a batch that the row needs, a power of two."""
        return grid_batch(len(self.queries))

    @property
    def merging(self) -> bool | Merging | None:
        """That of all its queries."""
        return self.queries[0].merging

    @property
    def kind(self) -> Hashable:
        """Only rows with the same one are asked together."""
        return self.queries[0].kind

    @property
    def program(self) -> Hashable:
        """Equal for rows that the same compiled programs may serve."""
        return self.queries[0].program


def rows_of(queries: Sequence[Query], visuals: tuple[Visual, ...], most: int) -> list[Row]:
    """The rows of queries about the same media, with at most `most` queries each."""
    alike: dict[Hashable, list[Query]] = {}
    for query in queries:
        texts = tuple(
            tuple(part.token_ids) if isinstance(part, Text) else None for part in query.prefix
        )
        alike.setdefault((query.kind, texts), []).append(query)
    size = min(most, MOST_QUERIES)
    return [
        Row(queries=tuple(found[start : start + size]), visuals=visuals)
        for found in alike.values()
        for start in range(0, len(found), size)
    ]
