"""Table 5 at 7B: the time to the first token of the four models, at 32, 64 and 128 frames."""

from __future__ import annotations

import time
from typing import Any

from elva_jax.tools.gpu_report.context import Context, compile_all

FRAMES = (32, 64, 128)
CONTENT = "typical"  # half of the patches change from frame to frame
REPEATS, ENOUGH_SECONDS = 3, 6.0


def models_of(context: Context, only: tuple[str, ...]) -> dict[str, Any]:
    """The models, with random weights."""
    from elva_jax.tools.bench.video_llm import paper_models, tiny_models

    return tiny_models("float32", only) if context.dry else paper_models("7b", "bfloat16", only)


def frames_of(context: Context) -> tuple[int, ...]:
    """The frame counts."""
    return (4,) if context.dry else FRAMES


def run(context: Context) -> None:
    """Prefills every case, compiles what reads the questions together, then measures."""
    import jax

    from elva_jax.inference import decode
    from elva_jax.tools.analysis.paper import VARIANTS

    order = ("merge_hr", "encoder_based") if context.dry else tuple(reversed(VARIANTS))
    models = models_of(context, order)
    for frames in frames_of(context):
        questions = {name: models[name].question(frames, CONTENT, 1) for name in order}
        programs = {}
        for name, question in questions.items():
            with context.case(f"{name} {frames} compilation") as row:
                start = time.perf_counter()
                arguments = question.feed_arguments(jax.block_until_ready(question.prefill()))
                row["seconds"] = time.perf_counter() - start
                programs[name] = (decode.feed, _shapes(arguments))
                del arguments
        compile_all(programs)
        for name, question in questions.items():
            with context.case(f"{name} {frames}", variant=name, frames=frames) as row:
                row["tokens"] = models[name].tokens(frames)
                row |= _measure(context, question)


def _shapes(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same arguments without their arrays, which would stay on the device."""
    import jax

    config, *arrays, sampling = arguments
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arrays)
    return config, *shapes, sampling


def _measure(context: Context, question: Any) -> dict[str, Any]:
    import jax

    from elva_jax.tools.bench.timing import spread
    from elva_jax.tools.bench.video_llm import kept_share

    prefix, _ = jax.block_until_ready(question.first())
    kept = kept_share(prefix)
    seconds: list[float] = []
    del prefix
    while len(seconds) < (1 if context.dry else REPEATS) and sum(seconds) < ENOUGH_SECONDS:
        start = time.perf_counter()
        jax.block_until_ready(question.first())
        seconds.append(time.perf_counter() - start)
    return {"seconds": spread(seconds), "kept": kept}
