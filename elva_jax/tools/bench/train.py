"""`elva bench train`: speed and memory of a stage's training step, beside PyTorch's."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from elva_jax.config.load import choose
from elva_jax.tools.bench.arguments import add_repeats
from elva_jax.tools.bench.table import text_table
from elva_jax.tools.bench.timing import spread

if TYPE_CHECKING:
    from elva_jax.tasks.base import Task

HELP = """\
Runs a stage's training step on random weights and full rows of random videos, on the devices of
this process. MFU counts matrix products only, and neither recomputation nor padding.

--trainer pytorch trains transformers' Qwen2 of the same size on as many tokens, without merging and
one row at a time: float32 weights under bfloat16 autocast, fused AdamW, causal
scaled_dot_product_attention, recomputed layers, and logits of the answers' tokens only.

examples:
  elva bench train --config configs/tiny.py --stage sft
  elva bench train --config configs/elva.py:size=1_5b,stage=3 \\
    --config.stages.stage3.batch_size=4 --config.stages.stage3.optimizer.accumulate=4"""

QUESTION, ANSWER = 149, 120  # text tokens after each video, as in `elva bench flops`
COLUMNS = ("trainer", "rows", "tokens", "step s", "tokens/s", "TFLOP/s", "MFU %", "peak GiB")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this bench."""
    add, text = parser.add_argument, "config file, and the string for its get_config"
    add("--config", required=True, metavar="FILE.py[:ARG]", help=text)
    text = "stage of the config (default: its first one)"
    add("--stage", metavar="NAME", help=text)
    text = "whose step is timed (default: %(default)s)"
    add("--trainer", choices=["ours", "pytorch"], default="ours", help=text)
    text = "change a value of the config; can be repeated"
    add("--config.KEY=VALUE", dest="_", metavar="", help=text)
    add_repeats(parser, 5)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times the step after two that compile and warm up.

    Raises:
      ConfigError: a config or stage that cannot be trained, or PyTorch is missing.
    """
    from elva_jax.config.load import load, resolve
    from elva_jax.tasks.registry import make_task

    config = resolve(load(args.config, args.overrides))
    stages = list(config.curriculum)
    name = choose("--stage", args.stage or stages[0], stages)
    task = make_task(config, name)
    if args.trainer == "pytorch":
        from elva_jax.tools.bench.train_pytorch import measure
    else:
        measure = _measure
    return {
        "config": args.config,
        "overrides": args.overrides,
        "stage": name,
        "trainer": args.trainer,
        **measure(task, args.repeats),
    }


def random_batch(task: Task, seed: int = 0) -> dict[str, Any]:
    """A batch of the stage's shapes, whose rows are as full as whole videos make them.

    Each example is a video of the stage's frames, a question and an answer. Half of the patches
    change from frame to frame.
    """
    import numpy as np

    from elva_jax.data.packing import RowCapacity
    from elva_jax.tools.bench.random_model import random_patches
    from elva_jax.video.layout import Clip, Text, TokenLayout, build_layout, frame_tokens, pack

    rng, stage, model = np.random.default_rng(seed), task.stage, task.config.model
    most, width = RowCapacity.of_stage(stage), model.patch_size**2 * 3
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
    size, image = stage.batch_size, task.config.teacher.image_size
    batch = {"patches": np.stack([patches] * size), "layout": TokenLayout.stack([layout] * size)}
    if task.uses_teacher:
        batch["teacher_frames"] = rng.integers(
            0, 256, (size, most.frames, image, image, 3), np.uint8
        )
    return batch


def _measure(task: Task, repeats: int) -> dict[str, Any]:
    """Times our step, and reads the allocator's high-water mark."""
    import jax

    from elva_jax.parallel.mesh import make_mesh, shard_batch
    from elva_jax.tasks.base import TrainedMatrices
    from elva_jax.tools.bench.timing import machine
    from elva_jax.training.mfu import memory_gib, peak_flops
    from elva_jax.training.setup import fresh_state, set_up
    from elva_jax.training.step import TrainStep

    mesh = make_mesh(task.config.mesh)
    task.check_mesh(mesh)
    setup, batch = set_up(task, mesh, steps=1000), random_batch(task)
    state, step = fresh_state(setup, {}), TrainStep(setup)
    frozen, rows = _teacher(task), shard_batch(batch, mesh)
    metrics: Any = None

    def run_step() -> None:
        nonlocal state, metrics
        state, metrics = jax.block_until_ready(step(state, frozen, rows))

    seconds = time_steps(run_step, repeats)
    metrics = jax.device_get(metrics)
    matrices = TrainedMatrices(setup.optimizer.labels, setup.shapes.params)
    content = task.content(batch)
    flops = task.flops(content, metrics, matrices)
    return summary(task, content.tokens, flops, seconds, peak_flops(task.config)) | {
        "machine": machine(),
        "peak_gib": memory_gib(),
        "loss": float(metrics["loss"]),
        "visual_tokens_kept": float(metrics.get("merge/kept_mean", 1.0)),
    }


def time_steps(step: Callable[[], None], repeats: int) -> list[float]:
    """Seconds of `repeats` steps, after two that compile and warm up."""
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


def summary(
    task: Task, tokens: float, flops: float, seconds: list[float], peak: float | None
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


def _teacher(task: Task) -> dict[str, Any]:
    """The stage's frozen trees, with random weights."""
    import jax
    import numpy as np

    from elva_jax.models.build import parameter_shapes
    from elva_jax.utils.trees import unflatten_paths

    if not task.uses_teacher:
        return {}
    rng, shapes = np.random.default_rng(0), parameter_shapes(task.config, "vision")
    leaves = {
        path: jax.numpy.asarray(rng.normal(0, 0.02, shape), "float32")
        for path, shape in shapes.items()
    }
    return {"teacher": unflatten_paths(leaves)["vision"]}


def show(report: dict[str, Any]) -> str:
    """Formats the report."""
    mfu, peak, times = report["mfu"], report["peak_gib"], report["seconds"]
    row = [
        report["trainer"],
        str(report["batch_size"]),
        f"{report['tokens']:,.0f}",
        f"{times['median']:.3f} ({times['least']:.3f}-{times['most']:.3f})",
        f"{report['tokens_per_second']:,.0f}",
        f"{report['tflops']:.1f}",
        f"{100 * mfu:.1f}" if mfu else "-",
        f"{peak:.2f}" if peak else "-",
    ]
    return f"{report['machine']['device']}, {report['stage']} of {report['config']}\n" + text_table(
        COLUMNS, [row], words=1
    )
