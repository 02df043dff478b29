"""Estimates a run before it starts: requests, tokens and time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from elva_jax.errors import VideoError
from elva_jax.tools.recaption import media
from elva_jax.tools.recaption.engine import Kind
from elva_jax.tools.recaption.manifest import Item
from elva_jax.tools.recaption.prompts import prompt

SAMPLE = 32  # media of each kind that are measured
CHARACTERS_PER_TOKEN = 4  # of English, roughly
CAPTION_TOKENS: dict[Kind, int] = {"image": 250, "video": 350}  # guesses for detailed captions
# Paper, recaptioning: 3M images in 2 days and 3M videos in 3 days, on 16 A100 with Qwen2-VL-7B.
PAPER_GPU_SECONDS: dict[Kind, float] = {
    "image": 2 * 86400 * 16 / 3e6,
    "video": 3 * 86400 * 16 / 3e6,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Totals over all items, extrapolated from a sample of them."""

    requests: dict[Kind, int]
    prompt_tokens: int
    new_tokens: int
    gpu_seconds: float  # at the paper's rate


def estimate(
    items: Sequence[Item], *, max_frames: int, max_new_tokens: int, frames_per_token: int
) -> Estimate:
    """Estimates a run from a few evenly spread items; unreadable ones count as no request.

    Args:
      items: the items still to be captioned.
      max_frames: most frames per video.
      max_new_tokens: most tokens per answer.
      frames_per_token: frames of a video that one visual token covers.
    """
    requests: dict[Kind, int] = {}
    prompt_tokens = new_tokens = seconds = 0.0
    per_token: dict[Kind, int] = {"image": 1, "video": frames_per_token}
    for kind in per_token:
        group = [item for item in items if item.kind == kind]
        requests[kind] = len(group)
        if not group:
            continue
        sample = group[:: -(-len(group) // SAMPLE)]
        tokens = [_prompt_tokens(item, max_frames, per_token[kind]) for item in sample]
        readable = [count for count in tokens if count is not None]
        share = len(readable) / len(sample)
        prompt_tokens += len(group) * sum(readable) / len(sample)
        new_tokens += len(group) * share * min(CAPTION_TOKENS[kind], max_new_tokens)
        seconds += len(group) * share * PAPER_GPU_SECONDS[kind]
    return Estimate(
        requests=requests,
        prompt_tokens=round(prompt_tokens),
        new_tokens=round(new_tokens),
        gpu_seconds=seconds,
    )


def _prompt_tokens(item: Item, max_frames: int, frames_per_token: int) -> int | None:
    try:
        visual = media.measure(item, max_frames).tokens(frames_per_token)
    except VideoError:
        return None
    return visual + len(prompt(item)) // CHARACTERS_PER_TOKEN


def duration(seconds: float) -> str:
    """Formats a length of time for a reader."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
