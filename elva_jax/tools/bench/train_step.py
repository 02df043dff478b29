"""The batch, the clock and the summary that the trainers of `elva bench train` share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from elva_jax.data.packing import RowCapacity
from elva_jax.data.teacher_frames import TeacherFrames
from elva_jax.tasks.base import ModelTask
from elva_jax.tools.bench.random_model import random_patches
from elva_jax.tools.bench.timing import spread
from elva_jax.video.layout import Clip, Text, TokenLayout, build_layout, frame_tokens, pack

QUESTION, ANSWER = 149, 120  # text tokens after each video, as in `elva bench flops`


def random_batch(task: ModelTask, seed: int = 0) -> dict[str, Any]:
    """A batch of the stage's shapes, whose rows are as full as whole videos make them.

    Each example is a video of the stage's frames, a question and an answer. Half of the patches
    change from frame to frame.
    """
    rng, stage, model = np.random.default_rng(seed), task.stage, task.config.model
    most, width = RowCapacity.of_stage(stage), model.patch_values
    # The largest square frames of which a row holds one video.
    frames = min(stage.data.num_frames, most.frames)
    question, answer = (min(n, most.tokens // 8) for n in (QUESTION, ANSWER))
    visual = most.tokens - question - answer
    sides = range(1, stage.data.longest_edge // model.patch_size + 1)
    side = max(
        side
        for side in sides
        if side == 1
        or (frames * frame_tokens(side, side) <= visual and frames * side**2 <= most.patches)
    )
    grid = (side, side)
    clip = Clip((grid,) * frames)
    words = rng.integers(3, model.vocab_size, question + answer)
    example = build_layout([clip, Text(words[:question]), Text(words[question:], weight=1.0)])
    count = min(
        most.tokens // example.length, most.patches // (frames * side * side), most.frames // frames
    )
    layout = pack([example] * count, most.tokens)
    patches = np.zeros((most.patches, width), np.uint8)
    used = random_patches([grid] * (frames * count), width, "typical", seed)
    patches[: len(used)] = used
    size, seen = stage.batch_size, TeacherFrames.of(task.teachers.values())
    batch = {"patches": np.stack([patches] * size), "layout": TokenLayout.stack([layout] * size)}
    if seen.sizes:
        batch["teacher_frames"] = {
            side: rng.integers(0, 256, (size, most.frames, side, side, 3), np.uint8)
            for side in seen.sizes
        }
    if seen.media:
        media = np.full(most.frames, -1, np.int32)
        media[: frames * count] = np.repeat(np.arange(count), frames)
        batch["teacher_media"] = np.stack([media] * size)
    return batch


def time_steps(step: Callable[[], None], repeats: int) -> list[float]:
    """Seconds of `repeats` steps, after two that compile and warm up."""
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


def summary(
    task: ModelTask, tokens: float, flops: float, seconds: list[float], peak: float | None
) -> dict[str, Any]:
    """Speed of steps of `tokens` tokens and `flops` FLOPs, on devices with `peak` FLOP/s."""
    times = spread(seconds)
    return {
        "batch_size": task.stage.batch_size,
        "tokens": tokens,
        "seconds": times,
        "tokens_per_second": tokens / times["median"],
        "tflops": flops / times["median"] / 1e12,
        "mfu": flops / times["median"] / peak if peak else None,
    }
