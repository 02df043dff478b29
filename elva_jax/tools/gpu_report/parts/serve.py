"""Throughput of the engine of `elva serve` at 1.5B, with 1 client and with 16."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
import tempfile
import types
from typing import TYPE_CHECKING

from elva_jax.tools.gpu_report import stages
from elva_jax.tools.gpu_report.context import Context

if TYPE_CHECKING:
    from elva_jax.inference.model import ElvaModel

TEXT = "What moves in part 0 1 2 3 4 5 6 7 8 9 of the video? You are a helpful assistant."
VOCABULARY = 320  # tokens that the answers are chosen from; the model's own table is whole


def run(context: Context) -> None:
    """Serves a model with random weights."""
    with context.case("serve") as row:
        stand_in_for_pyav()
        from elva_jax.tools.bench import serve

        report = serve.measure(_model(context), _arguments(context))
        row |= {name: report[name] for name in ("requests", "prefix_tokens", "tokens", "same")}
        row |= {name: report[name] for name in ("one_by_one", "compilations", "warm_up_seconds")}
        row["clients"] = report["clients"]


def stand_in_for_pyav() -> None:
    """Lets modules that name PyAV be imported where it is missing; frames here are arrays."""
    if importlib.util.find_spec("av") is not None:
        return
    names = ("av", "av.video", "av.video.reformatter")
    package, video, reformatter = (types.ModuleType(name) for name in names)
    package.__dict__.update(__version__="17.0.0", video=video)
    video.__dict__.update(reformatter=reformatter)
    reformatter.__dict__.update(VideoReformatter=object)
    sys.modules.update(zip(names, (package, video, reformatter), strict=True))


def _model(context: Context) -> ElvaModel:
    from elva_jax.data.tokenizer import build
    from elva_jax.inference.model import ElvaModel
    from elva_jax.tools.bench.random_model import random_weights

    task = stages.make(context, "stage3")
    config = task.config
    if not context.dry:
        model = dataclasses.replace(config.model, dtype="bfloat16", remat="none")
        config = dataclasses.replace(config, model=model)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = build((TEXT,), folder, VOCABULARY)
    return ElvaModel(config, random_weights(config.model), tokenizer, task.name)


def _arguments(context: Context) -> argparse.Namespace:
    """The arguments of `elva bench serve`."""
    few = {"requests": 2, "videos": 1, "frames": 1, "edge": 48, "tokens": 3, "slots": 2}
    real = {"requests": 64, "videos": 8, "frames": 8, "edge": 336, "tokens": 64, "slots": 16}
    clients = (2,) if context.dry else (1, 16)
    return argparse.Namespace(
        **(few if context.dry else real), clients=clients, no_sharing=False, repeats=1
    )
