"""What a run will take, before it starts: requests, tokens and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from elva_jax.errors import VideoError
from elva_jax.tools.recaption import media
from elva_jax.tools.recaption.manifest import Item
from elva_jax.tools.recaption.prompts import prompt

SAMPLE = 32  # media of each kind that are looked into
CHARACTERS_A_TOKEN = 4  # of English, about
CAPTION_TOKENS = {"image": 250, "video": 350}  # a guess of what a detailed description takes
# Paper, recaptioning: 3M images in 2 days and 3M videos in 3 days, each on 16 A100 with Qwen2-VL-7B.
PAPER_GPU_SECONDS = {"image": 2 * 86400 * 16 / 3e6, "video": 3 * 86400 * 16 / 3e6}


class Estimate(NamedTuple):
    """Of all items, extrapolated from a sample of them."""

    requests: dict[str, int]  # of each kind
    prompt_tokens: int
    new_tokens: int
    gpu_seconds: float  # at the paper's rate


def estimate(
    items: Sequence[Item], *, max_frames: int, max_new_tokens: int, frames_per_token: int
) -> Estimate:
    """Estimates a run over `items`, looking into a few that are evenly spread; what cannot be read counts as asked for nothing.

    Args:
      items: what is left to do.
      max_frames: of a video, at most.
      max_new_tokens: of an answer, at most.
      frames_per_token: frames of a video that a visual token covers.
    """
    requests, prompt_tokens, new_tokens, seconds = {}, 0.0, 0.0, 0.0
    for kind in ("image", "video"):
        group = [item for item in items if item.kind == kind]
        sample = group[:: -(-len(group) // SAMPLE) or 1]
        requests[kind] = len(group)
        if not group:
            continue
        tokens = [
            _prompt_tokens(item, max_frames, 1 if kind == "image" else frames_per_token)
            for item in sample
        ]
        readable = [count for count in tokens if count is not None]
        share = len(readable) / len(sample)
        prompt_tokens += len(group) * sum(readable) / len(sample)
        new_tokens += len(group) * share * min(CAPTION_TOKENS[kind], max_new_tokens)
        seconds += len(group) * share * PAPER_GPU_SECONDS[kind]
    return Estimate(requests, round(prompt_tokens), round(new_tokens), seconds)


def _prompt_tokens(item: Item, max_frames: int, frames_per_token: int) -> int | None:
    try:
        visual = media.measure(item, max_frames).tokens(frames_per_token)
    except VideoError:
        return None
    return visual + len(prompt(item)) // CHARACTERS_A_TOKEN


def duration(seconds: float) -> str:
    """A length of time for people."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
