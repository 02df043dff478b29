"""Suggests what to change in a case that does not fit a card, and how many frames fit one.

Caches and weights are computed for every candidate. Activations are in proportion to the padded
length, or those of any prompt where it is prefilled in chunks, so candidates are estimates; the
command prints "about".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from elva_jax.inference.chunked_prefill import chunk_for
from elva_jax.inference.long_context import FACTORS
from elva_jax.inference.quantization import SCHEMES
from elva_jax.tools.plan.hardware import GIB
from elva_jax.tools.plan.inference import (
    Memory,
    chunk_activations,
    memory_of,
    prefix_bytes,
    suffix_bytes,
)
from elva_jax.tools.plan.inference_case import Case
from elva_jax.utils.numbers import MOST_FRAMES

ANY_LENGTH = 2**18  # tokens of a cache to which a question attends in tiles, whatever the model


def estimate(case: Case, known: Case, memory: Memory) -> int:
    """Bytes of a case from those of one with the same weights, without compiling it."""
    share = case.rows / known.rows
    if chunk_for(case.length, None) is not None:
        activations = chunk_activations(dataclasses.replace(case, batch=known.batch), ANY_LENGTH)
    else:
        activations = memory.activations
        share *= case.length / (chunk_for(known.length, None) or known.length)
    caches = prefix_bytes(case) + suffix_bytes(case)
    return memory.weights + caches + round(share * activations)


def most_frames(case: Case, memory: Memory, usable: float) -> int:
    """The most frames of the case's sizes that fit; 0: not one does.

    RoPE cannot be scaled for more than `FACTORS[-1]` times the model's longest sequence.
    """
    longest = FACTORS[-1] * case.model.max_position
    if case.model.encoders:  # MERV sees as many frames of every video
        return case.model.merv.num_frames if estimate(case, case, memory) <= usable else 0

    def fits(frames: int) -> bool:
        other = with_frames(case, frames)
        return other.tokens <= longest and estimate(other, case, memory) <= usable

    return _most(fits, 1, min(MOST_FRAMES, longest))


def with_frames(case: Case, frames: int) -> Case:
    """The case with another number of frames, high and low ones in the same proportion."""
    hybrid = case.hybrid
    if hybrid is not None:
        high = round(frames * hybrid.high_frames / hybrid.frames)
        hybrid = dataclasses.replace(hybrid, high_frames=high, low_frames=frames - high)
    return dataclasses.replace(case, frames=frames, hybrid=hybrid)


def advice(case: Case, memory: Memory, usable: float) -> list[str]:
    """One line per change with which the case fits; if there is none, the nearest ones."""
    found = [*_weights(case, usable), *_video(case, memory, usable)]
    if fitting := [line for line, fits in found if fits]:
        return fitting
    smallest = dataclasses.replace(case, weights=SCHEMES[-1])
    taken = memory_of(smallest)
    both = [line for line, fits in _video(smallest, taken, usable) if fits]
    if both:
        return [f"--weights {smallest.weights} and {line}" for line in both]
    return [*(line for line, _ in found), *_mesh(case, memory, usable)]


def _weights(case: Case, usable: float) -> Iterator[tuple[str, bool]]:
    narrower = SCHEMES[SCHEMES.index(case.weights) + 1 :] if case.weights in SCHEMES else SCHEMES
    for scheme in narrower:
        total = memory_of(dataclasses.replace(case, weights=scheme)).total
        yield f"--weights {scheme}: {total / GIB:.1f} GiB", total <= usable


def _video(case: Case, memory: Memory, usable: float) -> Iterator[tuple[str, bool]]:
    """Changes of the questions; those that cannot make it fit are left out."""
    if not case.merging and case.model.merge_layers:
        merged = dataclasses.replace(case, merging=True)
        total = estimate(merged, case, memory)
        yield f"merging: about {total / GIB:.1f} GiB", total <= usable
    if case.batch > 1:
        rows = _most(
            lambda n: estimate(dataclasses.replace(case, batch=n), case, memory) <= usable,
            1,
            case.batch - 1,
        )
        if rows:
            yield f"--batch {rows}: the most that fit", True
    frames = min(most_frames(case, memory, usable), case.frames - 1)
    if frames > 0:
        yield f"--frames {frames}: about the most that fit", True
    if case.hybrid is not None:
        return
    patch = case.model.patch_size
    sides = _most(
        lambda n: estimate(dataclasses.replace(case, edge=n * patch), case, memory) <= usable,
        1,
        case.edge // patch - 1,
    )
    if sides:
        yield f"--edge {sides * patch}: about the largest that fits", True


def _mesh(case: Case, memory: Memory, usable: float) -> Iterator[str]:
    for devices in (2, 4, 8):
        if case.model.num_heads % devices == 0 and memory.total / devices <= usable:
            yield (
                f"{devices} such cards, --mesh tensor={devices}:"
                f" about {memory.total / devices / GIB:.1f} GiB of each"
            )
            return


def _most(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest n in low … high that fits, of which all smaller ones do; 0: none."""
    found = 0
    while low <= high:
        middle = (low + high) // 2
        if fits(middle):
            found, low = middle, middle + 1
        else:
            high = middle - 1
    return found
