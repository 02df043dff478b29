"""`elva bench train`: speed and memory of a stage's training step, beside PyTorch's."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from elva_jax.config.load import choose
from elva_jax.tools.bench.arguments import add_repeats
from elva_jax.tools.bench.table import text_table

if TYPE_CHECKING:
    from elva_jax.tasks.base import ModelTask

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
    measure: Callable[[ModelTask, int], dict[str, Any]] = measure_step
    if args.trainer == "pytorch":
        from elva_jax.tools.bench import train_pytorch

        measure = train_pytorch.measure
    return {
        "config": args.config,
        "overrides": args.overrides,
        "stage": name,
        "trainer": args.trainer,
        **measure(task, args.repeats),
    }


def measure_step(task: ModelTask, repeats: int) -> dict[str, Any]:
    """Times our step, and reads the allocator's high-water mark."""
    import jax

    from elva_jax.parallel.mesh import make_mesh, shard_batch
    from elva_jax.tools.bench.timing import machine
    from elva_jax.tools.bench.train_step import random_batch, summary, time_steps
    from elva_jax.training.mfu import memory_gib, peak_flops
    from elva_jax.training.setup import fresh_state, set_up
    from elva_jax.training.step import TrainStep
    from elva_jax.training.task import TrainedMatrices

    mesh = make_mesh(task.config.mesh)
    task.check_mesh(mesh)
    setup, batch = set_up(task, mesh, steps=1000), random_batch(task)
    state, step = fresh_state(setup, {}), TrainStep(setup)
    frozen, rows = _teachers(task), shard_batch(batch, mesh)
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


def _teachers(task: ModelTask) -> dict[str, Any]:
    """The stage's frozen trees, with random weights."""
    import jax
    import numpy as np

    from elva_jax.config.teachers import with_teacher
    from elva_jax.models.build import parameter_shapes
    from elva_jax.utils.trees import unflatten_paths

    rng, trees = np.random.default_rng(0), {}
    for name, teacher in task.teachers.items():
        shapes = parameter_shapes(with_teacher(task.config, teacher), "vision")
        leaves = {
            path: jax.numpy.asarray(rng.normal(0, 0.02, shape), "float32")
            for path, shape in shapes.items()
        }
        trees[name] = unflatten_paths(leaves)["vision"]
    return trees


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
