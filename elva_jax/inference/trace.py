"""An answer with all that it took: tokens around every merging layer, time, memory."""

from __future__ import annotations

import dataclasses
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from elva_jax.config.schema import ModelConfig
from elva_jax.inference.batching import split_prompt
from elva_jax.inference.fusion import FusionWeights
from elva_jax.inference.media import Prompt
from elva_jax.inference.prefilled import Answer, Prefilled
from elva_jax.inference.sampling import Sampling
from elva_jax.video.clip import Visual
from elva_jax.video.layout import clip_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeCount:
    """The tokens of a prompt around one merging layer."""

    before_layer: int
    before: int
    after: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediumFacts:
    """One video or image as the model read it.

    Attributes:
      frames: how many frames.
      sizes: (height, width) in pixels of these frames, each size once.
      fusion_weights: of each encoder of a MERV; None for other models, and for fusions without
        weights.
    """

    frames: int
    sizes: tuple[tuple[int, int], ...]
    fusion_weights: Mapping[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON; fusion weights only where there are some."""
        facts: dict[str, Any] = {"frames": self.frames, "sizes": self.sizes}
        if self.fusion_weights is not None:
            facts["fusion_weights"] = {
                name: round(weight, 6) for name, weight in self.fusion_weights.items()
            }
        return facts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """An answer and what it took; `ElvaModel.trace` and `Chat.trace` make one.

    Attributes:
      answer: the answer.
      prompt_tokens: tokens of the whole prompt before any merging; in a chat, of the conversation.
      visual_tokens: those that stand for frames, rows and patches.
      merges: tokens of the prompt before and after each merging layer.
      seconds: for reading ("read"), the prompt up to its last frame ("prefill") and the rest of it
        with the answer ("decode"); and the part of them in which programs were compiled or read
        from the compilation cache ("compile").
      device_peak: most bytes in use on the fullest device since the process started; None where the
        device does not say, such as a CPU.
      host_peak: most resident bytes of the process since it started.
      media: what was read, in order.
      sampling: how tokens were chosen.
    """

    answer: Answer
    prompt_tokens: int
    visual_tokens: int
    merges: tuple[MergeCount, ...]
    seconds: Mapping[str, float]
    device_peak: int | None
    host_peak: int
    media: tuple[MediumFacts, ...]
    sampling: Sampling

    @property
    def finish_reason(self) -> str:
        """As in OpenAI's API: "stop", or "length" where the answer was cut off."""
        return "stop" if self.answer.finished else "length"

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the answer per second of decoding."""
        return len(self.answer.tokens) / max(self.seconds["decode"], 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """The trace as JSON, as `elva generate --json` prints it."""
        return {
            "answer": self.answer.text,
            "finish_reason": self.finish_reason,
            "tokens": {
                "prompt": self.prompt_tokens,
                "visual": self.visual_tokens,
                "merging": [dataclasses.asdict(count) for count in self.merges],
                "answer": len(self.answer.tokens),
            },
            "seconds": {
                **{name: round(seconds, 6) for name, seconds in self.seconds.items()},
                "tokens_per_second": round(self.tokens_per_second, 3),
            },
            "memory": {"device_peak": self.device_peak, "host_peak": self.host_peak},
            "media": [medium.to_dict() for medium in self.media],
            "sampling": dataclasses.asdict(self.sampling),
        }


def trace_of(
    prefilled: Prefilled,
    answer: Answer,
    prompt_tokens: int,
    seconds: Mapping[str, float],
    sampling: Sampling,
) -> Trace:
    """The trace of an answer about the only row of a prefilled batch.

    Args:
      prefilled: the prompt up to its last frame.
      answer: what was decoded after it.
      prompt_tokens: tokens of the whole prompt before any merging.
      seconds: by stage, from `stages.measured`.
      sampling: how tokens were chosen.
    """
    media = prefilled.media[0]
    return Trace(
        answer=answer,
        prompt_tokens=prompt_tokens,
        visual_tokens=sum(clip_tokens(visual.clip) for visual in media),
        merges=tuple(_merges(prefilled, prompt_tokens)),
        seconds=dict(seconds),
        device_peak=device_peak(),
        host_peak=host_peak(),
        media=tuple(
            _facts(visual, prefilled.reader.model_config, weights)
            for visual, weights in zip(media, prefilled.fusion_weights[0], strict=True)
        ),
        sampling=sampling,
    )


def prompt_tokens(prefilled: Prefilled, question: Prompt) -> int:
    """Tokens of the prompt that asks `question` about the only row, before any merging."""
    return split_prompt(prefilled.reader.prompt_parts(question, prefilled.media[0])).tokens


def _merges(prefilled: Prefilled, prompt_tokens: int) -> Iterator[MergeCount]:
    """The counts of the whole prompt, of which only the part before its question merges."""
    before, after_prefix = prompt_tokens, prompt_tokens - prefilled.prefix_tokens[0]
    for block, tokens in zip(prefilled.prefix.blocks, prefilled.prefix.tokens[:, 0], strict=True):
        left = int(tokens) + after_prefix
        if block.merge is not None:
            yield MergeCount(before_layer=block.start, before=before, after=left)
        before = left


def _facts(visual: Visual, config: ModelConfig, weights: FusionWeights | None) -> MediumFacts:
    if config.encoders:  # every encoder sees squares of its own
        frames = config.merv.num_frames
        sizes = dict.fromkeys((tower.image_size,) * 2 for _, tower in config.encoders)
    else:
        frames, side = len(visual.clip.grids), round((visual.patches.shape[1] / 3) ** 0.5)
        grids = visual.clip.grids
        sizes = dict.fromkeys((rows * side, columns * side) for rows, columns in grids)
    return MediumFacts(frames=frames, sizes=tuple(sizes), fusion_weights=weights)


def device_peak() -> int | None:
    """The most bytes that were in use on any device of this process; None if unknown."""
    stats: Sequence[Mapping[str, Any]] = [d.memory_stats() or {} for d in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    return max(peaks, default=None)


def host_peak() -> int:
    """The most resident bytes of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
