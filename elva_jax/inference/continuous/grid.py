"""The bounded set of shapes that a continuous-batching engine compiles programs for.

    prefixes     lengths of the prefill, two per octave
    classes      lengths per layer of a prefilled prefix, one per octave, with and without merging
    questions    lengths of what follows a prefix
    capacities   T, tokens that a slot can hold: question and answer
    counts       R, slots of the running batch, with layouts (P, G): P prefixes, G slots of each

All are known before the first request, so `warm_up` can compile every program.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from elva_jax.config.schema import ModelConfig
from elva_jax.errors import LayoutError
from elva_jax.inference.continuous.requests import EngineSettings, GenerationRequest
from elva_jax.inference.long_context import most_tokens, stretch_of
from elva_jax.models.elva import layer_blocks

SMALLEST_CAPACITY, SMALLEST_QUESTION = 64, 32
FACTOR = 4  # between neighboring numbers of slots, questions and capacities

Class = tuple[int, ...]  # the padded length of a prefix in every layer
Layout = tuple[int, int]  # P prefixes, G slots of each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """The shapes of an engine; every field increases."""

    prefixes: tuple[int, ...]
    classes: tuple[Class, ...]
    questions: tuple[int, ...]
    capacities: tuple[int, ...]
    counts: tuple[int, ...]
    joins: tuple[int, ...]

    def layouts(self, count: int) -> tuple[Layout, ...]:
        """The layouts for `count` slots, the fewest prefixes first; the last one always fits."""
        found = {(1, count), (count, 1)}
        if count > FACTOR:
            found |= {(count // FACTOR, FACTOR), (count // 2, 2), (count // 2, FACTOR)}
        return tuple(sorted(found))

    def layout(self, count: int, users: Sequence[int]) -> Layout:
        """The first layout for prefixes with so many slots each; some may take several rows."""
        return next(
            (rows, groups)
            for rows, groups in self.layouts(count)
            if sum(-(-n // groups) for n in users) <= rows
        )

    def class_of(self, lengths: Sequence[int]) -> Class:
        """The smallest class that holds a prefix of these lengths per layer."""
        return next(c for c in self.classes if all(a <= b for a, b in zip(lengths, c, strict=True)))


def at_least(sizes: Sequence[int], needed: int) -> int:
    """The first of increasing sizes that is large enough.

    Raises:
      LayoutError: none is.
    """
    for size in sizes:
        if size >= needed:
            return size
    raise LayoutError(f"{needed} tokens, but this engine takes at most {sizes[-1]}")


def most_new_tokens(
    request: GenerationRequest, limits: EngineSettings, grid: Grid, config: ModelConfig
) -> int:
    """The most tokens that the answer to a request may have.

    Raises:
      LayoutError: the request is longer than the engine's settings or the model allow.
    """
    prompt = request.prompt
    for what, value, most in (
        ("the prompt up to its last video", prompt.prefix_tokens, grid.prefixes[-1]),
        ("the text after it", len(prompt.question), limits.question),
        ("max_new_tokens", request.max_new_tokens, limits.max_new_tokens),
    ):
        if value > most:
            raise LayoutError(f"{what}: {value} tokens, but this engine takes at most {most}")
    stretch_of(config, prompt.tokens)
    return min(request.max_new_tokens, most_tokens(config) - prompt.tokens + 1)


def make_grid(config: ModelConfig, settings: EngineSettings) -> Grid:
    """The grid of a model within an engine's limits."""
    context, smallest = max(settings.context, settings.smallest), settings.smallest
    capacity = -(-(settings.question + settings.max_new_tokens) // 16) * 16
    shorter = itertools.takewhile(lambda n: n < context, (smallest << n for n in itertools.count()))
    octaves = [*shorter, context]
    questions = set(_fractions(settings.question, SMALLEST_QUESTION))
    if context + capacity > config.max_position:  # answers may be fed again, after the question
        questions.add(capacity)
    return Grid(
        prefixes=_with_halves(octaves),
        classes=_classes(config, octaves, smallest),
        questions=tuple(sorted(questions)),
        capacities=_fractions(capacity, SMALLEST_CAPACITY),
        counts=_fractions(settings.slots, 1),
        joins=tuple(sorted({1, min(settings.joins, settings.slots)})),
    )


def _classes(config: ModelConfig, octaves: Sequence[int], smallest: int) -> tuple[Class, ...]:
    """For every length, a class without merging and one where each merging layer halves it."""
    found = {(length,) * config.num_layers for length in octaves}
    for length in octaves:
        lengths: list[int] = []
        for block in layer_blocks(config, merging=True):
            merges = 0 if block.merge is None else block.merge + 1
            lengths += [max(length >> merges, smallest)] * (block.stop - block.start)
        found.add(tuple(lengths))
    return tuple(sorted(found, key=lambda lengths: (sum(lengths), lengths)))


def _with_halves(octaves: Sequence[int]) -> tuple[int, ...]:
    """The lengths, and one between every two."""
    between = [(a + b) // 2 for a, b in itertools.pairwise(octaves)]
    return tuple(sorted({*octaves, *between}))


def _fractions(largest: int, smallest: int) -> tuple[int, ...]:
    """`largest` and what is left of it by FACTOR, FACTOR^2 … down to `smallest`."""
    sizes = [largest]
    while sizes[-1] // FACTOR >= smallest:
        sizes.append(sizes[-1] // FACTOR)
    return tuple(sorted(sizes))
