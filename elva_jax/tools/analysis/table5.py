"""The FLOPs of Table 5: the paper's figures, its accounting, and the cost of this code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from elva_jax.config.merv import clip_tokens
from elva_jax.config.schema import ModelConfig
from elva_jax.inference.batching import grid_length
from elva_jax.models import flops
from elva_jax.models.elva import with_merging
from elva_jax.ops.merging import MergeLayer, Merging
from elva_jax.tools.analysis import paper, prompt_flops
from elva_jax.tools.analysis.merv import MERV_7B, merv_on
from elva_jax.video.layout import frame_tokens
from elva_jax.video.resize import target_size

# The merging layers of configs/elva.py.
MERGE = Merging((MergeLayer(2, ratio=1.0), MergeLayer(8, "both"), MergeLayer(14, "both")))
ELVA_7B = with_merging(paper.QWEN2_7B, MERGE)
HEADER_TOKENS = 14  # ChatML's system prompt and start of a question, before the video
QUESTION_TOKENS = paper.OTHER_TOKENS - paper.OUTPUT_TOKENS - HEADER_TOKENS
# Reduction of "+ merge + HR" against the encoder-based baseline, by frames.
GOALS = {32: 0.95, 128: 0.97}
COUNTS = {
    "paper": "paper's cells",
    "accounting": "its accounting",
    "first_token": "first token",
    "total": "whole answer",
    "unpadded": "unpadded",
}


def compare(config: ModelConfig | None, frames: Sequence[int]) -> dict[str, Any]:
    """Counts every row of Table 5, and checks the goals.

    Args:
      config: a model with merging layers; None: the paper's 7B, the only one that the paper's
        figures belong to.
      frames: frame counts. The paper has 32, 64 and 128; other counts use the retention of the
        nearest of these.

    Returns:
      A JSON-able tree: `rows`, one per frame count and variant, with FLOPs in T and reductions as
      shares; and `goals`.

    Raises:
      ConfigError: a model without merging layers.
    """
    rows = [row for count in frames for row in _group(config, count)]
    return {"rows": rows, "goals": [goal for row in rows for goal in _goals(row)]}


def _group(config: ModelConfig | None, frames: int) -> list[dict[str, Any]]:
    """The models at one frame count, with their reductions against the first one."""
    rows = [_row(config, frames, variant) for variant in paper.MODELS]
    base = rows[0]
    for row in rows:
        row["reduction"] = {
            name: _reduction(row[f"{name}_tflops"], base[f"{name}_tflops"]) for name in COUNTS
        }
    return rows


def _reduction(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else 1 - value / base


def retention_at(frames: int, variant: str) -> float:
    """The paper's retention at its nearest frame count."""
    if variant not in ("merge", "merge_hr"):
        return 1.0
    return paper.RETENTION[min(paper.RETENTION, key=lambda known: abs(known - frames))][variant]


def _row(config: ModelConfig | None, frames: int, variant: str) -> dict[str, Any]:
    model, retention = config or ELVA_7B, retention_at(frames, variant)
    cell = paper.TABLE5.get(frames, {}).get(variant) if config is None else None
    accounting = _accounting(config, frames, variant, retention) / 1e12
    lengths, left = prefix_lengths(model, frames, variant, retention)
    parts = true_cost(model, frames, variant, tuple(map(grid_length, lengths)))
    unpadded = true_cost(model, frames, variant, lengths, padded=False)
    total = sum(parts.values())
    return {
        "frames": frames,
        "variant": variant,
        "retention": retention,  # the paper's
        "paper_tflops": cell.tflops if cell else None,
        "accounting_tflops": accounting,
        "deviation": accounting / cell.tflops - 1 if cell else None,
        # Visual tokens left in our cost: the paper's share, or the nearest possible one.
        "left": left,
        "tokens": list(lengths),  # of the prefix, and after each merging layer
        "padded": [grid_length(length) for length in lengths],
        "parts_tflops": {name: value / 1e12 for name, value in parts.items()},
        "first_token_tflops": (total - parts["decode"]) / 1e12,
        "total_tflops": total / 1e12,
        "unpadded_tflops": sum(unpadded.values()) / 1e12,
    }


def _accounting(config: ModelConfig | None, frames: int, variant: str, retention: float) -> float:
    """FLOPs by the paper's accounting.

    The paper's baseline has its own decoder, and so has MERV; those of a given model share its
    decoder. MERV reads its 32 frames of any video.
    """
    model = config or ELVA_7B
    if variant == "merv":
        merv = MERV_7B if config is None else merv_on(config)
        tokens = clip_tokens(merv.merv) + paper.OTHER_TOKENS_ENCODER_BASED
        front = flops.merv_front(merv, published=True).total
        return front + prompt_flops.paper_decoder(merv, tokens)
    if variant == "encoder_based":
        decoder, tower = (paper.VICUNA_7B if config is None else model), paper.CLIP_L_336
        tokens = tower.grid**2 * frames + paper.OTHER_TOKENS_ENCODER_BASED
        encoder = prompt_flops.paper_encoder(tower, decoder, frames)
        return encoder + prompt_flops.paper_decoder(decoder, tokens)
    visual = content(model.patch_size, frames).visual
    return prompt_flops.paper_decoder(model, retention * visual + paper.OTHER_TOKENS)


def content(patch_size: int, high: int, low: int = 0) -> prompt_flops.Content:
    """A prefix with square frames, `high` at 336 px and `low` at 112 px."""
    specials = patches = tubes = 0
    for count, edge in ((high, paper.EDGE), (low, paper.LOW_EDGE)):
        if count:
            height, width = target_size(edge, edge, longest_edge=edge, patch_size=patch_size)
            rows, columns = height // patch_size, width // patch_size
            patches, tubes = patches + count * rows * columns, tubes + rows * columns
            specials += count * (frame_tokens(rows, columns) - rows * columns)
    return prompt_flops.Content(text=HEADER_TOKENS, specials=specials, patches=patches, tubes=tubes)


def prefix_lengths(
    config: ModelConfig, frames: int, variant: str, retention: float
) -> tuple[tuple[int, ...], float]:
    """Tokens of the prompt up to the end of its video, and the retention that they amount to.

    Args:
      config: the model.
      frames: number of frames.
      variant: one of `paper.MODELS`.
      retention: wanted share of the visual tokens of all frames at 336 px on average over the
        layers, for the variants with merging.

    Returns:
      Lengths of the prefix at the start and after each merging layer, and the retention.
    """
    if variant == "encoder_based":
        return (HEADER_TOKENS + paper.CLIP_L_336.grid**2 * frames,), 1.0
    if variant == "merv":
        return (HEADER_TOKENS + clip_tokens(MERV_7B.merv),), 1.0
    whole = content(config.patch_size, frames)
    if variant == "encoder_free":
        return (whole.tokens,), 1.0
    low = frames // 2 if variant == "merge_hr" else 0
    prefix = content(config.patch_size, frames - low, low)
    before_merging = prefix.visual / whole.visual
    lengths = prompt_flops.tokens_at_retention(config, prefix, retention / before_merging)
    return lengths, before_merging * prompt_flops.retained(config, prefix, lengths)


def true_cost(
    config: ModelConfig, frames: int, variant: str, lengths: Sequence[int], *, padded: bool = True
) -> prompt_flops.Parts:
    """FLOPs by part of a video, a question and an answer of `paper.OUTPUT_TOKENS` tokens.

    The encoder-based baseline has the same decoder over the tower's penultimate features, as in
    LLaVA; the last layer of the tower does not run. MERV has the same decoder, too; the parts of
    its encoders that feed nothing do not run.

    Args:
      config: the model.
      frames: number of frames.
      variant: one of `paper.MODELS`.
      lengths: of the prefix, as in `prefix_lengths`.
      padded: whether question and answer are padded, as in inference.
    """
    parts: prompt_flops.Parts = {"encoder": 0.0, "projector": 0.0, "patch_embedding": 0.0}
    if variant == "encoder_based":
        tower = paper.CLIP_L_336
        parts["encoder"] = flops.vision_tower(tower, frames, tower.num_layers - 1)
        parts["projector"] = flops.projector(
            tower.hidden_size, config.hidden_size, tower.grid**2 * frames
        )
    elif variant == "merv":
        front = flops.merv_front(merv_on(config))
        parts["encoder"] = sum(front.encoders.values())
        parts["projector"] = front.projectors + front.fusion
    else:
        # Inference pads the patches to the length of the tokens.
        parts["patch_embedding"] = flops.patch_embedding(config, lengths[0], lengths[0])
    question, capacity = QUESTION_TOKENS, paper.OUTPUT_TOKENS
    if padded:
        question, capacity = grid_length(question), grid_length(capacity, 8)
    return (
        parts
        | prompt_flops.prefill(config, lengths)
        | prompt_flops.answer(config, lengths, question, capacity, paper.OUTPUT_TOKENS)
    )


def at_retention(row: dict[str, Any]) -> bool:
    """Whether our cost in a row is at the paper's retention, to a tenth of a percent."""
    return abs(row["left"] - row["retention"]) < 1e-3


def _goals(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether a row reaches the goal for its frame count, for every way of counting."""
    goal = GOALS.get(row["frames"])
    baseline = row["variant"] in ("encoder_based", "merv")
    if goal is None or baseline or not at_retention(row):
        return []
    return [
        {
            "frames": row["frames"],
            "variant": row["variant"],
            "counted": name,
            "goal": goal,
            "reduction": value,
            "reached": value >= goal,
        }
        for name, value in row["reduction"].items()
        if value is not None
    ]


def percent_down(share: float | None) -> float | None:
    """Percent with one decimal, truncated; None for None."""
    return None if share is None else math.floor(1000 * share) / 10
